"""FAB: from linear approximation to linear approximation of the boundary, back towards the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rsnn_zoo.attacks.apgd import aim_at
from rsnn_zoo.attacks.base import Batch, State, Victim, kept, per_image, project

__all__ = ["FAB", "linf_step"]


@dataclass(frozen=True)
class FAB:
    """Targeted FAB, which looks for the nearest point beyond the boundary to one wrong class, L-infinity, no restarts.

    Each step moves the iterate, and a little the image, to where the linear approximation of the boundary is nearest,
    beyond it by ``eta``, and takes a mean of both. An iterate that is misclassified goes back towards the image by
    ``beta``. Iterates may lie outside of the ball: a sample has fallen when one inside is misclassified.

    Attributes:
        steps: Gradient passes, at least 1; each is followed by a question.
        target: 1 for the most likely wrong class of the clean image, 2 for the next ...
        alpha_max: Largest weight of the image in the mean, in [0, 1].
        eta: Overshoot, at least 1.
        beta: What is left of the perturbation after the step back, in (0, 1).

    Raises:
        ValueError: For no steps, or a target below 1.

    Example:
        >>> fell, adversarial = FAB(100, target=2)(victim, batch)  # doctest: +SKIP

    Source:
        Croce & Hein, "Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack", ICML 2020,
        algorithm 1, with the published code's settings and, as in AutoAttack, one target class at a time.
    """

    steps: int
    target: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        """Refuses attacks that do nothing, or that aim at nothing."""
        if self.steps < 1:
            raise ValueError(f"FAB needs at least 1 step, got {self.steps}")
        if self.target < 1:
            raise ValueError(f"targets are counted from 1, the most likely wrong class, got {self.target}")

    @property
    def queries(self) -> int:
        """Questions a sample, at most."""
        return self.steps

    @property
    def least_classes(self) -> int:
        """Without which there is no such target."""
        return self.target + 1

    @property
    def name(self) -> str:
        """The attack's name as reports give it."""
        return f"fab{self.steps}-t{self.target}"

    def __call__(self, victim: Victim, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which samples fell, (B,) bool, and their adversarial images (B, C, H, W) (for others the clean image)."""
        clean, labels, aim, memory = batch.images, batch.labels, aim_at(self.target, victim, batch), State()
        adversarial, fell = clean.clone(), torch.zeros_like(labels, dtype=torch.bool)
        x, left = clean, torch.arange(len(batch), device=clean.device)
        for _ in range(self.steps):
            gradient, logits, wrong = victim.gradient(x, labels, _lead, aim, memory)
            after = self._step(x, clean, gradient, _lead(logits, aim).to(x.dtype))
            wrong_after = victim.fallen(after, labels)
            down = torch.zeros_like(wrong)
            for iterate, misclassified in ((x, wrong), (after, wrong_after)):
                here = misclassified & ~down & (iterate == project(iterate, clean, batch.eps)).flatten(1).all(1)
                adversarial[left[here]] = iterate[here]
                down |= here
            fell[left[down]] = True
            x = torch.where(per_image(wrong_after), clean + self.beta * (after - clean), after)
            if down.any():
                x, clean, labels, aim, left = (rows[~down] for rows in (x, clean, labels, aim, left))
                memory = kept(memory, ~down)
            if not len(left):
                break
        return fell, adversarial

    def _step(self, x: Tensor, clean: Tensor, gradient: Tensor, lead: Tensor) -> Tensor:
        """The next iterates, given the gradient of the target's lead (B,) and what it is at x."""
        w, here, there = gradient.flatten(1), x.flatten(1), clean.flatten(1)
        move = linf_step(here, w, -lead)
        bold = linf_step(there, w, -lead - (w * (there - here)).sum(1))
        far, farther = (d.abs().amax(1, keepdim=True).clamp(min=1e-8) for d in (move, bold))
        alpha = (far / (far + farther)).clamp(max=self.alpha_max)
        after = (1 - alpha) * (here + self.eta * move) + alpha * (there + self.eta * bold)
        return after.clamp(0.0, 1.0).view_as(x)


def _lead(logits: Tensor, aim: Tensor) -> Tensor:
    """The lead of the target over the label, (B,), in logits (B, K); labels and targets are (B, 2)."""
    right, target = logits.gather(1, aim).unbind(1)
    return target - right


def linf_step(points: Tensor, w: Tensor, gap: Tensor) -> Tensor:
    """The shift d of the smallest L-infinity norm with w . d = gap that leaves the points in [0, 1].

    Where none does, the one that comes nearest to it. All pixels move by the same amount along the sign of w, or to
    their limit where that is nearer; which pixels end there follows from a sort.

    Args:
        points: (B, N) in [0, 1].
        w: (B, N).
        gap: (B,).

    Returns:
        (B, N).

    Example:
        >>> linf_step(torch.tensor([[0.5, 0.9]]), torch.tensor([[1.0, 2.0]]), torch.tensor([0.5]))
        tensor([[0.3000, 0.1000]])

    Source:
        Croce & Hein, ICML 2020, section 2.2.
    """
    direction = w.sign() * gap.sign()[:, None]
    room = torch.where(direction > 0, 1 - points, points)
    limits, order = room.sort(1)
    weights = w.abs().gather(1, order)
    moving = weights.flip(1).cumsum(1).flip(1)  # of this pixel and those with more room
    spent = (weights * limits).cumsum(1) - weights * limits  # by those with less
    gained = spent + moving * limits  # once this pixel is at its limit
    at = (gained < gap.abs()[:, None]).sum(1, keepdim=True).clamp(max=w.shape[1] - 1)
    limit, spent, moving = (rows.gather(1, at) for rows in (limits, spent, moving))
    shift = (gap.abs()[:, None] - spent) / moving.clamp(min=torch.finfo(w.dtype).tiny)
    return direction * torch.minimum(shift.clamp(min=0).minimum(limit), room)
