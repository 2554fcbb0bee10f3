"""Which attacks an evaluation runs: (attack, backward mode) pairs under a name that a paper can cite."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from rsnn_zoo.attacks.signed import FGSM, RFGSM, SignAttack, pgd
from rsnn_zoo.neurons import BackwardMode, Rate, Relu, SpikingNeuron, Surrogate

__all__ = ["ENSEMBLE_MODES", "Member", "protocol"]

_WIDTHS = {
    "pcw": (1.0, 2.0, 3.0, 0.5, 0.25),
    "exp_d": (0.5, 1.0, 2.0),
    "exp": (0.5, 1.0, 2.0),
    "rect": (0.25, 0.5, 1.0, 2.0, 4.0),
    "ste": (1.0,),
}

ENSEMBLE_MODES: tuple[BackwardMode, ...] = (
    *(Surrogate(kind, width) for kind, widths in _WIDTHS.items() for width in widths),
    Rate(),
    Relu(),
)
"""The published ensemble: 17 surrogates through time, backward through the rate, and the ReLU stand-in."""

_ATTACKS = {"fgsm": FGSM, "rfgsm": RFGSM}
_NAME = re.compile(r"(ensemble-)?(fgsm|rfgsm|pgd([1-9][0-9]{0,3}))")


@dataclass(frozen=True)
class Member:
    """One attack under one backward mode; ``mode`` None is the model's own way."""

    attack: SignAttack
    mode: BackwardMode | None = None

    @property
    def mode_name(self) -> str:
        """The mode as reports name it."""
        return "own" if self.mode is None else str(self.mode)

    def __str__(self) -> str:
        return f"{self.attack.name}/{self.mode_name}"


def protocol(name: str, model: nn.Module) -> tuple[Member, ...]:
    """The members of a named protocol, for this model.

    Args:
        name: ``"fgsm"``, ``"rfgsm"`` or ``"pgdK"`` (K steps) under the model's own surrogates, or with
            ``"ensemble-"`` before it under all 19 modes of the published ensemble.
        model: The model to attack. One without spiking neurons has but one way to be differentiated, so its
            ensemble has one member.

    Raises:
        ValueError: For an unknown name.

    Example:
        >>> len(protocol("ensemble-pgd20", snn))  # doctest: +SKIP
        19

    Source:
        Özdenizci & Legenstein, TMLR 2024, section 4.2.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise ValueError(
            f"unknown attack {name!r}: choose fgsm, rfgsm or pgdK (K steps, e.g. pgd20), or one of these with "
            "'ensemble-' before it, e.g. ensemble-pgd20"
        )
    ensemble, family, steps = match.groups()
    attack = pgd(int(steps)) if steps else _ATTACKS[family]
    spiking = any(isinstance(module, SpikingNeuron) for module in model.modules())
    modes = ENSEMBLE_MODES if ensemble and spiking else (None,)
    return tuple(Member(attack, mode) for mode in modes)
