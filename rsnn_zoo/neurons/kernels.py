"""Loops over tensors in storage order, compiled where that pays and a compiler is found: see :func:`run`.

An error of the compiler marks its kernel: that one runs eager, with the same numbers, and is tried again after a pause.
Where nothing compiles (no compiler, a full disk) the others are not tried meanwhile either.
"""

from __future__ import annotations

import logging
import os
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["compiles", "is_plain", "run", "transforming", "wide"]

_log = logging.getLogger(__name__)

# Below this size a compiled kernel saves less than its dispatch costs.
_COMPILE_FROM = 1 << 13
# Loops are unrolled: minutes of compilation for the hundred steps of a calibration, which run once.
_UNROLL_AT_MOST = 32
# Where all steps see one current, each step is computed from it anew, and what the compiler goes through doubles with
# every step: seconds for 4 and 6, minutes for 16. From then on each step gets a copy of the current.
_REPEAT_AT_MOST = 6
_FIRST_PAUSE = 60.0  # seconds, doubled by each failure that follows
_LONGEST_PAUSE = 3600.0


def wide(dtype: torch.dtype) -> torch.dtype:
    """What membranes and losses are computed in: float32 where values come in 16 bits."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def transforming() -> bool:
    """Whether ``torch.func`` transforms what runs now (grad, vmap, jvp, ...), or forward-mode differentiation is on."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


@dataclass
class _Patience:
    """Whether something may be tried: after ``bears`` failures in a row not before a pause is over."""

    bears: int = 1
    failures: int = 0
    until: float = 0.0

    def allows(self) -> bool:
        return self.failures < self.bears or time.monotonic() >= self.until

    def failed(self) -> None:
        self.failures += 1
        pause = min(_FIRST_PAUSE * 2.0 ** (self.failures - self.bears), _LONGEST_PAUSE)
        self.until = time.monotonic() + pause


@dataclass
class _Kernel:
    """A loop for one combination of what is compiled in."""

    compiled: Callable[..., Any] | None = None
    patience: _Patience = field(default_factory=_Patience)


_kernels: dict[tuple[Any, ...], _Kernel] = {}
_compiler = _Patience(bears=3)  # one that fails this often in a row is not there


@cache
def _hush() -> None:
    """Keep from the log that there is no CUDA, which the compiler says wherever a toolkit lies on the disk."""
    about = logging.getLogger("torch.utils.cpp_extension")
    about.addFilter(lambda record: not str(record.msg).startswith("No CUDA runtime is found"))


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled, with a code object of its own: dynamo gives one up that it has recompiled eight times."""
    _hush()
    fresh = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__
    )
    return torch.compile(fresh, dynamic=True, fullgraph=True)


def _pattern(tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Which sizes are 1, which are equal, and what is contiguous: where that changes, dynamo compiles once more."""
    sizes = [size for tensor in tensors for size in tensor.shape]
    equal = tuple(-1 if size == 1 else sizes.index(size) for size in sizes)
    return equal, tuple(tensor.is_contiguous() for tensor in tensors)


def compiles() -> bool:
    """Whether to compile anything: ``RSNN_ZOO_COMPILE=0`` says no."""
    return os.environ.get("RSNN_ZOO_COMPILE", "1") != "0"


def is_plain(x: Tensor) -> bool:
    """Whether x has a memory of its own, and nothing records or transforms the operations on it."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or transforming():
        return False
    return type(x) in (Tensor, torch.nn.Parameter)  # and no fake tensor of an exporter


def _pays(x: Tensor, steps: int) -> bool:
    """Whether to run the loop compiled."""
    return is_plain(x) and x.numel() >= _COMPILE_FROM and steps <= _UNROLL_AT_MOST and compiles()


def _failed(kernel: _Kernel, error: Exception) -> None:
    first = not any(other.patience.failures for other in _kernels.values())
    kernel.compiled = None  # dynamo would remember the failure
    kernel.patience.failed()
    _compiler.failed()
    cause = str(error).split("\n")[0]
    level = logging.WARNING if first else logging.INFO
    text = "a neuron kernel was not compiled, running eager (slower, same numbers) and trying again later: %s"
    _log.log(level, text, cause)


def run(function: Callable[..., Any], tensors: tuple[Tensor, ...], static: tuple[Any, ...], *, steps: int = 1) -> Any:
    """Calls a loop: compiled where that pays and a compiler is found, else eager with the same numbers.

    Args:
        function: Of the tensors, then the static arguments.
        tensors: The first says how large the work is, and its first dimension (the steps) is compiled in.
        static: Hashable; each combination is compiled once.
        steps: That the loop goes through.

    Raises:
        torch.OutOfMemoryError: If the memory of a device does not suffice; eager, it would need more.
    """
    x = tensors[0]
    if not _pays(x, steps):
        return function(*tensors, *static)
    if len(x) == 1 and steps > _REPEAT_AT_MOST:
        x = x.repeat(steps, 1)
        tensors = (x, *tensors[1:])
    key = (function, x.dtype, x.device.type, x.shape[0], _pattern(tensors), *static)
    kernel = _kernels.setdefault(key, _Kernel())
    fresh = kernel.compiled is None
    if fresh and not (kernel.patience.allows() and _compiler.allows()):
        return function(*tensors, *static)
    try:
        kernel.compiled = kernel.compiled or _compile(function)
        plain = (tensor.data for tensor in tensors)  # views no more: dynamo would look at what they are views of
        result = kernel.compiled(*plain, *static)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        _failed(kernel, error)
        return function(*tensors, *static)
    if fresh:
        kernel.patience.failures = _compiler.failures = 0
    return result
