"""Which attacks an evaluation runs: (attack, backward mode) pairs under a name that a paper can cite.

A protocol is a list of terms, ``ATTACK[xRESTARTS][@MODES]``, or ``ensemble-ATTACK`` for ``ATTACK@ensemble``. The named
ones below are such lists under a version: what ``worst-case-v1`` runs does not change any more.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import nn

from rsnn_zoo.attacks.adaptive import Adaptive, adaptive
from rsnn_zoo.attacks.apgd import apgd
from rsnn_zoo.attacks.base import Attack, Batch, GradientAttack, Victim
from rsnn_zoo.attacks.library import torchattack
from rsnn_zoo.attacks.queries import Noise, RayS, Square
from rsnn_zoo.attacks.sapgd import sapgd
from rsnn_zoo.attacks.signed import FGSM, RFGSM, pgd
from rsnn_zoo.attacks.transfer import Transfer, published, unconverted
from rsnn_zoo.modes import MODES, BackwardMode, Rate, Relu, Surrogate, parse_mode
from rsnn_zoo.names import near_matches
from rsnn_zoo.neurons import SpikingNeuron

__all__ = ["ENSEMBLE_MODES", "MODE_LISTS", "PROTOCOLS", "Member", "full_name", "protocol"]

_log = logging.getLogger(__name__)

ENSEMBLE_MODES: tuple[BackwardMode, ...] = tuple(
    mode for mode in MODES.values() if isinstance(mode, Surrogate | Rate | Relu)
)
"""The published ensemble: 17 surrogates through time, backward through the rate, and the ReLU stand-in."""

MODE_LISTS: dict[str, tuple[BackwardMode, ...]] = {
    "ensemble": ENSEMBLE_MODES,
    "strong": tuple(map(parse_mode, ("pcw-1", "pcw-2", "exp_d-1", "rate", "assg", "hart-1", "rga", "pdsg"))),
    "adaptive": tuple(map(parse_mode, ("pcw-2", "hart-1", "pcw-1", "exp_d-1", "pcw-0.5", "rate"))),
}
"""Modes under one name: the 19 published ones; those that fell most and those published since; what the adaptive
ensemble chooses from."""

PROTOCOLS: dict[str, tuple[str, ...]] = {
    "adaptive-v1": ("adaptive434",),
    "autoattack-v1": (
        "apgd100-ce",
        *(f"apgd100-t{target}" for target in range(1, 10)),
        "fab100-t",
        "square5000",
    ),
    "ensemble-apgd100": ("apgd100-ce@ensemble", "apgd100-dlr@ensemble"),
    "quick-v1": ("pgd10@pcw-1", "apgd30-ce@pcw-2", "apgd30-dlr@pcw-1", "sapgd30@assg", "pgd10@rate"),
    "worst-case-v1": (
        "pgd20@ensemble",
        "apgd100-ce@strong",
        "apgd100-dlr@strong",
        "sapgd100@assg",
        *(f"apgd100-t{target}@pcw-1" for target in range(1, 10)),
        *(f"apgd100-t{target}@assg" for target in range(1, 4)),
        "transfer-apgd100-ce",
        "square5000",
        "rays1000",
        "uniform-noise10",
        "gaussian-noise10",
    ),
}
"""The named protocols, from the strong and cheap to the dear: a sample that has fallen is not attacked again.

``autoattack`` is the standard version of Croce & Hein, ICML 2020: what to hold an ANN to, or an SNN's own gradients.
"""


def _transfer(model: nn.Module, attack: str) -> Attack | None:
    source, there = unconverted(model), _attack(attack, model)
    return Transfer(source, there, "ann") if source and there else None


def _transfer_from(model: nn.Module, name: str, attack: str) -> Attack | None:
    source = published(name, model)
    there = _attack(attack, source)
    return Transfer(source, there, name) if there else None


_ATTACKS: dict[str, Callable[..., Attack | None]] = {
    "fgsm": lambda model: FGSM,
    "rfgsm": lambda model: RFGSM,
    "pgd{n}": lambda model, steps: pgd(int(steps)),
    "apgd{n}-(ce|dlr)": lambda model, steps, loss: apgd(int(steps), loss),
    "apgd{n}-t{n}": lambda model, steps, target: apgd(int(steps), "t", int(target)),
    "sapgd{n}": lambda model, steps: sapgd(int(steps)),
    "adaptive{n}": lambda model, steps: adaptive(int(steps), MODE_LISTS["adaptive"] if _spiking(model) else (None,)),
    "square{n}": lambda model, queries: Square(int(queries)),
    "rays{n}": lambda model, queries: RayS(int(queries)),
    "(uniform|gaussian)-noise{n}": lambda model, kind, queries: Noise(int(queries), kind),
    "fab{n}-t": lambda model, steps: torchattack("FAB", steps=int(steps), multi_targeted=True),
    "torchattacks.(.+)": lambda model, name: torchattack(name),
    "transfer-(.+)": _transfer,
    r"transfer\[([^]]+)\]-(.+)": _transfer_from,
}
"""Attacks by what their names look like ({n}: a positive number), from the model and what the name says in brackets."""

_PATTERNS = {re.compile(name.replace("{n}", "([1-9][0-9]{0,4})")): make for name, make in _ATTACKS.items()}
_TERM = re.compile(r"(?P<ensemble>ensemble-)?(?P<attack>[^@+]+?)(x(?P<restarts>[1-9][0-9]?))?(@(?P<modes>[^@+]+))?")


@dataclass(frozen=True)
class Member:
    """One attack under one backward mode; ``mode`` None is the model's own way."""

    attack: Attack
    mode: BackwardMode | None = None

    @property
    def mode_name(self) -> str:
        """The mode as reports name it."""
        return "own" if self.mode is None else str(self.mode)

    def learned(self, victim: Victim, pilot: Batch) -> Member:
        """The same; what the adaptive ensemble wants to know beforehand it has learned on the pilot.

        Args:
            victim: The model under attack.
            pilot: The first ``PILOT`` samples that are classified correctly: the same for all batches and processes.
        """
        return replace(self, attack=self.attack.learned(victim, pilot)) if isinstance(self.attack, Adaptive) else self

    def __str__(self) -> str:
        return f"{self.attack.name}/{self.mode_name}"


def full_name(name: str) -> str:
    """The name with its version: what a report should say. Without one, the newest is meant.

    Example:
        >>> full_name("worst-case")
        'worst-case-v1'
    """
    versions = [known for known in PROTOCOLS if re.fullmatch(re.escape(name) + r"-v\d+", known)]
    return max(versions, key=lambda known: int(known.rpartition("-v")[2]), default=name)


def protocol(name: str, model: nn.Module) -> tuple[Member, ...]:
    """The members of a protocol, for this model.

    Args:
        name: A key of ``PROTOCOLS``, with its version or without, or terms joined by ``+``. Attacks are ``fgsm``,
            ``rfgsm``, ``pgdK``, ``apgdK-ce``, ``apgdK-dlr``, ``apgdK-tN`` (targeted, the N-th likely wrong class),
            ``sapgdK``, ``fabK-t`` (FAB towards each wrong class; all of K steps), ``squareK``, ``raysK``,
            ``uniform-noiseK``, ``gaussian-noiseK`` (of K queries), ``torchattacks.NAME`` (a class of that library with
            its default options), ``transfer-ATTACK`` (on the network that the model was converted from) and
            ``transfer[NAME]-ATTACK`` (on any model that :func:`rsnn_zoo.create_model` has weights for). Modes are a
            key of ``MODE_LISTS``, or what :func:`rsnn_zoo.modes.parse_mode` reads; the model's own without any.
        model: The model to attack. One without spiking neurons has but one way to be differentiated, so it meets each
            attack once.

    Raises:
        ValueError: For an unknown name, if nothing of it can be run on this model, or if a source of transfer has other
            classes or channels.
        LookupError: If nobody published the source of transfer.

    Example:
        >>> len(protocol("ensemble-pgd20", snn)), len(protocol("pgd20x3@rate+square1000", snn))  # doctest: +SKIP
        (19, 4)

    Source:
        Özdenizci & Legenstein, TMLR 2024, section 4.2, for the ensemble.
    """
    terms = PROTOCOLS.get(full_name(name)) or tuple(name.split("+"))
    members = {str(member): member for term in terms for member in _members(term, model)}
    if not members:
        raise ValueError(f"attack {name!r} needs the published network that the model was converted from")
    return tuple(members.values())


def _spiking(model: nn.Module) -> bool:
    return any(isinstance(module, SpikingNeuron) for module in model.modules())


def _members(term: str, model: nn.Module) -> Iterator[Member]:
    match = _TERM.fullmatch(term)
    if not match:
        raise _unknown(term)
    attack = _attack(match["attack"], model)
    if attack is None:
        if _spiking(model):
            about = "left out %s: the network that the model was converted from is not published; name one, as in %s"
            _log.warning(about, term, term.replace("transfer-", "transfer[NAME]-", 1))
        return
    modes = _modes("ensemble" if match["ensemble"] else match["modes"])
    differentiated = attack.source if isinstance(attack, Transfer) else model
    for restart in range(1, int(match["restarts"] or 1) + 1):
        for mode in modes if _spiking(differentiated) else (None,):
            yield Member(_again(attack, restart), mode)


def _modes(name: str | None) -> tuple[BackwardMode | None, ...]:
    return (None,) if name is None else MODE_LISTS.get(name) or (parse_mode(name),)


def _again(attack: Attack, restart: int) -> Attack:
    """The attack with draws of its own for each restart: they follow the name."""
    if restart == 1:
        return attack
    if not isinstance(attack, GradientAttack):
        raise ValueError(f"{attack.name} has no restarts: give it more queries")
    return replace(attack, name=f"{attack.name}#{restart}")


def _attack(name: str, model: nn.Module) -> Attack | None:
    for pattern, make in _PATTERNS.items():
        if match := pattern.fullmatch(name):
            return make(model, *match.groups())
    raise _unknown(name)


def _unknown(name: str) -> ValueError:
    known = [*PROTOCOLS, *(pattern.replace("{n}", "K") for pattern in _ATTACKS), "ensemble-pgd20"]
    return ValueError(f"unknown attack {name!r}{near_matches(name, known)}")
