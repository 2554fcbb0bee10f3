"""What a backward mode remembers of the samples under attack, from one forward pass to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from rsnn_zoo.neurons.kernels import wide

__all__ = ["ForwardPass", "Memory", "current_pass", "remembering"]

Memory = dict[str, Tensor]
"""Tensors with one row a sample, by layer and quantity; empty at first. Rows may be dropped, all keys alike."""


@dataclass
class ForwardPass:
    """One forward pass of remembered samples; a layer is known by its place in the pass.

    Attributes:
        memory: Updated in place.
        samples: Its rows.
        batch: Samples in the pass; those beyond the last row of the memory are padding.
        first: Row of the first of them.
        update: Change what is there; else it is only used.
        layer: Layers that have asked so far.
    """

    memory: Memory
    samples: int
    batch: int
    first: int = 0
    update: bool = True
    layer: int = 0

    def recall(self, values: Tensor, **starts: float) -> list[Tensor]:
        """What the memory has for the next layer, by name with the value that it starts from.

        Args:
            values: The layer's, (T, N) with N = batch * neurons.
            **starts: Name to start.

        Returns:
            Views of the memory, (T, rows, neurons), in float32 or wider.
        """
        steps, n = values.shape
        views = []
        for name, start in starts.items():
            key = f"{self.layer}.{name}"
            if key not in self.memory:
                shape = (self.samples, steps, n // self.batch)
                self.memory[key] = torch.full(shape, start, dtype=wide(values.dtype), device=values.device)
            views.append(self.memory[key][self.first : self.first + self.batch].transpose(0, 1))
        self.layer += 1
        return views


_pass: ContextVar[ForwardPass | None] = ContextVar("rsnn_zoo_forward_pass", default=None)


def current_pass() -> ForwardPass:
    """The pass that :func:`remembering` has begun, or one that starts from nothing and is forgotten."""
    return _pass.get() or ForwardPass({}, samples=1, batch=1)


@contextmanager
def remembering(memory: Memory, samples: int, batch: int, first: int = 0, update: bool = True) -> Iterator[None]:
    """Lends a memory to the one forward pass inside; the arguments are the attributes of :class:`ForwardPass`."""
    token = _pass.set(ForwardPass(memory, samples, batch, first, update))
    try:
        yield
    finally:
        _pass.reset(token)
