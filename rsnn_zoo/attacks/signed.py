"""Attacks that step along the sign of the gradient inside an L-infinity ball: FGSM, R+FGSM and PGD."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rsnn_zoo.attacks.base import Batch, GradientAttack, State, Victim, project

__all__ = ["FGSM", "RFGSM", "SignAttack", "pgd"]


@dataclass(frozen=True)
class SignAttack(GradientAttack):
    """x <- project(x + step * sign(gradient)), from a start in the ball.

    Attributes:
        size: Of a step, in units of eps.
        start: ``"none"`` (the image), ``"uniform"`` (anywhere in the ball) or ``"sign"`` (half of eps along a random
            sign in each pixel).
    """

    size: float
    start: str

    def begin(self, images: Tensor, eps: float, noise: Tensor) -> Tensor:
        """The starting points, given noise (B, C, H, W) uniform in [-1, 1)."""
        if self.start == "none":
            return images
        return project(images + (eps * noise if self.start == "uniform" else eps / 2 * noise.sign()), images, eps)

    def first(self, victim: Victim, batch: Batch) -> State:
        """The starting points."""
        return {"x": self.begin(batch.images, batch.eps, batch.noise())}

    def step(self, k: int, state: State, gradient: Tensor, logits: Tensor, images: Tensor, eps: float) -> State:
        """One step up the loss."""
        return {"x": project(state["x"] + self.size * eps * gradient.sign(), images, eps)}


FGSM = SignAttack("fgsm", 1, 1.0, "none")
"""Goodfellow et al., "Explaining and Harnessing Adversarial Examples", ICLR 2015."""

RFGSM = SignAttack("rfgsm", 1, 0.5, "sign")
"""R+FGSM with alpha = eps / 2: Tramèr et al., "Ensemble Adversarial Training", ICLR 2018."""


def pgd(steps: int) -> SignAttack:
    """PGD with a uniform start and steps of 2.5 eps / steps: Madry et al., ICLR 2018.

    Raises:
        ValueError: For no steps.
    """
    if steps < 1:
        raise ValueError(f"PGD needs at least 1 step, got {steps}")
    return SignAttack(f"pgd{steps}", steps, 2.5 / steps, "uniform")
