"""Backward modes: how the spike is differentiated, as values.

A mode either goes back through time, with a derivative h'(u) in place of the spike's at u = membrane - threshold
(:class:`Surrogate`, :class:`ASSG`, :class:`PDSG`, :class:`HART`), or through the rate, with one slope a neuron
(:class:`Rate`, :class:`RGA`), or puts a ReLU in place of the neuron (:class:`Relu`). :func:`backward_mode` and
:func:`model_under` set one, ``MODES`` and :func:`parse_mode` know them by name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rsnn_zoo.neurons.attack_state import Memory, current_pass, remembering
from rsnn_zoo.neurons.kernels import run, wide
from rsnn_zoo.spec.names import near_matches

__all__ = [
    "ASSG",
    "DERIVATIVES",
    "HART",
    "MODES",
    "PDSG",
    "RGA",
    "BackwardMode",
    "Firing",
    "ModeView",
    "Rate",
    "Relu",
    "Surrogate",
    "ThroughRate",
    "ThroughTime",
    "backward_mode",
    "current_mode",
    "model_under",
    "parse_mode",
]


# --- derivatives ----------------------------------------------------------------------------------------------------

# 0.3 in float32, in any precision: what the published code multiplies by.
_DAMPING = 0.30000001192092896

_SURROGATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pcw": lambda u, g: (g - u.abs()).clamp(min=0) / (g * g),
    "exp": lambda u, g: torch.exp(-g * u.abs()),
    "exp_d": lambda u, g: _DAMPING * torch.exp(-g * u.abs()),
    "rect": lambda u, g: (u.abs() < g / 2) / g,
    "ste": lambda u, g: torch.ones_like(u),
}

DERIVATIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **_SURROGATES,
    "assg": lambda u, alpha: alpha / (2 + 0.5 * (math.pi * alpha * u) ** 2),
    "pdsg": lambda u, s: torch.exp(-0.5 * (u / s - 0.5) ** 2) / (math.sqrt(2 * math.pi) * s),
}
"""h'(u) by kind, of u = membrane - threshold and a width: a scalar, or one value for each u."""


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
    """

    currents: Tensor
    excess: Tensor
    threshold: Tensor
    leak: float
    shape: tuple[int, ...]
    channels_last: bool


class ThroughTime(ABC):
    """Backward through time with the derivative ``DERIVATIVES[kind]``.

    Attributes:
        averaged: Each step's membrane is taken as given by the step before, and the gradient of the current is
            averaged over the steps.
    """

    kind: str
    averaged: ClassVar[bool] = False

    @abstractmethod
    def width_of(self, firing: Firing) -> Tensor:
        """The derivative's width: a scalar, or (T, N), or (1, N) for all steps."""


class ThroughRate(ABC):
    """Backward through the rate: at every step the output's gradient passes, times one slope for each neuron."""

    @abstractmethod
    def slope_of(self, firing: Firing) -> Tensor:
        """The slope, (N,)."""


def _name(family: str, width: float) -> str:
    return f"{family}-{float(width)!r}".removesuffix(".0")


def _check_width(width: float) -> None:
    if not 0 < width < math.inf:
        raise ValueError(f"surrogate width must be positive, got {width}")


# --- the modes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surrogate(ThroughTime):
    """Backward through time with a surrogate derivative h'(u) in place of the spike's, u = membrane - threshold.

    Args:
        kind: ``"pcw"`` (piecewise linear, max(0, g - |u|) / g^2), ``"exp"`` (exp(-g |u|)), ``"exp_d"``
            (0.3 exp(-g |u|)), ``"rect"`` (1/g where |u| < g/2) or ``"ste"`` (1 everywhere).
        width: g, positive.

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
        if self.kind not in _SURROGATES:
            raise ValueError(f"unknown surrogate {self.kind!r}: choose one of {', '.join(_SURROGATES)}")
        _check_width(self.width)

    def __str__(self) -> str:
        return "ste" if self.kind == "ste" else _name(self.kind, self.width)

    @staticmethod
    def of(name: str) -> Surrogate:
        """The surrogate of a name, such as ``"pcw-0.5"``.

        Raises:
            ValueError: If it names none.
        """
        mode = parse_mode(name)
        if not isinstance(mode, Surrogate):
            raise ValueError(f"{name!r} is no surrogate derivative: choose {', '.join(_SURROGATES)}, as 'pcw-1'")
        return mode

    def derivative(self, u: Tensor) -> Tensor:
        """h'(u) for u = membrane - threshold, any shape."""
        return _SURROGATES[self.kind](u, u.new_tensor(self.width))

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
        return _name("hart", self.width)

    def width_of(self, firing: Firing) -> Tensor:
        """Returns g."""
        return firing.threshold.new_tensor(self.width)


@dataclass(frozen=True)
class ASSG(ThroughTime):
    """Adaptive sharpness: an arctangent's derivative, as sharp as each sample, neuron and step has been found to bear.

    M <- 0.9 M + 0.1 |u| and D <- 0.9 D + 0.1 ||u| - M| at every forward pass that keeps what a backward pass needs;
    alpha = w / (M + 1.5 D + 1e-4) with w = 2 tan(pi a) / pi; h'(u) = alpha / (2 (1 + (pi alpha u / 2)^2)).

    M = 1 and D = 0 at first. They last from one pass to the next within an attack, in the ``memory`` that is handed to
    :class:`rsnn_zoo.attacks.gradients.InputGradient`, or in the view that :func:`model_under` returns; without either,
    each pass is the first. That takes 2 * T * neurons * 4 bytes a sample (they are float32, also where convolutions run
    in 16 bits): 6 MB for a ResNet-20 on 32x32 images at T = 4. Of several draws of a random model, the first updates.

    Args:
        a: How much of the gradient may vanish, between 0 and 0.5; the paper searches 0.35 to 0.49.

    Raises:
        ValueError: For a value of ``a`` that is not between 0 and 0.5.

    Source:
        Wang et al., "Towards Reliable Evaluation of Adversarial Robustness for Spiking Neural Networks", CVPR 2026,
        arXiv 2512.22522.
    """

    a: float = 0.425
    kind: str = field(default="assg", init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.a < 0.5:
            raise ValueError(f"a must lie between 0 and 0.5, got {self.a}")

    def __str__(self) -> str:
        return "assg" if self.a == ASSG.a else _name("assg", self.a)

    def width_of(self, firing: Firing) -> Tensor:
        """Returns alpha, (T, N), after an update of M and D."""
        steps, n = firing.excess.shape
        forward = current_pass()
        if forward.batch not in (1, firing.shape[0]):
            raise ValueError(
                f"ASSG remembers each image, and a layer is shown {firing.shape[0]} for {forward.batch} images: leave "
                "assg out, or let the model keep its batch as it is"
            )
        mean, deviation = forward.recall(firing.excess, mean=1.0, deviation=0.0)
        rows = mean.shape[1]  # what comes after them is padding
        excess = firing.excess.view(steps, forward.batch, -1)[:, :rows]
        top = mean.new_tensor(2 * math.tan(math.pi * self.a) / math.pi)
        alpha = run(_sharpen, (excess, mean, deviation, top), (forward.update,))
        if rows < forward.batch:
            alpha = nn.functional.pad(alpha, (0, 0, 0, forward.batch - rows), value=1.0)
        return alpha.view(steps, n)


def _sharpen(excess: Tensor, mean: Tensor, deviation: Tensor, top: Tensor, update: bool) -> Tensor:
    """Returns ASSG's alpha, contiguous; ``mean`` and ``deviation`` are updated in place. All (T, rows, N / rows)."""
    if update:
        size = excess.to(mean.dtype).abs()
        mean.copy_(0.9 * mean + 0.1 * size)
        deviation.copy_(0.9 * deviation + 0.1 * (size - mean).abs())
    return (top / (mean + 1.5 * deviation + 1e-4)).contiguous()


@dataclass(frozen=True)
class PDSG(ThroughTime):
    """Gaussian derivative as wide as the membranes are spread.

    h'(u) = exp(-((u - s/2) / (sqrt(2) s))^2) / (sqrt(2 pi) s), s the standard deviation of the membrane, 1 where it
    is 0. Here it is taken per sample and channel, over all steps and positions. The published code takes it over the
    batch besides, and up to the step at hand; then a sample's fate would depend on its company.

    Source:
        Lun et al., "Towards Effective and Sparse Adversarial Attack on Spiking Neural Networks via Breaking Invisible
        Surrogate Gradients", CVPR 2025.
    """

    kind: str = field(default="pdsg", init=False, repr=False)

    def __str__(self) -> str:
        return "pdsg"

    def width_of(self, firing: Firing) -> Tensor:
        """Returns s, (1, N)."""
        batch, channels = firing.shape[0], math.prod(firing.shape[1:2])
        order, positions = ((-1, channels), 1) if firing.channels_last else ((channels, -1), 2)
        excess = firing.excess.view(len(firing.excess), batch, *order)
        return run(_spread, (excess,), (positions,)).view(1, -1)


def _spread(excess: Tensor, positions: int) -> Tensor:
    """Standard deviation over the steps, the first dimension of (T, B, ...), and positions, broadcast to (B, ...)."""
    u = excess.to(wide(excess.dtype))
    n = u.shape[0] * u.shape[positions + 1]
    u = u - u.mean(0).mean(positions, keepdim=True)
    deviation = ((u * u).sum(0).sum(positions, keepdim=True) / max(n - 1, 1)).sqrt()
    return torch.where(deviation > 0, deviation, 1.0).expand(u.shape[1:]).contiguous()


@dataclass(frozen=True)
class Rate(ThroughRate):
    """Backward through the rate (BPTR): the output's gradient passes, at every step, where the neuron ever fired."""

    def __str__(self) -> str:
        return "rate"

    def slope_of(self, firing: Firing) -> Tensor:
        """1 where a spike was fired."""
        return (firing.excess >= 0).any(0)


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
    """The network with a ReLU in place of every neuron, forward and backward: one step, no time."""

    def __str__(self) -> str:
        return "relu"


BackwardMode = ThroughTime | ThroughRate | Relu
"""A mode; ``str()`` gives its name in reports, which :func:`parse_mode` reads."""


# --- by name --------------------------------------------------------------------------------------------------------

_WIDTHS = {
    "pcw": (1.0, 2.0, 3.0, 0.5, 0.25),
    "exp_d": (0.5, 1.0, 2.0),
    "exp": (0.5, 1.0, 2.0),
    "rect": (0.25, 0.5, 1.0, 2.0, 4.0),
    "ste": (1.0,),
}
_ALL: tuple[BackwardMode, ...] = (
    *(Surrogate(kind, width) for kind, widths in _WIDTHS.items() for width in widths),
    *(Rate(), Relu(), ASSG(), HART(), RGA(), PDSG()),
)

MODES = {str(mode): mode for mode in _ALL}
"""By name: the 19 of the published ensemble, in its order, then the stronger ones published since."""

_FAMILIES: dict[str, Callable[[float], BackwardMode]] = {
    **{kind: partial(Surrogate, kind) for kind in _SURROGATES if kind != "ste"},
    "assg": ASSG,
    "hart": HART,
}


def parse_mode(name: str) -> BackwardMode:
    """The mode of a name: a key of ``MODES``, or one of these families with another number, such as ``"pcw-0.7"``.

    Raises:
        ValueError: For an unknown name or a number out of range.

    Example:
        >>> parse_mode("hart-2")
        HART(width=2.0)
    """
    if name in MODES:
        return MODES[name]
    family, _, number = name.partition("-")
    try:
        width = float(number)
        make = _FAMILIES[family]
    except (KeyError, ValueError):
        raise ValueError(f"unknown backward mode {name!r}{near_matches(name, MODES)}") from None
    return make(width)


# --- which mode runs ------------------------------------------------------------------------------------------------

_mode: ContextVar[BackwardMode | None] = ContextVar("rsnn_zoo_backward_mode", default=None)


def current_mode() -> BackwardMode | None:
    """The mode that :func:`backward_mode` has set, or None where each neuron uses its own surrogate."""
    return _mode.get()


def _check_mode(mode: Any) -> None:
    if not isinstance(mode, BackwardMode):
        known = ", ".join(sorted({type(known).__name__ for known in _ALL}))
        raise TypeError(
            f"mode must be one of {known}, got {mode!r}: rsnn_zoo.neurons.modes.parse_mode makes one of a name"
        )


@contextmanager
def backward_mode(mode: BackwardMode | None) -> Iterator[None]:
    """Sets how spikes are differentiated for the forward passes inside; the model itself is not touched.

    It is not seen in other threads, such as those of ``nn.DataParallel``: put that around :func:`model_under`. Where a
    backward pass computes activations anew (``torch.utils.checkpoint``), it has to be inside too.

    Example:
        >>> with backward_mode(Surrogate("rect", 0.5)):  # doctest: +SKIP
        ...     loss = model(images).sum()
        >>> loss.backward()  # doctest: +SKIP
    """
    if mode is not None:
        _check_mode(mode)
    token = _mode.set(mode)
    try:
        yield
    finally:
        _mode.reset(token)


class ModeView(nn.Module):
    """A view of a model that always runs under one backward mode and shares the weights: see :func:`model_under`."""

    def __init__(self, model: nn.Module, mode: BackwardMode):
        super().__init__()
        self.model = model
        self.mode = mode
        self.training = model.training  # attack libraries read and restore it
        self.reset()

    def reset(self) -> None:
        """Forgets what the mode remembers of the samples: call it before another batch is attacked."""
        self._memory: Memory = {}
        self._remembered: torch.Size | None = None

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The model's own forward pass under the mode."""
        if torch.is_grad_enabled() and x.shape != self._remembered:
            self.reset()
            self._remembered = x.shape
        with backward_mode(self.mode), remembering(self._memory, len(x), len(x)):
            return self.model(x, *args, **kwargs)


def model_under(model: nn.Module, mode: BackwardMode) -> ModeView:
    """A module that shares the model's weights and always runs under ``mode``: what an attack library is handed.

    Where the mode remembers samples (:class:`ASSG`), the view keeps its memory from call to call, as long as batches
    have the same shape: a library shows it one batch again and again. Call ``view.reset()`` before each new batch.

    Args:
        model: Any network that holds :class:`rsnn_zoo.neurons.integrate_fire.SpikingNeuron` layers.
        mode: How to differentiate the spike.

    Example:
        >>> attack = torchattacks.PGD(model_under(model, Rate()), eps=8 / 255)  # doctest: +SKIP
    """
    _check_mode(mode)
    return ModeView(model, mode)
