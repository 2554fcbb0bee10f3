"""What attacks maximise: functions of logits (B, K) and of what each sample is attacked for, to one value a sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LOSSES", "Loss", "dlr", "largest_other", "margin", "targeted_dlr", "without_label"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, K) and labels (B,), or what else it takes with one row a sample, to values (B,)."""


def largest_other(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest logit but that of the label, (B,), of logits (B, K) and labels (B,)."""
    return without_label(logits, labels).amax(1)


def without_label(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits (B, K) with minus infinity in place of that of the label, (B,)."""
    return logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -torch.inf)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus that of the label, (B,): positive where the image is misclassified.

    Example:
        >>> margin(torch.tensor([[1.0, 4.0, 2.0]]), torch.tensor([1]))
        tensor([-2.])
    """
    return largest_other(logits, labels) - logits.gather(1, labels[:, None]).squeeze(1)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, (B,): -(z_y - max of the others) / (z_1 - z_3), z_1 >= z_2 >= ... the logits.

    Spiking networks can give equal logits (no spike reaches the last layer): the divisor is never below 1e-12.

    Args:
        logits: (B, K), K at least 3.
        labels: (B,).

    Raises:
        ValueError: For fewer than 3 classes.
    """
    first, _, third = _largest(logits, 3)
    return margin(logits, labels) / (first - third).clamp(min=1e-12)


def targeted_dlr(logits: Tensor, aim: Tensor) -> Tensor:
    """Targeted DLR, (B,): -(z_y - z_t) / (z_1 - (z_3 + z_4) / 2), guarded as :func:`dlr` is.

    Args:
        logits: (B, K), K at least 4.
        aim: (B, 2), labels y and targets t.

    Raises:
        ValueError: For fewer than 4 classes.
    """
    first, _, third, fourth = _largest(logits, 4)
    right, target = logits.gather(1, aim).unbind(1)
    return (target - right) / (first - (third + fourth) / 2).clamp(min=1e-12)


def _largest(logits: Tensor, count: int) -> tuple[Tensor, ...]:
    if logits.shape[1] < count:
        raise ValueError(f"this loss needs at least {count} classes, got {logits.shape[1]}: use the cross-entropy")
    return logits.topk(count, dim=1).values.unbind(1)


LOSSES: dict[str, Loss] = {
    "ce": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
    "dlr": dlr,
    "margin": margin,
    "t": targeted_dlr,
}
"""Losses by name: of labels (B,), or for ``"t"`` of labels and targets (B, 2)."""
