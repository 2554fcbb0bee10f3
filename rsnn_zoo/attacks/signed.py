"""Attacks that step along the sign of the gradient inside an L-infinity ball: FGSM, R+FGSM and PGD."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FGSM", "RFGSM", "SignAttack", "check_eps", "pgd", "project", "run"]


def check_eps(eps: float) -> float:
    """Returns eps as a float if it lies in [0, 1].

    Raises:
        ValueError: If it does not: pixels lie in [0, 1], so the usual eps is 8 / 255.
    """
    if not 0 <= eps <= 1:
        raise ValueError(f"eps must lie in [0, 1], in units of pixels in [0, 1] (e.g. 8 / 255), got {eps}")
    return float(eps)


def project(x: Tensor, images: Tensor, eps: float) -> Tensor:
    """The nearest point of the L-infinity ball around ``images`` and of [0, 1]; all (B, C, H, W)."""
    return torch.clamp(torch.min(torch.max(x, images - eps), images + eps), 0.0, 1.0)


@dataclass(frozen=True)
class SignAttack:
    """x <- project(x + step * sign(gradient)), from a start in the ball.

    Attributes:
        name: As reports have it.
        steps: Gradient steps.
        step: Size of a step in units of eps.
        start: ``"none"`` (the image), ``"uniform"`` (anywhere in the ball) or ``"sign"`` (half of eps along a random
            sign in each pixel).
    """

    name: str
    steps: int
    step: float
    start: str

    def first(self, images: Tensor, eps: float, noise: Tensor) -> Tensor:
        """The starting points, given noise (B, C, H, W) uniform in [-1, 1)."""
        if self.start == "none":
            return images
        return project(images + (eps * noise if self.start == "uniform" else eps / 2 * noise.sign()), images, eps)


FGSM = SignAttack("fgsm", 1, 1.0, "none")
"""Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015."""

RFGSM = SignAttack("rfgsm", 1, 0.5, "sign")
"""R+FGSM with alpha = eps / 2: Tramèr et al., "Ensemble Adversarial Training", ICLR 2018."""


def pgd(steps: int) -> SignAttack:
    """PGD with a uniform start and steps of 2.5 eps / steps: Madry et al., ICLR 2018."""
    if steps < 1:
        raise ValueError(f"PGD needs at least 1 step, got {steps}")
    return SignAttack(f"pgd{steps}", steps, 2.5 / steps, "uniform")


def run(
    attack: SignAttack,
    images: Tensor,
    labels: Tensor,
    eps: float,
    noise: Tensor,
    gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    fallen: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Attacks a batch; every iterate counts, and a sample that falls leaves the batch at once.

    Args:
        attack: What to run.
        images: (B, C, H, W) in [0, 1].
        labels: (B,).
        eps: Radius of the ball.
        noise: (B, C, H, W) uniform in [-1, 1): the random part of the start.
        gradient: Iterates and labels to the gradient to follow and which of the iterates have fallen.
        fallen: Iterates and labels to which of them have fallen, without a gradient.

    Returns:
        Which samples fell, (B,) bool, and their adversarial images (for the others the last iterate).
    """
    fell = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    adversarial = attack.first(images, eps, noise).clone()
    left = torch.arange(len(images), device=images.device)
    x, clean, y = adversarial, images, labels
    for _ in range(attack.steps):
        direction, down = gradient(x, y)
        x = torch.where(down.view(-1, 1, 1, 1), x, project(x + attack.step * eps * direction.sign(), clean, eps))
        adversarial[left] = x
        fell[left[down]] = True
        if down.any():
            left, x, clean, y = left[~down], x[~down], clean[~down], y[~down]
        if not len(left):
            return fell, adversarial
    fell[left] = fallen(x, y)
    return fell, adversarial
