"""The layers that the network families share: one definition of each serves the ANN and the SNN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsnn_zoo.neurons.integrate_fire import Relu, SpikingNeuron, Surrogate, check_timesteps, current_mode

__all__ = [
    "BATCH_NORMS",
    "Normalize",
    "PooledCounts",
    "Scaled",
    "Spiking",
    "StaticBatchNorm2d",
    "WeightedSum",
    "batch_statistics",
    "is_plain_norm",
]

BATCH_NORMS = nn.modules.batchnorm._BatchNorm
"""What every batch norm of torch is an instance of."""


@dataclass(frozen=True)
class Spiking:
    """What the activations of a network are: ReLU, or integrate-and-fire neurons.

    Args:
        timesteps: T of the SNN, or None for the ANN.
        threshold: Initial firing threshold of every layer.
        leak: Membrane leak, in [0, 1].
        reset: ``"hard"`` or ``"soft"``.
        surrogate: How training differentiates the spike, or its name, as ``"pcw-1"``; None for the default of
            :class:`SpikingNeuron`.
        initial: Membrane before the first step, as a part of the threshold, in [0, 1).
        scaled: Whether each layer has a gain beside it that its spikes stand for: see :class:`Scaled`.
    """

    timesteps: int | None = None
    threshold: float = 1.0
    leak: float = 1.0
    reset: str = "hard"
    surrogate: Surrogate | str | None = None
    initial: float = 0.0
    scaled: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.surrogate, str):
            object.__setattr__(self, "surrogate", Surrogate.of(self.surrogate))
        if self.timesteps is not None:
            object.__setattr__(self, "timesteps", check_timesteps(self.timesteps))
        self._neuron(self.timesteps or 1)  # refuses, of an ANN too, what none can be

    def activation(self, repeated: bool = False) -> nn.Module:
        """A new activation layer; ``repeated`` marks the first, which shows its one input at every step."""
        if self.timesteps is None:
            return nn.ReLU()
        neuron = self._neuron(self.timesteps, repeated)
        return Scaled(neuron) if self.scaled else neuron

    def _neuron(self, timesteps: int, repeated: bool = False) -> SpikingNeuron:
        how = self.threshold, self.leak, self.reset, self.surrogate
        return SpikingNeuron(timesteps, *how, repeated=repeated, initial=self.initial)

    def static_norm(self, num_features: int) -> StaticBatchNorm2d:
        """A batch norm before the first neuron, where the T steps are equal and are computed once."""
        return StaticBatchNorm2d(num_features, copies=self.timesteps or 1)


class Scaled(nn.Module):
    """A layer of neurons whose spikes stand for a number: gain * spikes(x / gain).

    So the neuron is in units of its own threshold, its spikes are zeros and ones, and whatever follows sees the unit of
    the currents. Under :class:`rsnn_zoo.neurons.integrate_fire.Relu` it is a plain ReLU, whatever the gain.

    Args:
        neuron: The layer.

    Attributes:
        gain: Positive scalar, not trained; 1 at first.
    """

    def __init__(self, neuron: SpikingNeuron):
        super().__init__()
        self.neuron = neuron
        self.register_buffer("gain", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """Currents to spikes times the gain; shapes as the neuron's."""
        return self.neuron(x / self.gain) * self.gain


class PooledCounts(nn.Module):
    """Max pooling of spikes over time: up to each step, it has given as many as the neuron of the window with the most.

    So its rate is the largest rate, where pooling each step's spikes gives one whenever any neuron fires, and its
    outputs are zeros and ones (or gains) all the same, since no count grows by more than one a step.

    Args:
        pool: The max pooling.
        timesteps: T.

    Source:
        The idea of a pooling that follows the largest rate: Rueckauer et al., "Conversion of Continuous-Valued Deep
        Networks to Efficient Event-Driven Networks", Frontiers in Neuroscience 2017.
    """

    def __init__(self, pool: nn.Module, timesteps: int):
        super().__init__()
        self.pool = pool
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        """(T * B, C, H, W) to (T * B, C, h, w), time-major; under the ReLU mode the plain pooling."""
        if isinstance(current_mode(), Relu):
            return self.pool(x)
        counts = x.unflatten(0, (self.timesteps, -1)).cumsum(0).flatten(0, 1)
        pooled = self.pool(counts).unflatten(0, (self.timesteps, -1))
        return torch.cat((pooled[:1], pooled.diff(dim=0))).flatten(0, 1)


class Normalize(nn.Module):
    """(x - mean) / std per channel, inside the model, so that eps and [0, 1] mean pixels everywhere.

    Args:
        mean: One value a channel; None for zeros.
        std: One positive value a channel; None for ones.
        channels: C.
    """

    def __init__(self, mean: Sequence[float] | None, std: Sequence[float] | None, channels: int):
        super().__init__()
        mean = [0.0] * channels if mean is None else list(mean)
        std = [1.0] * channels if std is None else list(std)
        if not len(mean) == len(std) == channels or not all(s > 0 for s in std):
            raise ValueError(f"{channels} channels need as many means and positive stds, got {mean} and {std}")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).to(torch.get_default_dtype()))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64).to(torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        return (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)


class StaticBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over a batch that stands for ``copies`` equal ones.

    The mean and variance of T copies are those of one; only the unbiased variance that is remembered divides by
    T n - 1 in place of n - 1, and that is corrected here.
    """

    def __init__(self, num_features: int, copies: int = 1):
        super().__init__(num_features)
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H, W)."""
        if not (self.training and self.track_running_stats) or self.copies == 1:
            return super().forward(x)
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        seen = self.running_var.clone()  # autograd keeps the one that batch_norm is given
        y = F.batch_norm(x, self.running_mean, seen, self.weight, self.bias, True, momentum, self.eps)
        n = x.numel() // x.shape[1]
        kept = (1 - momentum) * self.running_var
        self.running_var.copy_(kept + (seen - kept) * (self.copies * (n - 1) / (self.copies * n - 1)))
        return y


@contextmanager
def batch_statistics(network: nn.Module, track: bool) -> Iterator[None]:
    """Batch norms normalise by the batch being shown, and remember its statistics only where ``track``."""
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.track_running_stats = True, track and norm.track_running_stats
        yield
    finally:
        for norm, (training, tracked) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracked


def is_plain_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm of images and nothing else: timm has such as hold an activation too."""
    return type(module) is nn.BatchNorm2d or isinstance(module, StaticBatchNorm2d)


class WeightedSum(nn.Module):
    """w[0] * shortcut + w[1] * residual with trained weights, initially 1/2 each (``convex`` in the research code).

    Args:
        channels: C, for two weights of each channel, (2, C); None for two in all, (2,).
    """

    def __init__(self, channels: int | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2,) if channels is None else (2, channels), 0.5))

    def split(self, channels: int) -> None:
        """Gives each channel two weights of its own, the same as before."""
        if self.weight.dim() == 1:
            self.weight = nn.Parameter(self.weight.detach()[:, None].repeat(1, channels), self.weight.requires_grad)

    def forward(self, shortcut: Tensor, residual: Tensor) -> Tensor:
        """Two tensors of one shape, (B, C, H, W), to their weighted sum."""
        weights = self.weight
        if weights.dim() == 2:  # in mixed precision, as single numbers, these widen nothing
            weights = weights[..., None, None].to(residual.dtype)
        return weights[0] * shortcut + weights[1] * residual
