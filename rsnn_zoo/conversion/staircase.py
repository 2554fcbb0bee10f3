"""Thresholds from an ANN's activations: the staircase that T steps of a neuron make errs least on them."""

from __future__ import annotations

import torch
from torch import Tensor

from rsnn_zoo.models.layers import Spiking

__all__ = ["Histogram", "best_threshold", "staircase"]

_PER_OCTAVE, _OCTAVES = 48, 24  # bins of 1.5 %, from 2^-24 to 2^24
_CANDIDATES = 96


class Histogram:
    """How often a layer's positive activations fall into bins of equal ratio, in memory of one fixed size.

    Attributes:
        counts: Values in each bin.
        sums: Their sums.
        largest: The largest of all values, below 0 too.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(2 * _OCTAVES * _PER_OCTAVE, dtype=torch.float64)
        self.sums = torch.zeros_like(self.counts)
        self.largest = float("-inf")

    def add(self, values: Tensor) -> None:
        """Counts values of any shape; those that are not positive add to no error, whatever the threshold."""
        self.largest = max(self.largest, values.max().item())
        positive = values[values > 0].float()
        bins = ((positive.log2() + _OCTAVES) * _PER_OCTAVE).long().clamp_(0, len(self.counts) - 1).cpu()
        self.counts += torch.bincount(bins, minlength=len(self.counts))
        self.sums += torch.bincount(bins, positive.cpu().double(), minlength=len(self.counts))

    def filled(self) -> tuple[Tensor, Tensor]:
        """Mean of the values and their number in each bin that is not empty."""
        filled = self.counts > 0
        return self.sums[filled] / self.counts[filled], self.counts[filled]


def staircase(values: Tensor, spiking: Spiking) -> Tensor:
    """What T steps of a neuron of threshold 1 make of a constant current: its mean number of spikes.

    Args:
        values: Currents, of any shape.
        spiking: Steps, reset, leak and initial membrane.

    Example:
        >>> staircase(torch.tensor([0.1, 0.3, 0.6, 2.0]), Spiking(4, reset="soft", initial=0.5))
        tensor([0.0000, 0.2500, 0.5000, 1.0000])
    """
    steps, soft = spiking.timesteps or 1, spiking.reset == "soft"
    v, spikes = torch.full_like(values, spiking.initial), torch.zeros_like(values)
    for _ in range(steps):  # not integrate_and_fire, which would be compiled for each number of values
        u = spiking.leak * v + values
        fired = u >= 1
        v = torch.where(fired, u - 1 if soft else torch.zeros_like(u), u)
        spikes += fired
    return spikes / steps


def best_threshold(histogram: Histogram, spiking: Spiking) -> float | None:
    """The threshold whose staircase has the least squared error on the activations counted; None of a dead layer.

    Args:
        histogram: Activations of the layer.
        spiking: Steps, reset, leak and initial membrane.

    Source:
        The staircase: Bu et al., "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking Neural
        Networks", ICLR 2022.
    """
    values, counts = histogram.filled()
    if not len(values):
        return None
    lowest = max(0.02 * histogram.largest, (values @ counts / counts.sum()).item() * 0.1)
    candidates = torch.logspace(0, 1, _CANDIDATES, base=max(histogram.largest / lowest, 1.0), dtype=torch.float64)
    thresholds = (candidates * lowest)[:, None]
    errors = (values - thresholds * staircase(values / thresholds, spiking)).square() @ counts
    return thresholds[errors.argmin()].item()
