"""The ways to differentiate a spike, as values.

A mode either goes back through time, with a derivative h'(u) in place of the spike's at u = (membrane - threshold) /
threshold (:class:`Surrogate`, :class:`HART`, and those of :mod:`rsnn_zoo.neurons.measured_widths`), or through the
rate, with one slope a neuron (:class:`Rate`, :class:`RGA`), or puts a ReLU in place of the neuron (:class:`Relu`).

Spikes do not tell the unit of the membrane: thresholds and the currents before them times c leave every one as it is.
So all widths are in units of the threshold, and the derivative in the current is h'(u) / threshold. The published
research code has them in the membrane's own unit, whatever the threshold: ``units="absolute"``, see
:func:`rsnn_zoo.neurons.modes.surrogate_units`. At thresholds of 1, to which conversion brings them, both are the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rsnn_zoo.neurons.kernels import run
from rsnn_zoo.spec.units import RELATIVE

__all__ = [
    "DERIVATIVES",
    "HART",
    "RGA",
    "SURROGATES",
    "BackwardMode",
    "Firing",
    "Rate",
    "Relu",
    "SpikeDerivative",
    "Surrogate",
    "ThroughRate",
    "ThroughTime",
    "mode_name",
]


# --- derivatives ----------------------------------------------------------------------------------------------------

# 0.3 in float32, in any precision: what the published code multiplies by.
_DAMPING = 0.30000001192092896

SURROGATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pcw": lambda u, g: (g - u.abs()).clamp(min=0) / (g * g),
    "exp": lambda u, g: torch.exp(-g * u.abs()),
    "exp_d": lambda u, g: _DAMPING * torch.exp(-g * u.abs()),
    "rect": lambda u, g: (u.abs() < g / 2) / g,
    "ste": lambda u, g: torch.ones_like(u),
}

DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **SURROGATES,
    "assg": lambda u, alpha: alpha / (2 + 0.5 * (math.pi * alpha * u) ** 2),
    "pdsg": lambda u, s: torch.exp(-0.5 * (u / s - 0.5) ** 2) / (math.sqrt(2 * math.pi) * s),
}
"""h'(u) by kind, of u and a width in the same unit: a scalar, or one value for each u."""


@dataclass(frozen=True)
class SpikeDerivative:
    """What a backward pass through time puts in place of the spike's derivative; its width alone is a tensor.

    Attributes:
        kind: A key of ``DERIVATIVES``.
        units: Of the width, one of ``rsnn_zoo.spec.units.UNITS``.
        averaged: From step to step nothing is carried back, and each step's current gets the mean over the steps.
    """

    kind: str
    units: str = RELATIVE
    averaged: bool = False

    def slope(self, excess: Tensor, width: Tensor, threshold: Tensor) -> Tensor:
        """The derivative in the current, shaped as ``excess``.

        Args:
            excess: Membrane - threshold, any shape.
            width: In ``units``: a scalar, or one value for each of ``excess``.
            threshold: Positive, a scalar.
        """
        if self.units == RELATIVE:
            inverse = threshold.reciprocal()  # one division for all
            return DERIVATIVES[self.kind](excess * inverse, width) * inverse
        return DERIVATIVES[self.kind](excess, width)


# --- what a mode is -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Firing:
    """What a layer of neurons did in a forward pass, for a mode to look at.

    Attributes:
        currents: In storage order, (T, N), or (1, N) where they were shown at every step.
        excess: u = membrane - threshold before the reset, (T, N).
        threshold: A scalar.
        leak: What remains of the membrane from step to step.
        shape: Of one step, (B, C, ...); its product is N.
        channels_last: The N are in the order (B, ..., C).
        units: In which widths are to be given, one of ``rsnn_zoo.spec.units.UNITS``.
    """

    currents: Tensor
    excess: Tensor
    threshold: Tensor
    leak: float
    shape: tuple[int, ...]
    channels_last: bool
    units: str = RELATIVE

    @property
    def unit(self) -> Tensor:
        """What counts as 1 of the membrane, a scalar."""
        return self.threshold if self.units == RELATIVE else torch.ones_like(self.threshold)


class ThroughTime(ABC):
    """Backward through time with the derivative ``DERIVATIVES[kind]``.

    Attributes:
        averaged: Each step's membrane is taken as given by the step before, and the gradient of the current is
            averaged over the steps.
    """

    kind: str
    averaged: ClassVar[bool] = False

    def spike_derivative(self, units: str) -> SpikeDerivative:
        """The derivative, its widths in these units."""
        return SpikeDerivative(self.kind, units, self.averaged)

    @abstractmethod
    def width_of(self, firing: Firing) -> Tensor:
        """The derivative's width: a scalar, or (T, N), or (1, N) for all steps."""


class ThroughRate(ABC):
    """Backward through the rate: at every step the output's gradient passes, times one slope for each neuron."""

    @abstractmethod
    def slope_of(self, firing: Firing) -> Tensor:
        """The slope, (N,)."""


def mode_name(family: str, width: float) -> str:
    """Returns the name that reports use, as ``"pcw-0.5"``."""
    return f"{family}-{float(width)!r}".removesuffix(".0")


def _check_width(width: float) -> None:
    if not 0 < width < math.inf:
        raise ValueError(f"surrogate width must be positive, got {width}")


# --- the modes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surrogate(ThroughTime):
    """Backward through time with a surrogate derivative h'(u) in place of the spike's.

    Args:
        kind: ``"pcw"`` (piecewise linear, max(0, g - |u|) / g^2), ``"exp"`` (exp(-g |u|)), ``"exp_d"``
            (0.3 exp(-g |u|)), ``"rect"`` (1/g where |u| < g/2) or ``"ste"`` (1 everywhere).
        width: g, positive, as u in units of the threshold.

    Raises:
        ValueError: For an unknown kind or a width that is not positive.

    Example:
        >>> str(Surrogate("pcw", 0.5))
        'pcw-0.5'

    Source:
        Özdenizci & Legenstein, "Adversarially Robust Spiking Neural Networks Through Conversion", TMLR 2024.
    """

    kind: str = "pcw"
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in SURROGATES:
            raise ValueError(f"unknown surrogate {self.kind!r}: choose one of {', '.join(SURROGATES)}")
        _check_width(self.width)

    def __str__(self) -> str:
        return "ste" if self.kind == "ste" else mode_name(self.kind, self.width)

    @staticmethod
    def of(name: str) -> Surrogate:
        """The surrogate of a name, such as ``"pcw-0.5"``.

        Raises:
            ValueError: If it names none.
        """
        kind, _, width = name.partition("-")
        if kind in SURROGATES and (kind == "ste") != bool(width):
            with suppress(ValueError):
                return Surrogate(kind, float(width or 1.0))
        raise ValueError(f"{name!r} is no surrogate derivative: choose {', '.join(SURROGATES)}, as 'pcw-1'")

    def derivative(self, u: Tensor) -> Tensor:
        """h'(u) for u, any shape, in the unit of the width."""
        return SURROGATES[self.kind](u, u.new_tensor(self.width))

    def width_of(self, firing: Firing) -> Tensor:
        """Returns g."""
        return firing.threshold.new_tensor(self.width)


@dataclass(frozen=True)
class HART(ThroughTime):
    """Between rate and time: the gradient of each neuron's current is averaged over the steps.

    The membrane of the step before is detached; the derivative is triangular, max(0, g - |u|) / g^2.

    Args:
        width: g, positive; to be tuned for success.

    Raises:
        ValueError: For a width that is not positive.

    Source:
        Hao et al., "Threaten Spiking Neural Networks through Combining Rate and Temporal Information", ICLR 2024.
    """

    width: float = 1.0
    kind: str = field(default="pcw", init=False, repr=False)
    averaged: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_width(self.width)

    def __str__(self) -> str:
        return mode_name("hart", self.width)

    def width_of(self, firing: Firing) -> Tensor:
        """Returns g."""
        return firing.threshold.new_tensor(self.width)


def _fired(excess: Tensor, unit: Tensor) -> Tensor:
    """1 / unit where any of the steps has fired, (N,), else 0."""
    return torch.where(excess.amax(0) >= 0, unit.reciprocal(), 0.0).to(excess.dtype)


@dataclass(frozen=True)
class Rate(ThroughRate):
    """Backward through the rate (BPTR): the output's gradient passes, at every step, where the neuron ever fired.

    In units of the threshold, it is that of the current / threshold.
    """

    def __str__(self) -> str:
        return "rate"

    def slope_of(self, firing: Firing) -> Tensor:
        """1 / unit where a spike was fired."""
        return run(_fired, (firing.excess, firing.unit), (), steps=len(firing.excess))


@dataclass(frozen=True)
class RGA(ThroughRate):
    """Backward through a model of the rate as a function of the mean current.

    With y the mean over the steps of current / threshold, the slope of the rate in y is (0.8 + 0.2 leak) / (1 + leak)
    where 1 - leak <= y <= 2, 0.2 where 0 <= y < 1 - leak, and else 0; that in the current is 1 / threshold of it.

    Source:
        Bu et al., "Rate Gradient Approximation Attack Threats Deep Spiking Neural Networks", CVPR 2023.
    """

    def __str__(self) -> str:
        return "rga"

    def slope_of(self, firing: Firing) -> Tensor:
        """The slope at the mean current, 0 to 1 / threshold."""
        y = firing.currents.to(firing.threshold.dtype).mean(0) / firing.threshold
        steep = (0.8 + 0.2 * firing.leak) / (1 + firing.leak)
        slope = torch.where(y < 1 - firing.leak, 0.2 / firing.threshold, steep / firing.threshold)
        return torch.where((y >= 0) & (y <= 2), slope, 0.0).to(firing.currents.dtype)


@dataclass(frozen=True)
class Relu:
    """The network with a ReLU in place of every neuron, forward and backward: one step, no time.

    In units of the threshold, it is the ReLU of current / threshold, about the neuron's rate.
    """

    def __str__(self) -> str:
        return "relu"


BackwardMode = ThroughTime | ThroughRate | Relu
"""A mode; ``str()`` gives its name in reports, which :func:`parse_mode` reads."""
