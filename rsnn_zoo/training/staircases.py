"""Activations of few levels with a learned clip, for an ANN's last epochs: what T steps of a spiking layer can say.

Bu et al., "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking Neural Networks", ICLR 2022.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rsnn_zoo.conversion.staircase import Histogram, best_threshold
from rsnn_zoo.models.layers import Spiking

__all__ = ["Staircases", "staircase_of"]

_LEAST = 1e-3  # a clip of 0 would be the end of its layer


def staircase_of(x: Tensor, clip: Tensor, levels: int) -> Tensor:
    """Cuts activations to ``levels`` steps up to the clip, rounded to the nearest.

    Its derivative in x is that of the clipped ReLU; that in the clip takes the rounding as it is.

    Args:
        x: Activations, of any shape.
        clip: Their largest value, a positive scalar.
        levels: Steps between 0 and the clip.

    Example:
        >>> staircase_of(torch.tensor([-1.0, 0.3, 0.6, 5.0]), torch.tensor(2.0), 4)
        tensor([0.0000, 0.5000, 0.5000, 2.0000])
    """
    y = (x / clip).clamp(0.0, 1.0)
    return (y + ((y * levels + 0.5).floor() / levels - y).detach()) * clip


class Staircases(nn.Module):
    """Staircases behind the ReLUs of a network, which stays as it is: its clips are kept here.

    Each clip starts where the staircase errs least on the first activations that it is shown.

    Args:
        network: An ANN whose activations are ReLU modules.
        levels: As of :func:`staircase_of`: the T of the SNN that it is to be.

    Attributes:
        clips: A scalar parameter for each ReLU; 0 before it has seen anything.

    Raises:
        ValueError: If the network has no ReLU module.
    """

    def __init__(self, network: nn.Module, levels: int):
        super().__init__()
        self._relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
        if not self._relus:
            raise ValueError("staircase is for ANNs of ReLU modules, and this network has none: set it under [ann]")
        self.levels = levels
        places = [next(network.parameters())] * len(self._relus)
        self.clips = nn.ParameterList(torch.zeros((), device=at.device, dtype=at.dtype) for at in places)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """The network's ReLUs are staircases, while it lasts; those of copies made meanwhile too."""
        cuts = {relu: self._cut(clip) for relu, clip in zip(self._relus, self.clips, strict=True)}
        handles = [relu.register_forward_hook(cut) for relu, cut in cuts.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _cut(self, clip: nn.Parameter) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        """A function, not a method, which a copy of the network would make a copy of."""

        def cut(module: nn.Module, inputs: Any, x: Tensor) -> Tensor:
            if not clip.item():
                histogram = Histogram()
                histogram.add(x.detach())
                found = best_threshold(histogram, Spiking(self.levels, reset="soft", initial=0.5))
                clip.data.fill_(found or 1.0)
            return staircase_of(x, clip.clamp(min=_LEAST).to(x.dtype), self.levels)

        return cut
