"""Backward modes whose derivative is as wide as the membranes in the forward pass say: ASSG and PDSG."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rsnn_zoo.neurons.attack_state import current_pass
from rsnn_zoo.neurons.kernels import run, wide
from rsnn_zoo.neurons.surrogates import Firing, ThroughTime, mode_name

__all__ = ["ASSG", "PDSG"]


@dataclass(frozen=True)
class ASSG(ThroughTime):
    """Adaptive sharpness: an arctangent's derivative, as sharp as each sample, neuron and step has been found to bear.

    M <- 0.9 M + 0.1 |u| and D <- 0.9 D + 0.1 ||u| - M| at every forward pass that keeps what a backward pass needs;
    alpha = w / (M + 1.5 D + 1e-4) with w = 2 tan(pi a) / pi; h'(u) = alpha / (2 (1 + (pi alpha u / 2)^2)).

    M = 1 and D = 0 at first. They last from one pass to the next within an attack, in the ``memory`` that is handed to
    :class:`rsnn_zoo.attacks.gradients.InputGradient`, or in the view that :func:`model_under` returns; without either,
    each pass is the first. That takes 2 * T * neurons * 4 bytes a sample (they are float32, also where convolutions run
    in 16 bits): 6 MB for a ResNet-20 on 32x32 images at T = 4. Of several draws of a random model, the first updates.

    Args:
        a: How much of the gradient may vanish, between 0 and 0.5; the paper searches 0.35 to 0.49.

    Raises:
        ValueError: For a value of ``a`` that is not between 0 and 0.5.

    Source:
        Wang et al., "Towards Reliable Evaluation of Adversarial Robustness for Spiking Neural Networks", CVPR 2026,
        arXiv 2512.22522.
    """

    a: float = 0.425
    kind: str = field(default="assg", init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.a < 0.5:
            raise ValueError(f"a must lie between 0 and 0.5, got {self.a}")

    def __str__(self) -> str:
        return "assg" if self.a == ASSG.a else mode_name("assg", self.a)

    def width_of(self, firing: Firing) -> Tensor:
        """Returns alpha, (T, N), after an update of M and D.

        Raises:
            ValueError: If a layer is shown another number of images than are remembered.
        """
        steps, n = firing.excess.shape
        forward = current_pass()
        if forward.batch not in (1, firing.shape[0]):
            raise ValueError(
                f"ASSG remembers each image, and a layer is shown {firing.shape[0]} for {forward.batch} images: leave "
                "assg out, or let the model keep its batch as it is"
            )
        mean, deviation = forward.recall(firing.excess, mean=1.0, deviation=0.0)
        rows = mean.shape[1]  # what comes after them is padding
        excess = firing.excess.view(steps, forward.batch, -1)[:, :rows]
        top = mean.new_tensor(2 * math.tan(math.pi * self.a) / math.pi)
        alpha = run(_sharpen, (excess, mean, deviation, top, firing.unit), (forward.update,))
        if rows < forward.batch:
            alpha = nn.functional.pad(alpha, (0, 0, 0, forward.batch - rows), value=1.0)
        return alpha.view(steps, n)


def _sharpen(excess: Tensor, mean: Tensor, deviation: Tensor, top: Tensor, unit: Tensor, update: bool) -> Tensor:
    """Returns ASSG's alpha, contiguous; ``mean`` and ``deviation`` are updated in place. All (T, rows, N / rows)."""
    if update:
        size = excess.to(mean.dtype).abs() / unit
        mean.copy_(0.9 * mean + 0.1 * size)
        deviation.copy_(0.9 * deviation + 0.1 * (size - mean).abs())
    return (top / (mean + 1.5 * deviation + 1e-4)).contiguous()


@dataclass(frozen=True)
class PDSG(ThroughTime):
    """Gaussian derivative as wide as the membranes are spread.

    h'(u) = exp(-((u - s/2) / (sqrt(2) s))^2) / (sqrt(2 pi) s), s the standard deviation of the membrane, 1 where it
    is 0. Here it is taken per sample and channel, over all steps and positions. The published code takes it over the
    batch besides, and up to the step at hand; then a sample's fate would depend on its company.

    Source:
        Lun et al., "Towards Effective and Sparse Adversarial Attack on Spiking Neural Networks via Breaking Invisible
        Surrogate Gradients", CVPR 2025.
    """

    kind: str = field(default="pdsg", init=False, repr=False)

    def __str__(self) -> str:
        return "pdsg"

    def width_of(self, firing: Firing) -> Tensor:
        """Returns s, (1, N)."""
        batch, channels = firing.shape[0], math.prod(firing.shape[1:2])
        order, positions = ((-1, channels), 1) if firing.channels_last else ((channels, -1), 2)
        excess = firing.excess.view(len(firing.excess), batch, *order)
        return run(_spread, (excess, firing.unit), (positions,)).view(1, -1)


def _spread(excess: Tensor, unit: Tensor, positions: int) -> Tensor:
    """Standard deviation over the steps, the first dimension of (T, B, ...), and positions, broadcast to (B, ...)."""
    u = excess.to(wide(excess.dtype)) / unit
    n = u.shape[0] * u.shape[positions + 1]
    u = u - u.mean(0).mean(positions, keepdim=True)
    deviation = ((u * u).sum(0).sum(positions, keepdim=True) / max(n - 1, 1)).sqrt()
    return torch.where(deviation > 0, deviation, 1.0).expand(u.shape[1:]).contiguous()
