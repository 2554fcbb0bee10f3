"""What weights are held to after every update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rsnn_zoo.models.layers import WeightedSum
from rsnn_zoo.neurons.integrate_fire import MIN_THRESHOLD, SpikingNeuron

__all__ = ["hold_thresholds", "retract"]

_MANY_ROWS, _SHARE = 200, 0.3  # of a linear layer so large only a share of the rows is retracted at a time


@torch.no_grad()
def hold_thresholds(model: nn.Module) -> None:
    """No threshold below the value under which it does not act."""
    for module in model.modules():
        if isinstance(module, SpikingNeuron):
            module.threshold.clamp_(min=MIN_THRESHOLD)


@torch.no_grad()
def retract(model: nn.Module, beta: float, generator: torch.Generator) -> None:
    """A step towards orthonormal rows, W <- (1 + beta) W - beta W W^T W, and convex residual weights, in place.

    Args:
        model: Its convolutions, linear layers and weighted sums are changed.
        beta: Size of the step, such as 0.004.
        generator: Draws the rows of large linear layers.

    Source:
        Cisse et al., "Parseval Networks", ICML 2017; Ding et al., "SNN-RAT", NeurIPS 2022, and its code.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            rows = module.weight.flatten(1)
            module.weight.copy_(_retracted(rows, beta).view_as(module.weight))
        elif isinstance(module, nn.Linear):
            n = len(module.weight)
            if n < _MANY_ROWS:
                module.weight.copy_(_retracted(module.weight, beta))
            else:
                drawn = torch.randperm(n, generator=generator, device=generator.device)[: int(_SHARE * n)]
                module.weight[drawn] = _retracted(module.weight[drawn], beta)
        elif isinstance(module, WeightedSum):
            module.weight.copy_(_on_simplex(module.weight))


def _retracted(rows: Tensor, beta: float) -> Tensor:
    return (1 + beta) * rows - beta * (rows @ rows.T) @ rows


def _on_simplex(weights: Tensor) -> Tensor:
    """The nearest point with weights of at least 0 that sum to 1 along the first axis (Duchi et al., ICML 2008)."""
    falling = weights.sort(dim=0, descending=True).values
    counts = torch.arange(1, len(weights) + 1, device=weights.device).view(-1, *[1] * (weights.dim() - 1))
    excess = (falling.cumsum(0) - 1) / counts
    last = (falling > excess).sum(0, keepdim=True) - 1
    return (weights - excess.gather(0, last)).clamp(min=0)
