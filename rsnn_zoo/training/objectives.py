"""Training objectives: losses as pure functions of logits and labels, and what each needs to be fed.

A new objective is one function:

    >>> @register_objective("example", inner="ce", start="uniform")  # doctest: +SKIP
    ... def example(clean, adversarial, labels, weight, smoothing):
    ...     return F.cross_entropy(clean, labels) + weight * F.mse_loss(adversarial, clean)

Its name then is part of the grammar of model names, and recipes may ask for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rsnn_zoo.attacks.inner import INNER_LOSSES, STARTS
from rsnn_zoo.spec.names import add_objective, check_objective, near_matches, objectives

__all__ = ["OBJECTIVES", "Objective", "get_objective", "register_objective"]

TrainingLoss = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]


@dataclass(frozen=True)
class Objective:
    """A loss, and how its inputs come to be.

    Attributes:
        loss: Takes the logits of clean images (B, K), those of adversarial ones (B, K), labels (B,), the weight of its
            regulariser and the label smoothing; gives a scalar, the mean over the batch. Logits it has no need of
            may be None.
        clean: Whether it needs the logits of the clean images.
        inner: What the inner attack maximises, a key of ``INNER_LOSSES``; None if it needs no adversarial images.
        start: Where PGD inside it starts, a key of ``STARTS``.
        teacher: Whether the loss is given, in place of the labels, the probabilities (B, K) that a teacher has for the
            clean images; the attack too where it maximises ``"teacher"``.
    """

    loss: TrainingLoss
    clean: bool = True
    inner: str | None = None
    start: str = "uniform"
    teacher: bool = False


OBJECTIVES: dict[str, Objective] = {}
"""Every objective by name; :func:`register_objective` adds to it."""


def register_objective(
    name: str, *, clean: bool = True, inner: str | None = None, start: str = "uniform", teacher: bool = False
) -> Callable[[TrainingLoss], TrainingLoss]:
    """Decorator that makes a loss an objective, and its name a part of the grammar of model names (but with a teacher).

    Args:
        name: Lower-case letters and digits.
        clean: Whether it needs the logits of the clean images.
        inner: What the inner attack maximises: ``"ce"``, ``"kl"``, ``"teacher"``, or None for no attack.
        start: Where PGD starts: ``"uniform"`` in the ball, or ``"gaussian"``, 0.001 randn off the image.
        teacher: Whether the loss, and an attack that maximises ``"teacher"``, is given a teacher's probabilities (B, K)
            in place of the labels.

    Raises:
        ValueError: If the name is malformed or taken, or an option unknown.
    """
    for what, value, known in (("inner loss", inner, (None, *INNER_LOSSES)), ("start", start, STARTS)):
        if value not in known:
            raise ValueError(f"unknown {what} {value!r}{near_matches(str(value), map(str, known))}")
    if inner == "teacher" and not teacher:
        raise ValueError('the inner loss "teacher" needs one: say teacher=True too')
    if teacher:
        check_objective(name, {*OBJECTIVES, *objectives()})
    else:
        if name in OBJECTIVES:
            check_objective(name, OBJECTIVES)
        if name not in objectives():  # those of the papers are known beforehand
            add_objective(name)

    def register(loss: TrainingLoss) -> TrainingLoss:
        OBJECTIVES[name] = Objective(loss, clean, inner, start, teacher)
        return loss

    return register


def get_objective(name: str) -> Objective:
    """The objective of that name.

    Raises:
        ValueError: If there is none; names the near matches.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"unknown objective {name!r}{near_matches(name, OBJECTIVES)}")
    return OBJECTIVES[name]


def _kl(clean: Tensor, adversarial: Tensor) -> Tensor:
    """KL(clean || adversarial) of each sample, (B,), from logits (B, K)."""
    # of logarithms: the gradient for a probability that underflows is no number
    return F.kl_div(F.log_softmax(adversarial, 1), F.log_softmax(clean, 1), reduction="none", log_target=True).sum(1)


@register_objective("natural")
def natural(clean: Tensor, adversarial: Tensor, labels: Tensor, weight: float, smoothing: float) -> Tensor:
    """CE(clean)."""
    return F.cross_entropy(clean, labels, label_smoothing=smoothing)


@register_objective("at", clean=False, inner="ce")
def adversarial_training(clean: Tensor, adversarial: Tensor, labels: Tensor, weight: float, smoothing: float) -> Tensor:
    """CE(adversarial): Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018."""
    return F.cross_entropy(adversarial, labels, label_smoothing=smoothing)


register_objective("fast", clean=False, inner="ce")(adversarial_training)
"""AT with one step: with N-FGSM inside, whose noise guards against catastrophic overfitting.

de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training", NeurIPS 2022.
"""

register_objective("rat", clean=False, inner="ce")(adversarial_training)
"""AT with one step, and a retraction of the weights after each update: Ding et al., "SNN-RAT", NeurIPS 2022."""


@register_objective("qub", inner="ce")
def quadratic_bound(clean: Tensor, adversarial: Tensor, labels: Tensor, weight: float, smoothing: float) -> Tensor:
    """Upper bound of CE(adversarial) around the clean logits: CE(clean) + g . d + weight * |d|^2 / 4.

    d is the difference of the logits and g the gradient of CE at the clean ones, their probabilities less the labels'.
    The curvature of the cross-entropy is at most 1/2 in any direction, so with weight 1 this bounds CE(adversarial)
    from above for every pair of logits, which lets a one-step attack (N-FGSM) stand for a stronger one.

    You & Lee, "Quadratic Upper Bound for Boosting Robustness", ICML 2025 (the static bound).
    """
    moved = adversarial - clean
    target = F.one_hot(labels, clean.shape[1]).to(clean.dtype)
    target = (1 - smoothing) * target + smoothing / clean.shape[1]
    slope = ((F.softmax(clean, 1) - target) * moved).sum(1)
    return (
        F.cross_entropy(clean, labels, label_smoothing=smoothing) + (slope + weight * moved.square().sum(1) / 4).mean()
    )


@register_objective("alp", inner="ce")
def logit_pairing(clean: Tensor, adversarial: Tensor, labels: Tensor, weight: float, smoothing: float) -> Tensor:
    """CE of both halves + weight * the mean square of the logits' difference.

    Kannan, Kurakin & Goodfellow, "Adversarial Logit Pairing", 2018, with mixed-minibatch PGD.
    """
    both = F.cross_entropy(torch.cat([clean, adversarial]), labels.repeat(2), label_smoothing=smoothing)
    return both + weight * F.mse_loss(clean, adversarial)


@register_objective("trades", inner="kl", start="gaussian")
def trades(clean: Tensor, adversarial: Tensor, labels: Tensor, weight: float, smoothing: float) -> Tensor:
    """CE(clean) + weight * KL(clean || adversarial).

    Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019. With R+FGSM inside it
    is the robust fine-tuning of SNNs of Özdenizci & Legenstein, TMLR 2024.
    """
    return F.cross_entropy(clean, labels, label_smoothing=smoothing) + weight * _kl(clean, adversarial).mean()


@register_objective("mart", inner="ce", start="gaussian")
def mart(clean: Tensor, adversarial: Tensor, labels: Tensor, weight: float, smoothing: float) -> Tensor:
    """Boosted CE(adversarial) + weight * KL(clean || adversarial) * (1 - p(label | clean)).

    The boosted cross-entropy adds -log(1 - p) of the likeliest wrong class; the small constants are those of the
    official code.

    Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", ICLR 2020.
    """
    probabilities = F.softmax(adversarial, 1)
    wrong = probabilities.scatter(1, labels[:, None], -1.0).argmax(1)
    margin = F.nll_loss(torch.log(1.0001 - probabilities + 1e-12), wrong)
    boosted = F.cross_entropy(adversarial, labels, label_smoothing=smoothing) + margin
    p = F.softmax(clean, 1)
    kl = (p * (F.log_softmax(clean, 1) - torch.log(probabilities + 1e-12))).sum(1)
    doubt = 1.0000001 - p.gather(1, labels[:, None]).squeeze(1)
    return boosted + weight * (kl * doubt).mean()


@register_objective("rslad", inner="teacher", start="gaussian", teacher=True)
def robust_soft_labels(clean: Tensor, adversarial: Tensor, labels: Tensor, weight: float, smoothing: float) -> Tensor:
    """(1 - weight) * KL(teacher || clean) + weight * KL(teacher || adversarial); weight 5/6 as published.

    The teacher is a robust network that sees the clean images: here the ANN that the SNN was converted from. The attack
    inside leads away from it. The smoothing has no place in it.

    Zi, Zhao, Ma & Jiang, "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better", ICCV
    2021.
    """
    near, far = (F.kl_div(F.log_softmax(z, 1), labels, reduction="batchmean") for z in (clean, adversarial))
    return (1 - weight) * near + weight * far
