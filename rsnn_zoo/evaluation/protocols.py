"""Which attacks an evaluation runs: (attack, backward mode) pairs under a name that a paper can cite.

A protocol is a list of terms, ``ATTACK[xRESTARTS][@MODES]``, or ``ensemble-ATTACK`` for ``ATTACK@ensemble``. The named
ones below are such lists under a version: what ``worst-case-v1`` runs does not change any more. How the members of
``worst-case-v2`` were chosen stands in ``docs/worst_case_v2.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from rsnn_zoo._utils.provenance import digest
from rsnn_zoo.attacks.adaptive import Adaptive, adaptive
from rsnn_zoo.attacks.apgd import apgd
from rsnn_zoo.attacks.base import Attack, GradientAttack
from rsnn_zoo.attacks.fab import FAB
from rsnn_zoo.attacks.flips import Flips
from rsnn_zoo.attacks.foreign_spikes import follows_surrogates
from rsnn_zoo.attacks.library import TorchAttack, torchattack
from rsnn_zoo.attacks.queries import Noise, QueryAttack, RayS, Square
from rsnn_zoo.attacks.sapgd import sapgd
from rsnn_zoo.attacks.signed import FGSM, RFGSM, pgd
from rsnn_zoo.evaluation.named import ENSEMBLE_MODES, MODE_LISTS, PROTOCOLS
from rsnn_zoo.evaluation.transfer import Transfer, published, unconverted
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron
from rsnn_zoo.neurons.modes import BackwardMode, Surrogate, parse_mode
from rsnn_zoo.spec.names import near_matches

__all__ = ["ENSEMBLE_MODES", "MODE_LISTS", "PROTOCOLS", "Member", "Plan", "full_name", "plan", "protocol"]


def _transfer(model: nn.Module, attack: str) -> Attack | None:
    source = unconverted(model)
    there = _attack(attack, source or model)
    return Transfer(source, there, "ann") if source and there else None


def _transfer_from(model: nn.Module, name: str, attack: str) -> Attack | None:
    source = published(name, model)
    there = _attack(attack, source)
    return Transfer(source, there, name) if there else None


FLIPS = 160_000
"""Pixels along a side of an image times the questions that ``flips`` asks: each takes longer on larger images."""
FEWEST_FLIPS = 500


def _flips(model: nn.Module, queries: str | None = None) -> Attack:
    if queries is None:
        queries = str(max(FLIPS // getattr(model, "img_size", 32), FEWEST_FLIPS))
    spiking = any(isinstance(module, SpikingNeuron) for module in model.modules())
    return Flips(int(queries), unconverted(model), spiking)


_ATTACKS: dict[str, Callable[..., Attack | None]] = {
    "fgsm": lambda model: FGSM,
    "rfgsm": lambda model: RFGSM,
    "pgdK": lambda model, steps: pgd(int(steps)),
    "apgdK-ce": lambda model, steps: apgd(int(steps), "ce"),
    "apgdK-dlr": lambda model, steps: apgd(int(steps), "dlr"),
    "apgdK-tK": lambda model, steps, target: apgd(int(steps), "t", int(target)),
    "sapgdK": lambda model, steps: sapgd(int(steps)),
    "adaptiveK": lambda model, steps: adaptive(int(steps), _followed(MODE_LISTS["adaptive"], model)),
    "squareK": lambda model, queries: Square(int(queries)),
    "raysK": lambda model, queries: RayS(int(queries)),
    "uniform-noiseK": lambda model, queries: Noise(int(queries), "uniform"),
    "gaussian-noiseK": lambda model, queries: Noise(int(queries), "gaussian"),
    "fabK-tK": lambda model, steps, target: FAB(int(steps), int(target)),
    "torchattacks.NAME": lambda model, name: torchattack(name),
    "flips": _flips,
    "flipsK": _flips,
    "transfer-NAME": _transfer,
    "transfer[MODEL]-NAME": _transfer_from,
}
"""Attacks by what their names look like, from the model under attack and what stands in place of the capitals."""

_CAPITALS = {"K": "([1-9][0-9]{0,4})", "NAME": "(.+)", "MODEL": "([^]]+)"}
_PATTERNS = {
    re.compile(re.sub("[A-Z]+", lambda capitals: _CAPITALS[capitals[0]], re.escape(name))): make
    for name, make in _ATTACKS.items()
}
_ATTACK_NAME = r"(?:[^@\[]|\[[^\]]*\])+?"  # in brackets stands the name of a model, which may hold anything
_TERM = re.compile(
    rf"(?P<ensemble>ensemble-)?(?P<attack>{_ATTACK_NAME})(x(?P<restarts>[1-9][0-9]?))?(@(?P<modes>[^@]+))?"
)
_PLUS = re.compile(r"\+(?![^\[]*\])")


@dataclass(frozen=True)
class Member:
    """One attack under one backward mode; ``mode`` None is the model's own way."""

    attack: Attack
    mode: BackwardMode | None = None

    @property
    def mode_name(self) -> str:
        """The mode as reports name it."""
        return "own" if self.mode is None else str(self.mode)

    @property
    def least_classes(self) -> int:
        """How many classes a model must have to meet it."""
        return getattr(self.attack, "least_classes", 2)

    @property
    def job(self) -> str:
        """What its verdicts are kept under: its name, and what else they follow from."""
        if isinstance(self.attack, Adaptive):  # other first samples teach it something else
            return f"{self} {json.dumps(self.attack.to_json())}"
        source = getattr(self.attack, "source", None)  # of transfer, and of starts
        return str(self) if source is None else f"{self} {digest(source)}"

    @property
    def cost(self) -> int:
        """About how many gradient passes a sample takes that does not fall; a question costs a third of one."""
        if not self.is_bounded:
            return 1000  # who knows
        attack = self._runs
        return getattr(attack, "steps", 0) + -(-getattr(attack, "queries", 0) // 3)

    @property
    def is_bounded(self) -> bool:
        """Whether it is known what it takes; of another library's attacks it is not."""
        return not isinstance(self._runs, TorchAttack)

    @property
    def _runs(self) -> Any:
        """What is run in the end, be it on the source of a source."""
        attack = self.attack
        while isinstance(attack, Transfer):
            attack = attack.attack
        return attack

    def __str__(self) -> str:
        return f"{self.attack.name}/{self.mode_name}"


def full_name(name: str) -> str:
    """The name with its version: what a report should say. Without one, the newest is meant.

    Example:
        >>> full_name("worst-case")
        'worst-case-v2'
    """
    return "+".join(map(_newest, _PLUS.split(name)))


def _newest(name: str) -> str:
    versions = [known for known in PROTOCOLS if re.fullmatch(re.escape(name) + r"-v\d+", known)]
    return max(versions, key=lambda known: int(known.rpartition("-v")[2]), default=name)


@dataclass(frozen=True)
class Plan:
    """What a protocol comes to for one model.

    Attributes:
        name: Of the protocol, with versions.
        members: What runs, in this order.
        left_out: What of it this model does not meet, and why.
        asked: Members that were asked for by their own name, not by that of a protocol.
    """

    name: str
    members: tuple[Member, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    asked: frozenset[str] = frozenset()

    def of_classes(self, classes: int) -> Plan:
        """The same for a model of so many classes: what of a named protocol needs more of them is left out.

        Raises:
            ValueError: If members need more that were asked for by their own names, or none would be left.
        """
        few = {str(member): member.least_classes for member in self.members if member.least_classes > classes}
        kept = tuple(member for member in self.members if str(member) not in few)
        why = {name: f"it needs at least {least} classes, and the model has {classes}" for name, least in few.items()}
        for name, reason in why.items():
            if name in self.asked or not kept:
                raise ValueError(f"{name}: {reason}: name others")
        return replace(self, members=kept, left_out=self.left_out | why)


def plan(name: str, model: nn.Module) -> Plan:
    """What :func:`protocol` gives, and what is left out of it.

    Raises:
        ValueError: As of :func:`protocol`.
        LookupError: As of :func:`protocol`.

    Example:
        >>> plan("worst-case", snn_of_my_own).left_out  # doctest: +SKIP
        {'transfer-apgd100-ce': 'the network that the model was converted from is not published: ...'}
    """
    members: dict[str, Member] = {}
    left_out: dict[str, str] = {}
    asked: set[str] = set()
    for part in _PLUS.split(full_name(name)):
        for term in PROTOCOLS.get(part, (part,)):
            found, lacking = _members(term, model)
            members |= {str(member): member for member in found}
            left_out |= lacking
            asked |= set() if part in PROTOCOLS else set(map(str, found))
    if not members:
        other = name.replace("transfer-", "transfer[NAME]-", 1)
        why = "; ".join(left_out.values()) or f"the model was converted from none: name another, as in {other}"
        raise ValueError(f"attack {name!r} transfers from the network that a model was converted from, and {why}")
    return Plan(full_name(name), tuple(members.values()), left_out, frozenset(asked))


def protocol(name: str, model: nn.Module) -> tuple[Member, ...]:
    """The members of a protocol, for this model.

    Args:
        name: A key of ``PROTOCOLS``, with its version or without, or terms, or several of these joined by ``+``.
            Attacks are ``fgsm``, ``rfgsm``, ``pgdK``, ``apgdK-ce``, ``apgdK-dlr``, ``apgdK-tN`` (targeted, the N-th
            likely wrong class), ``sapgdK``, ``fabK-tN`` (FAB towards the N-th likely wrong class), ``adaptiveK``,
            ``squareK``, ``flipsK``, ``raysK``, ``uniform-noiseK``, ``gaussian-noiseK`` (of K queries), ``flips`` (of
            20,000 queries on images of 8x8 pixels, 5,000 on those of 32x32),
            ``torchattacks.NAME`` (a class of that library with its default options), ``transfer-ATTACK`` (on the
            network that the model was converted from) and ``transfer[NAME]-ATTACK`` (on any model that
            :func:`rsnn_zoo.create_model` has weights for). Modes are a key of ``MODE_LISTS``, or what
            :func:`rsnn_zoo.neurons.modes.parse_mode` reads; the model's own without any.
        model: The model to attack. Neurons of other libraries follow the surrogates, see
            :mod:`rsnn_zoo.attacks.foreign_spikes`; in place of modes that a model does not follow it meets the attack
            once, under its own gradients.

    Raises:
        ValueError: For an unknown name, a mode of an attack that has no use for it, if nothing of it can be run on this
            model, or if a source of transfer has other classes or channels.
        LookupError: If nobody published the source of transfer.

    Example:
        >>> len(protocol("ensemble-pgd20", snn)), len(protocol("pgd20x3@rate+square1000", snn))  # doctest: +SKIP
        (19, 4)

    Source:
        Özdenizci & Legenstein, TMLR 2024, section 4.2, for the ensemble.
    """
    return plan(name, model).members


def _members(term: str, model: nn.Module) -> tuple[list[Member], dict[str, str]]:
    """The members of a term, and what the model does not meet of it, with the reason."""
    match = _TERM.fullmatch(term)
    if not match:
        raise _unknown(term)
    attack = _attack(match["attack"], model)
    if attack is None:
        other = term.replace("transfer-", "transfer[NAME]-", 1)
        why = f"the network that the model was converted from is not published: name one, as in {other}"
        return [], {} if _is_ann(model) else {term: why}
    runs, differentiated = (attack.attack, attack.source) if isinstance(attack, Transfer) else (attack, model)
    wanted = "ensemble" if match["ensemble"] else match["modes"]
    if runs is not attack and isinstance(runs, RayS | Noise):
        raise ValueError(f"{term}: {runs.name} learns nothing from another model: name it without transfer")
    if wanted and isinstance(runs, QueryAttack | Adaptive | Flips):
        what = "chooses its modes itself" if isinstance(runs, Adaptive | Flips) else "follows no gradient"
        raise ValueError(f"{term}: {runs.name} {what}: name it without a mode")
    modes: tuple[BackwardMode | None, ...] = (None,)
    if wanted:
        modes = MODE_LISTS.get(wanted) or (parse_mode(wanted),)
    ways = _followed(modes, differentiated)
    restarts = range(1, int(match["restarts"] or 1) + 1)
    members = [Member(_again(attack, restart), way) for restart in restarts for way in ways]
    if isinstance(runs, Adaptive):  # the modes are not in the term, but in its pairs
        modes, ways = MODE_LISTS["adaptive"], tuple(mode for _, mode in runs.pairs)
    if isinstance(runs, Flips) and runs.source is None and not _is_ann(model):
        why = "the network that the model was converted from is not published, so no search starts from it"
        return members, {f"starts of {term}": why}
    lost = [str(mode) for mode in modes if mode not in ways]  # said, or a table would claim an attack that never ran
    if not lost or _is_ann(differentiated):
        return members, {}
    which = "all its modes" if len(lost) == len(modes) > 1 else ", ".join(lost)
    return members, {f"{term} under {which}": "no neuron of it follows modes: the model's own gradients instead"}


def _is_ann(model: nn.Module) -> bool:
    """Whether it is known to have no spikes, and so but one way to be differentiated."""
    return getattr(model, "timesteps", model) is None


def _followed(modes: tuple[BackwardMode | None, ...], model: nn.Module) -> tuple[BackwardMode | None, ...]:
    """The modes that the neurons of a model follow; in place of all others None, its own way, once."""
    if any(isinstance(module, SpikingNeuron) for module in model.modules()):
        return modes
    kinds = Surrogate if follows_surrogates(model) else ()
    return tuple(dict.fromkeys(mode if isinstance(mode, kinds) else None for mode in modes))


def _again(attack: Attack, restart: int) -> Attack:
    """The attack with draws of its own for each restart: they follow the name."""
    if restart == 1:
        return attack
    if not isinstance(attack, GradientAttack):
        raise ValueError(f"{attack.name} has no restarts: give it more steps or queries")
    return replace(attack, name=f"{attack.name}#{restart}")


def _attack(name: str, model: nn.Module) -> Attack | None:
    for pattern, make in _PATTERNS.items():
        if match := pattern.fullmatch(name):
            return make(model, *match.groups())
    raise _unknown(name)


def _unknown(name: str) -> ValueError:
    return ValueError(f"unknown attack {name!r}{near_matches(name, [*PROTOCOLS, *_ATTACKS])}")
