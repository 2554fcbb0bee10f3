"""The attack inside a training step: a batch of adversarial images against the weights as they are now.

``perturb`` runs on a copy of the network in evaluation mode with batch norms folded, see ``InputGradient``: neither the
running statistics, nor a training flag, nor a weight's gradient of the network in training can be touched by it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsnn_zoo.attacks.base import project
from rsnn_zoo.attacks.gradients import InputGradient, PassGradient
from rsnn_zoo.attacks.losses import LOSSES, Loss
from rsnn_zoo.attacks.signed import FGSM, RFGSM, SignAttack
from rsnn_zoo.neurons.attack_state import Memory
from rsnn_zoo.neurons.modes import BackwardMode

__all__ = ["ATTACKS", "INNER_LOSSES", "STARTS", "InnerAttack", "ascend", "perturb", "start_noise"]


def _uniform(noise: Tensor, generator: torch.Generator) -> Tensor:
    return noise.uniform_(-1, 1, generator=generator)


STARTS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "none": lambda noise, generator: noise,
    "uniform": _uniform,
    "sign": _uniform,
    "wide": _uniform,
    "gaussian": lambda noise, generator: noise.normal_(0, 0.001, generator=generator),
}
"""Where an attack starts, and the noise it takes: the image; in the ball; at a corner of half of it; in the ball of
radius 2 eps; 0.001 randn off the image."""


@dataclass(frozen=True)
class InnerAttack(SignAttack):
    """A sign attack with the starts of ``STARTS``, and a reach of its own.

    Attributes:
        reach: Radius within which it stays, in units of eps.
    """

    reach: float = 1.0

    def begin(self, images: Tensor, eps: float, noise: Tensor) -> Tensor:
        """The starting points, given what :func:`start_noise` drew."""
        if self.start == "gaussian":
            return images + noise
        if self.start == "wide":
            return project(images + 2 * eps * noise, images, 2 * eps)
        return super().begin(images, eps, noise)


def _from(attack: SignAttack) -> Callable[[int, float, str], InnerAttack]:
    return lambda steps, step, start: InnerAttack(attack.name, attack.steps, attack.size, attack.start)


ATTACKS: dict[str, Callable[[int, float, str], InnerAttack]] = {
    "pgd": lambda steps, step, start: InnerAttack("pgd", steps, step / steps, start),
    "fgsm": _from(FGSM),
    "rfgsm": _from(RFGSM),
    # Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019: the steps are the updates' own, see ``Updates``
    "free": lambda steps, step, start: InnerAttack("free", steps, step / steps, start),
    # de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training", NeurIPS 2022
    "nfgsm": lambda steps, step, start: InnerAttack("nfgsm", 1, 1.0, "wide", reach=3.0),
}
"""Attacks by name, from PGD's steps, step (in units of eps / steps) and start; those of one step have their own."""


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(logits, 1), target, reduction="none").sum(1)


INNER_LOSSES: dict[str, Loss] = {
    "ce": LOSSES["ce"],
    "kl": _divergence,
    "teacher": _divergence,
}
"""What an attack maximises, (B,) of logits (B, K) and a target: labels (B,), the probabilities (B, K) that the network
has for the clean images, or those of a teacher."""


def start_noise(attack: SignAttack, images: Tensor, generator: torch.Generator) -> Tensor:
    """The random part of the start of an attack on images (B, C, H, W), shaped as they are."""
    return STARTS[attack.start](torch.zeros_like(images), generator)


def perturb(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    attack: InnerAttack,
    eps: float,
    noise: Tensor,
    loss: str = "ce",
    precision: str = "float32",
    chunk: int | None = None,
    mode: BackwardMode | None = None,
) -> Tensor:
    """Adversarial images for a training step.

    Args:
        model: The network in training; it is copied, not touched.
        images: (B, C, H, W) in [0, 1].
        labels: (B,), or a teacher's probabilities (B, K) where the loss is ``"teacher"``.
        attack: See ``ATTACKS``.
        eps: Radius of the L-infinity ball, in units of pixels in [0, 1].
        noise: What :func:`start_noise` drew.
        loss: ``"ce"`` for the cross-entropy with the labels, ``"kl"`` for the divergence from the clean output,
            ``"teacher"`` for that from a teacher's.
        precision: Of the convolutions: ``"float32"`` or ``"bfloat16"``.
        chunk: Images that go through the network at once; None for all.
        mode: How to differentiate the spike; None for each neuron's own surrogate.

    Returns:
        (B, C, H, W) in [0, 1], at most eps from ``images`` (times the attack's reach).

    Example:
        >>> attack = ATTACKS["pgd"](10, 2.5, "uniform")
        >>> noise = start_noise(attack, images, torch.Generator().manual_seed(0))  # doctest: +SKIP
        >>> adversarial = perturb(model, images, labels, attack=attack, eps=8 / 255, noise=noise)  # doctest: +SKIP
    """
    gradient = InputGradient(model, mode, precision=precision, chunk=chunk or len(images))
    target = gradient.logits(images).softmax(1) if loss == "kl" else labels
    return ascend(gradient, images, target, attack=attack, eps=eps, noise=noise, loss=loss)


def ascend(
    gradient: InputGradient | PassGradient,
    images: Tensor,
    target: Tensor,
    *,
    attack: InnerAttack,
    eps: float,
    noise: Tensor,
    loss: str,
) -> Tensor:
    """The steps of :func:`perturb`, with gradients from anywhere and the target that the loss takes.

    Args:
        gradient: Gives gradients and logits, of a copy of the network or of a training pass.
        images: (B, C, H, W) in [0, 1].
        target: What the loss compares logits with: labels (B,), or probabilities (B, K).
        attack: See ``ATTACKS``.
        eps: Radius of the L-infinity ball, in units of pixels in [0, 1].
        noise: What :func:`start_noise` drew.
        loss: A key of ``INNER_LOSSES``.

    Returns:
        (B, C, H, W) in [0, 1], at most eps from ``images`` (times the attack's reach).
    """
    x, memory = attack.begin(images, eps, noise), Memory()
    for _ in range(attack.steps):
        direction, _ = gradient(x, target, INNER_LOSSES[loss], memory)
        x = project(x + attack.size * eps * direction.sign(), images, attack.reach * eps)
    return x
