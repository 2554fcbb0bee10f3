"""What is asked of an evaluation, checked before any work."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from torch import nn

from rsnn_zoo._utils.files import check_writable
from rsnn_zoo.attacks.adaptive import Adaptive
from rsnn_zoo.attacks.base import check_eps
from rsnn_zoo.evaluation.protocols import Plan, plan
from rsnn_zoo.report.evidence import PRECISIONS, SETTINGS
from rsnn_zoo.spec.units import RELATIVE, check_units

__all__ = ["Settings"]

_BOUNDS = {"batch_size": (1, None), "checks": (0, None), **SETTINGS}
_BY_DEFAULT = ("chunk", "draws")
"""What follows from model and images where it is None."""


@dataclass(frozen=True)
class Settings:
    """What an evaluation does; the attributes are the arguments of :func:`rsnn_zoo.evaluation.evaluation.evaluate`.

    Raises:
        TypeError: If an eps is no number.
        ValueError: For integers out of bounds, an unknown precision or units, an eps outside [0, 1], or a path where
            no adversarial examples can be written.
    """

    attack: str | Sequence[str] | Mapping[str, float | Sequence[float]]
    eps: float | Sequence[float]
    seed: int = 0
    batch_size: int = 256
    chunk: int | None = None
    precision: str = "float32"
    draws: int | None = None
    checks: int = 64
    state: str | os.PathLike[str] | None = None
    adversarial: str | os.PathLike[str] | None = None
    taught: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    progress: bool = False
    units: str = RELATIVE

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        check_units(self.units)
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name, (least, most) in _BOUNDS.items():
            if (value := getattr(self, name)) is None and name in _BY_DEFAULT:
                continue
            if not isinstance(value, Integral) or isinstance(value, bool) or value < least or value > (most or value):
                span = f"of at least {least}" if most is None else f"from {least} to {most}"
                raise ValueError(f"{name} must be an integer {span}, got {value!r}")
        for _, radii in self._asked():
            _radii(radii)
        if self.adversarial is not None:
            check_writable(self.adversarial)

    def _asked(self) -> Iterator[tuple[str, float | Sequence[float]]]:
        """Protocols with their radii."""
        if isinstance(self.attack, Mapping):
            yield from self.attack.items()
        else:
            for name in [self.attack] if isinstance(self.attack, str) else self.attack:
                yield name, self.eps

    def plans(self, model: nn.Module) -> list[tuple[Plan, list[float]]]:
        """What runs on a model, with the radii of each.

        Raises:
            ValueError: For an unknown protocol, none, or something that no adaptive ensemble learns.
            LookupError: As of :func:`rsnn_zoo.evaluation.protocols.protocol`.
        """
        planned: dict[str, tuple[Plan, list[float]]] = {}
        for name, mine in self._asked():  # a protocol may be named with and without its version
            _, radii = planned.setdefault((one := plan(name, model)).name, (one, []))
            radii += [radius for radius in _radii(mine) if radius not in radii]
        if not planned or not all(radii for _, radii in planned.values()):
            raise ValueError("name at least one attack and one eps")
        for member in (member for one, _ in planned.values() for member in one.members):
            if str(member) in self.taught and isinstance(member.attack, Adaptive):
                member.attack.taught(self.taught[str(member)])
        return list(planned.values())


def _radii(eps: float | Sequence[float]) -> list[float]:
    if getattr(eps, "ndim", 0) == 1:  # an array or a tensor
        eps = eps.tolist()
    several = isinstance(eps, Sequence) and not isinstance(eps, str)
    return [check_eps(each) for each in (eps if several else [eps])]
