"""Backward modes by name, and which one runs.

What they are stands in :mod:`rsnn_zoo.neurons.surrogates` and :mod:`rsnn_zoo.neurons.measured_widths`. ``MODES`` and
:func:`parse_mode` know them by name, :func:`backward_mode` and :func:`model_under` set one, :func:`surrogate_units`
says what their widths are in units of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rsnn_zoo.neurons.attack_state import Memory, remembering
from rsnn_zoo.neurons.measured_widths import ASSG, PDSG
from rsnn_zoo.neurons.surrogates import (
    DERIVATIVES,
    HART,
    RGA,
    SURROGATES,
    BackwardMode,
    Firing,
    Rate,
    Relu,
    Surrogate,
    ThroughRate,
    ThroughTime,
)
from rsnn_zoo.spec.names import near_matches
from rsnn_zoo.spec.units import RELATIVE, check_units

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
    "current_units",
    "model_under",
    "parse_mode",
    "surrogate_units",
]


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
    **{kind: partial(Surrogate, kind) for kind in SURROGATES if kind != "ste"},
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
_units: ContextVar[str] = ContextVar("rsnn_zoo_surrogate_units", default=RELATIVE)


def current_mode() -> BackwardMode | None:
    """The mode that :func:`backward_mode` has set, or None where each neuron uses its own surrogate."""
    return _mode.get()


def current_units() -> str:
    """What widths are in units of: what :func:`surrogate_units` has set, else the threshold."""
    return _units.get()


@contextmanager
def surrogate_units(units: str) -> Iterator[None]:
    """Sets what the widths of surrogates are in units of, for the forward passes inside.

    Args:
        units: ``"threshold"``, which nothing else need set, or ``"absolute"``: the membrane's own unit, as in the
            published research code. Under the latter, gradients depend on the scale of thresholds and currents.

    Raises:
        ValueError: For other units.

    Example:
        >>> with surrogate_units("absolute"):
        ...     current_units()
        'absolute'
    """
    token = _units.set(check_units(units))
    try:
        yield
    finally:
        _units.reset(token)


def _check_mode(mode: Any) -> None:
    if not isinstance(mode, BackwardMode):
        known = ", ".join(sorted({type(known).__name__ for known in _ALL}))
        raise TypeError(
            f"mode must be one of {known}, got {mode!r}: rsnn_zoo.neurons.modes.parse_mode makes one of a name"
        )


@contextmanager
def backward_mode(mode: BackwardMode | None, units: str | None = None) -> Iterator[None]:
    """Sets how spikes are differentiated for the forward passes inside; the model itself is not touched.

    It is not seen in other threads, such as those of ``nn.DataParallel``: put that around :func:`model_under`. Where a
    backward pass computes activations anew (``torch.utils.checkpoint``), it has to be inside too.

    Args:
        mode: None for each neuron's own surrogate.
        units: As of :func:`surrogate_units`; None to leave them.

    Example:
        >>> with backward_mode(Surrogate("rect", 0.5)):  # doctest: +SKIP
        ...     loss = model(images).sum()
        >>> loss.backward()  # doctest: +SKIP
    """
    if mode is not None:
        _check_mode(mode)
    with surrogate_units(_units.get() if units is None else units):
        token = _mode.set(mode)
        try:
            yield
        finally:
            _mode.reset(token)


class ModeView(nn.Module):
    """A view of a model that always runs under one backward mode and shares the weights: see :func:`model_under`."""

    def __init__(self, model: nn.Module, mode: BackwardMode, units: str | None = None):
        super().__init__()
        self.model = model
        self.mode = mode
        self.units = units
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
        with backward_mode(self.mode, self.units), remembering(self._memory, len(x), len(x)):
            return self.model(x, *args, **kwargs)


def model_under(model: nn.Module, mode: BackwardMode, units: str | None = None) -> ModeView:
    """A module that shares the model's weights and always runs under ``mode``: what an attack library is handed.

    Where the mode remembers samples (:class:`ASSG`), the view keeps its memory from call to call, as long as batches
    have the same shape: a library shows it one batch again and again. Call ``view.reset()`` before each new batch.

    Args:
        model: Any network that holds :class:`rsnn_zoo.neurons.integrate_fire.SpikingNeuron` layers.
        mode: How to differentiate the spike.
        units: As of :func:`surrogate_units`; None for those in force when it runs.

    Example:
        >>> attack = torchattacks.PGD(model_under(model, Rate()), eps=8 / 255)  # doctest: +SKIP
    """
    _check_mode(mode)
    return ModeView(model, mode, units)
