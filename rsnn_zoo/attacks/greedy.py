"""The greedy search of ``flips``: single changes to the ends of the pixels' intervals, then the best of them together.

It is a generator, which knows neither the victim nor other samples: many searches ask their questions in one batch.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rsnn_zoo.attacks.base import project

__all__ = ["Want", "greedy"]

TOGETHER = (1, 2, 3, 4, 6, 8, 12, 16)
"""How many of the best single changes are tried together."""


class Want(NamedTuple):
    """What a search wants to be told.

    Attributes:
        images: (n, C, H, W).
        rank: Directions at the only one of them, (n, C, H, W), that raise the loss; else the margins of all, (n,).
    """

    images: Tensor
    rank: bool = False


Change = tuple[int, int, int, int]
"""An end of the interval (0 or 1), a channel, and the row and column of a pixel."""


def greedy(x: Tensor, image: Tensor, eps: float) -> Generator[Want, Tensor, tuple[float, Tensor]]:
    """The greedy search of one sample: it yields what it wants, is sent answers, and ends with where it is stuck.

    Args:
        x: Start, (C, H, W).
        image: Clean, (C, H, W).
        eps: Radius.
    """
    ends = torch.stack([project(image - eps, image, eps), project(image + eps, image, eps)])
    margin = (yield Want(x[None])).item()
    while True:
        changes = [tuple(change) for change in (ends != x).nonzero().tolist()]
        trials = [_changed(x, ends, [change]) for change in changes]
        answers = (yield Want(torch.stack(trials))).tolist() if trials else []
        order = sorted(range(len(changes)), key=answers.__getitem__)
        best = list({changes[at][1:]: changes[at] for at in reversed(order)}.values())[::-1]  # one for each pixel
        several = [best[:many] for many in TOGETHER if 1 < many <= len(best)]
        if several:
            trials += [_changed(x, ends, together) for together in several]
            answers += (yield Want(torch.stack(trials[len(changes) :]))).tolist()
        least = min(range(len(trials)), key=answers.__getitem__, default=None)
        if least is None or answers[least] >= margin:
            return margin, x
        x, margin = trials[least], answers[least]


def _changed(x: Tensor, ends: Tensor, changes: Sequence[Change]) -> Tensor:
    """The image (C, H, W) after these changes."""
    x = x.clone()
    for end, channel, row, column in changes:
        x[channel, row, column] = ends[end, channel, row, column]
    return x
