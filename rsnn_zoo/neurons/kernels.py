"""Loops over tensors in storage order, compiled where that pays and a compiler is found: see :func:`run`."""

from __future__ import annotations

import logging
import os
import types
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["run", "wide"]

_log = logging.getLogger(__name__)

# Below this size a compiled kernel saves less than its dispatch costs.
_COMPILE_FROM = 1 << 13
# Loops are unrolled: minutes of compilation for the hundred steps of a calibration, which run once.
_UNROLL_AT_MOST = 32
_compiler_broken = False


def wide(dtype: torch.dtype) -> torch.dtype:
    """What membranes and losses are computed in: float32 where values come in 16 bits."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def _compile_wanted() -> bool:
    return not _compiler_broken and os.environ.get("RSNN_ZOO_COMPILE", "1") != "0"


@cache
def _compiled(function: Callable[..., Any], *key: Any) -> Callable[..., Any]:
    """``function`` compiled for one key, which holds all that makes dynamo compile once more.

    Each gets a code object of its own, since dynamo counts recompilations per code object and would give up after
    eight.
    """
    fresh = types.FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__
    )
    return torch.compile(fresh, dynamic=True, fullgraph=True)


def _pattern(tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """Which sizes are 1, which are equal, and what is contiguous: where that changes, dynamo compiles once more."""
    sizes = [size for tensor in tensors for size in tensor.shape]
    equal = tuple(-1 if size == 1 else sizes.index(size) for size in sizes)
    return equal, tuple(tensor.is_contiguous() for tensor in tensors)


def run(function: Callable[..., Any], tensors: tuple[Tensor, ...], static: tuple[Any, ...], *, steps: int = 1) -> Any:
    """Calls a loop: compiled where that pays and a compiler is found, else eager with the same numbers.

    Args:
        function: Of the tensors, then the static arguments.
        tensors: The first says how large the work is, and its first dimension (the steps) is compiled in.
        static: Hashable; each combination is compiled once.
        steps: That the loop goes through.
    """
    global _compiler_broken
    x = tensors[0]
    pays = x.numel() >= _COMPILE_FROM and steps <= _UNROLL_AT_MOST
    if pays and not torch.compiler.is_compiling() and _compile_wanted():
        try:
            key = (x.dtype, x.device.type, x.shape[0], _pattern(tensors), *static)
            plain = (tensor.data for tensor in tensors)  # views no more: dynamo would look at what they are views of
            return _compiled(function, *key)(*plain, *static)
        except Exception as error:
            _compiler_broken = True
            cause = str(error).split("\n")[0]
            _log.warning("no compiled neuron kernels, running eager (slower, same numbers): %s", cause)
    return function(*tensors, *static)
