"""The attack inside a training step: a batch of adversarial images against the weights as they are now.

It runs on a copy of the network in evaluation mode with batch norms folded, see ``InputGradient``: neither the running
statistics, nor a training flag, nor a weight's gradient of the network in training can be touched by it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsnn_zoo.attacks.gradients import InputGradient
from rsnn_zoo.attacks.signed import RFGSM, SignAttack, project

__all__ = ["ATTACKS", "INNER_LOSSES", "STARTS", "perturb", "start_noise"]

ATTACKS: dict[str, Callable[[int, float, str], SignAttack]] = {
    "pgd": lambda steps, step, start: SignAttack("pgd", steps, step / steps, start),
    "rfgsm": lambda steps, step, start: RFGSM,
}
"""Attacks by name, from the number of steps, the step (in units of eps / steps) and PGD's start; R+FGSM has its own."""


def _kl(logits: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(logits, 1), target, reduction="none").sum(1)


INNER_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": lambda logits, target: F.cross_entropy(logits, target, reduction="none"),
    "kl": _kl,
}
"""What an attack maximises, (B,) of logits (B, K) and a target: labels (B,), or the clean probabilities (B, K)."""

STARTS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "uniform": lambda noise, generator: noise.uniform_(-1, 1, generator=generator),
    "sign": lambda noise, generator: noise.uniform_(-1, 1, generator=generator),
    "gaussian": lambda noise, generator: noise.normal_(0, 0.001, generator=generator),
}
"""How an attack starts, and the noise it takes: in the ball, at a corner of half of it, or 0.001 randn off."""


def start_noise(attack: SignAttack, images: Tensor, generator: torch.Generator) -> Tensor:
    """The random part of the start of an attack on images (B, C, H, W), shaped as they are."""
    return STARTS[attack.start](torch.empty_like(images), generator)


def perturb(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: SignAttack,
    eps: float,
    noise: Tensor,
    loss: str = "ce",
    precision: str = "float32",
    chunk: int | None = None,
) -> Tensor:
    """Adversarial images for a training step.

    Args:
        model: The network in training; it is copied, not touched.
        images: (B, C, H, W) in [0, 1].
        labels: (B,).
        attack: Steps and start: see ``ATTACKS``.
        eps: Radius of the L-infinity ball, in units of pixels in [0, 1].
        noise: What :func:`start_noise` drew.
        loss: ``"ce"`` for the cross-entropy with the labels, ``"kl"`` for the divergence from the clean output.
        precision: Of the convolutions: ``"float32"`` or ``"bfloat16"``.
        chunk: Images that go through the network at once; None for all.

    Returns:
        (B, C, H, W) in [0, 1], at most eps from ``images``.

    Example:
        >>> attack = ATTACKS["pgd"](10, 2.5, "uniform")
        >>> noise = start_noise(attack, images, torch.Generator().manual_seed(0))  # doctest: +SKIP
        >>> adversarial = perturb(model, images, labels, attack=attack, eps=8 / 255, noise=noise)  # doctest: +SKIP
    """
    gradient = InputGradient(model, precision=precision, chunk=chunk or len(images))
    target = gradient.logits(images).softmax(1) if loss == "kl" else labels
    x = images + noise if attack.start == "gaussian" else attack.first(images, eps, noise)
    for _ in range(attack.steps):
        direction, _ = gradient(x, target, INNER_LOSSES[loss])
        x = project(x + attack.step * eps * direction.sign(), images, eps)
    return x
