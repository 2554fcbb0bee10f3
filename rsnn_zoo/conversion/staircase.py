"""Thresholds from an ANN's activations: the staircase that T steps of a neuron make errs least on them."""

from __future__ import annotations

import torch
from torch import Tensor

from rsnn_zoo.models.layers import Spiking

__all__ = ["Histogram", "best_threshold", "best_thresholds", "staircase"]

_PER_OCTAVE, _OCTAVES = 48, 24  # bins of 1.5 %, from 2^-24 to 2^24
_CANDIDATES = 96


class Histogram:
    """How often positive activations fall into bins of equal ratio, in memory of one fixed size.

    Args:
        rows: Kinds of values that are counted apart, such as channels.

    Attributes:
        counts: Values in each bin, (rows, bins).
        sums: Their sums, (rows, bins).
        largest: The largest of all values, below 0 too.
    """

    def __init__(self, rows: int = 1) -> None:
        self.counts = torch.zeros(rows, 2 * _OCTAVES * _PER_OCTAVE, dtype=torch.float64)
        self.sums = torch.zeros_like(self.counts)
        self.largest = float("-inf")

    def add(self, values: Tensor) -> None:
        """Counts values, (rows, ...), or of any shape in one row; those that are not positive err by nothing."""
        self.largest = max(self.largest, values.max().item())
        rows, bins = self.counts.shape
        values = values.reshape(rows, -1)
        row, column = (values > 0).nonzero(as_tuple=True)
        positive = values[row, column].float()
        of = row * bins + ((positive.log2() + _OCTAVES) * _PER_OCTAVE).long().clamp_(0, bins - 1)
        self.counts += torch.bincount(of.cpu(), minlength=rows * bins).view(rows, bins)
        self.sums += torch.bincount(of.cpu(), positive.cpu().double(), minlength=rows * bins).view(rows, bins)


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


def best_thresholds(histogram: Histogram, spiking: Spiking, least: float) -> Tensor:
    """Find for each row the threshold whose staircase errs least, squared; NaN of a row without positive values.

    Args:
        histogram: Activations, by row.
        spiking: Steps, reset, leak and initial membrane.
        least: Threshold to begin with, at most the largest value.

    Returns:
        Thresholds, (rows,), double.

    Source:
        The staircase: Bu et al., "Optimal ANN-SNN Conversion for High-accuracy and Ultra-low-latency Spiking Neural
        Networks", ICLR 2022.
    """
    filled = histogram.counts.sum(0) > 0
    counts = histogram.counts[:, filled]
    values = histogram.sums[:, filled].sum(0) / counts.sum(0)
    candidates = torch.logspace(0, 1, _CANDIDATES, base=max(histogram.largest / least, 1.0), dtype=torch.float64)
    thresholds = (candidates * least)[:, None]
    errors = (values - thresholds * staircase(values / thresholds, spiking)).square() @ counts.T
    return torch.where(counts.sum(1) > 0, thresholds[errors.argmin(0), 0], torch.nan)


def best_threshold(histogram: Histogram, spiking: Spiking) -> float | None:
    """The threshold of a layer, from a histogram of one row; None of a dead layer. See :func:`best_thresholds`."""
    if not histogram.counts.any():
        return None
    mean = (histogram.sums.sum() / histogram.counts.sum()).item()
    return best_thresholds(histogram, spiking, max(0.02 * histogram.largest, 0.1 * mean)).item()
