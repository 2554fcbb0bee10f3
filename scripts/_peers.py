"""The benchmark's networks with the neurons of SpikingJelly 2.0 or of snnTorch 1.0 in place of ours.

Every other layer is the one of our network, with its weights, so that the peers compute the same function and only
what the libraries do differently is compared. SpikingJelly's multi-step layers are PyTorch's with time and batch merged
around them, which our networks are already. What remains different, and how it is met:

- SpikingJelly keeps thresholds as plain numbers: its training step is spared the gradient to them that ours computes.
  It is given our saving of running what stands before the first neuron once; by itself it would run it T times.
- snnTorch's networks run step by step, that first part included; batch norm in training sees one step at a time, which
  gives other statistics. Its own spike functions fire at > the threshold and return float32 whatever comes in: its
  neurons take any callable and are given one that fires at >=, with the same triangular derivative, no slower than its
  own. A reset is applied one step later, before the current is added, which gives the same spikes, but it is detached,
  which gives another input gradient.
"""

import copy
from collections.abc import Callable

import snntorch
import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn

from rsnn_zoo.models import Network
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron
from rsnn_zoo.neurons.modes import current_units
from rsnn_zoo.spec.units import RELATIVE


def with_neurons(model: Network, replacement: Callable[[SpikingNeuron], nn.Module]) -> Network:
    """A copy of the model in which each spiking layer is replaced."""
    model = copy.deepcopy(model)
    for name, ours in list(model.neurons()):
        model.set_submodule(name, replacement(ours))
    return model


def width(ours: SpikingNeuron) -> float:
    """The width of our PCW-1 in the unit of the membrane, which is what the peers' surrogates are given in."""
    return ours.threshold.item() if current_units() == RELATIVE else 1.0


class MultiStepNeuron(nn.Module):
    """SpikingJelly's neuron for all steps at once, "m", (T, B, ...), between layers that merge time and batch."""

    def __init__(self, ours: SpikingNeuron) -> None:
        super().__init__()
        self.timesteps, self.repeated = ours.timesteps, ours.repeated
        triangle = surrogate.PiecewiseQuadratic(alpha=1 / width(ours))  # our PCW-1
        self.node = neuron.IFNode(ours.threshold.item(), v_reset=0.0, surrogate_function=triangle, step_mode="m")

    def forward(self, x: Tensor) -> Tensor:
        steps = x.expand(self.timesteps, *x.shape) if self.repeated else x.unflatten(0, (self.timesteps, -1))
        return self.node(steps).flatten(0, 1)


class SpikingJelly(nn.Module):
    """Images (B, C, H, W) in [0, 1] to mean logits (B, K), layer by layer."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.network = with_neurons(model, MultiStepNeuron)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images)
        functional.reset_net(self.network)
        return logits


class Triangle(torch.autograd.Function):
    """A spike where u >= 0, with the derivative max(0, 1 - |u| / width) / width."""

    @staticmethod
    def forward(ctx, u: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(u)
        ctx.width = width
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (u,) = ctx.saved_tensors
        return grad * u.abs().mul_(-1 / ctx.width).add_(1).clamp_min_(0).mul_(1 / ctx.width), None


def single_step_neuron(ours: SpikingNeuron) -> nn.Module:
    triangle = width(ours)
    return snntorch.Leaky(
        beta=1.0,
        threshold=ours.threshold.detach().clone(),
        spike_grad=lambda u: Triangle.apply(u, triangle),
        init_hidden=True,
        learn_threshold=True,
        reset_mechanism="zero",
    )


class SnnTorch(nn.Module):
    """Images (B, C, H, W) in [0, 1] to mean logits (B, K), step by step."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.timesteps = model.timesteps
        self.network = with_neurons(model, single_step_neuron)
        self.network.timesteps = 1

    def forward(self, images: Tensor) -> Tensor:
        for module in self.network.modules():
            if isinstance(module, snntorch.Leaky):
                module.reset_mem()
        return sum(self.network(images) for _ in range(self.timesteps)) / self.timesteps


PEERS = {"spikingjelly": SpikingJelly, "snntorch": SnnTorch}
