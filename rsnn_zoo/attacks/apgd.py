"""Auto-PGD: momentum, and steps that halve where the loss no longer rises."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsnn_zoo.attacks.base import Batch, GradientAttack, State, Victim, per_image, project
from rsnn_zoo.attacks.losses import LOSSES, dlr, targeted_dlr, without_label

__all__ = ["APGD", "LOSSES", "aim_at", "apgd", "checkpoints", "dlr", "on_sphere", "targeted_dlr"]


def checkpoints(steps: int) -> tuple[int, ...]:
    """The steps (from 0) before which a step size may halve.

    The first comes after 0.22 of all steps; each gap is 0.03 of all steps shorter, and never below 0.06.

    Example:
        >>> checkpoints(100)
        (22, 41, 57, 70, 80, 87, 93, 99)
    """
    gap, shorter, least = (max(int(share * steps), 1) for share in (0.22, 0.03, 0.06))
    found = []
    at = gap
    while at < steps:
        found.append(at)
        gap = max(gap - shorter, least)
        at += gap
    return tuple(found)


def on_sphere(batch: Batch) -> Tensor:
    """A random point on the surface of each ball, clipped to [0, 1], (B, C, H, W)."""
    noise = batch.noise()
    return project(
        batch.images + batch.eps * noise / noise.abs().amax((1, 2, 3), keepdim=True), batch.images, batch.eps
    )


def aim_at(target: int, victim: Victim, batch: Batch) -> Tensor:
    """The labels, and the wrong classes that come in this place (from 1) on the clean images, (B, 2).

    Where there are fewer, the last one.
    """
    logits = victim.logits(batch.images)
    ranked = without_label(logits, batch.labels).argsort(dim=1, descending=True, stable=True)
    return torch.stack([batch.labels, ranked[:, min(target, logits.shape[1] - 1) - 1]], 1)


@dataclass(frozen=True)
class APGD(GradientAttack):
    """Auto-PGD from a random point of the sphere; see :func:`apgd`.

    The step size starts at 2 eps. At each of :func:`checkpoints` it halves, and the sample goes back to its best point,
    where the loss rose in at most 3/4 of the steps since the last one, or where neither size nor best loss changed.

    Attributes:
        objective: ``"ce"``, ``"dlr"``, ``"margin"`` or ``"t"`` (targeted DLR).
        target: Of ``"t"``: 1 for the most likely wrong class of the clean image, 2 for the next ... (the last one
            where there are fewer).

    Source:
        Croce & Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
        Attacks", ICML 2020, algorithm 1, with the published code's "at most" in the first condition.
    """

    objective: str
    target: int = 1

    @property
    def least_classes(self) -> int:
        """Without which the objective has no meaning."""
        return {"dlr": 3, "t": 4}.get(self.objective, 2)

    def loss(self, logits: Tensor, aim: Tensor) -> Tensor:
        """The objective, (B,)."""
        return LOSSES[self.objective](logits, aim)

    def first(self, victim: Victim, batch: Batch) -> State:
        """Random starts, and nothing known yet."""
        x, nothing = on_sphere(batch), batch.images.new_full((len(batch),), -torch.inf)
        return {
            "x": x,
            "aim": aim_at(self.target, victim, batch) if self.objective == "t" else batch.labels,
            "before": x,
            "loss": nothing,
            "rises": torch.zeros_like(nothing),
            "size": torch.full_like(nothing, 2 * batch.eps),
            "best": x,
            "best_loss": nothing,
            "best_gradient": torch.zeros_like(x),
            "checked_loss": nothing,
            "halved": torch.ones_like(nothing, dtype=torch.bool),
        }

    def step(self, k: int, state: State, gradient: Tensor, logits: Tensor, images: Tensor, eps: float) -> State:
        """One step with momentum, after a look back at a checkpoint."""
        s = dict(state)
        loss = self.loss(logits, s["aim"])
        if k:
            s["rises"] = s["rises"] + (loss > s["loss"])
        s["loss"] = loss
        better = loss > s["best_loss"]
        s["best_loss"] = torch.where(better, loss, s["best_loss"])
        s["best"] = torch.where(per_image(better), s["x"], s["best"])
        s["best_gradient"] = torch.where(per_image(better), gradient, s["best_gradient"])
        points = (0, *checkpoints(self.steps))
        if k == 0:
            s["checked_loss"] = loss
        elif k in points:
            gap = k - points[points.index(k) - 1]
            stuck = ~s["halved"] & (s["checked_loss"] >= s["best_loss"])
            halve = (s["rises"] <= 0.75 * gap) | stuck
            s |= {"halved": halve, "checked_loss": s["best_loss"], "rises": torch.zeros_like(loss)}
            s["size"] = torch.where(halve, s["size"] / 2, s["size"])
            s["x"] = torch.where(per_image(halve), s["best"], s["x"])
            gradient = torch.where(per_image(halve), s["best_gradient"], gradient)
        x, share = s["x"], 0.75 if k else 1.0
        z = project(x + per_image(s["size"]) * gradient.sign(), images, eps)
        s["x"] = project(x + share * (z - x) + (1 - share) * (x - s["before"]), images, eps)
        s["before"] = x
        return s


def apgd(steps: int, objective: str, target: int = 1) -> APGD:
    """APGD under the name that reports use: ``apgd100-ce``, ``apgd100-dlr``, or ``apgd100-t1`` for the first target.

    Raises:
        ValueError: For no steps, an unknown objective, or a target below 1.
    """
    if target < 1:
        raise ValueError(f"targets are counted from 1, the most likely wrong class, got {target}")
    if objective not in LOSSES:
        raise ValueError(f"unknown loss {objective!r}: choose one of {', '.join(LOSSES)}")
    return APGD(f"apgd{steps}-{objective}{target if objective == 't' else ''}", steps, objective, target)
