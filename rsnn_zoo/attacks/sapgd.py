"""SA-PGD: steps along the momentum, scaled pixel by pixel by how large its gradients have been."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsnn_zoo.attacks.apgd import checkpoints, on_sphere
from rsnn_zoo.attacks.base import Batch, GradientAttack, State, Victim, project

__all__ = ["SAPGD", "sapgd"]


@dataclass(frozen=True)
class SAPGD(GradientAttack):
    """Stable adaptive PGD from a random point of the sphere; see :func:`sapgd`.

    With g the gradient, m <- 0.5 m + g / mean |g| and v <- 0.8 v + g^2 / mean g^2 (means over the sample; 0 where all
    of g is 0), x <- project(x + clip(eta m / (sqrt(v) + 1e-12), -eta, eta)); eta = eps, halved at each checkpoint.

    Source:
        Wang et al., CVPR 2026, arXiv 2512.22522.
    """

    def first(self, victim: Victim, batch: Batch) -> State:
        """Random starts, and no gradient seen."""
        nothing = torch.zeros_like(batch.images)
        return {"x": on_sphere(batch), "m": nothing, "v": nothing}

    def step(self, k: int, state: State, gradient: Tensor, logits: Tensor, images: Tensor, eps: float) -> State:
        """One step along the scaled momentum."""
        g = _over_mean(gradient, gradient.abs())
        m = 0.5 * state["m"] + g
        v = 0.8 * state["v"] + _over_mean(g.square(), g.square())
        eta = eps / 2 ** sum(k >= point for point in checkpoints(self.steps))
        move = (eta * m / (v.sqrt() + 1e-12)).clamp(-eta, eta)
        return {"x": project(state["x"] + move, images, eps), "m": m, "v": v}


def _over_mean(values: Tensor, sizes: Tensor) -> Tensor:
    """Values over the mean of the sizes in the sample; 0 where all sizes are."""
    return values / sizes.mean((1, 2, 3), keepdim=True).clamp(min=torch.finfo(values.dtype).tiny)


def sapgd(steps: int) -> SAPGD:
    """SA-PGD under the name that reports use, e.g. ``sapgd100``."""
    return SAPGD(f"sapgd{steps}", steps)
