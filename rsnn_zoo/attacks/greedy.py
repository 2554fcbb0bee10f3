"""The greedy search of ``flips``: single changes to the ends of the pixels' intervals, then the best of them together.

It is a generator, which knows neither the victim nor other samples: many searches ask their questions in one batch.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rsnn_zoo.attacks.base import project

__all__ = ["Want", "greedy"]

BLIND = 4
"""One change in so many is drawn at random, for gradients may say nothing."""

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
"""An end of the interval (0 or 1), a channel, and the row and column of a block."""


def greedy(
    x: Tensor, image: Tensor, eps: float, limit: int, generator: torch.Generator
) -> Generator[Want, Tensor, tuple[float, Tensor]]:
    """The greedy search of one sample: it yields what it wants, is sent answers, and ends with where it is stuck.

    Args:
        x: Start, (C, H, W).
        image: Clean, (C, H, W).
        eps: Radius.
        limit: Changes tried in a round, where there are no more; else a quarter of it.
        generator: Of those that are tried though no gradient speaks for them.
    """
    ends = torch.stack([project(image - eps, image, eps), project(image + eps, image, eps)])
    side, few = (max(image.shape[-1] // 8, 1), limit // 4) if 2 * image.numel() > limit else (1, limit)
    margin = (yield Want(x[None])).item()
    while True:
        changes = _changes(x, ends, side)
        if len(changes) > few:
            directions = yield Want(x[None], rank=True)
            some = torch.randperm(len(changes), generator=generator)[: few // BLIND].tolist()
            best = _ranked(changes, directions, ends - x, side)
            changes = list(dict.fromkeys([*(changes[at] for at in some), *best]))[:few]
        trials = [_changed(x, ends, [change], side) for change in changes]
        answers = (yield Want(torch.stack(trials))).tolist() if trials else []
        order = sorted(range(len(changes)), key=answers.__getitem__)
        best = list({changes[at][1:]: changes[at] for at in reversed(order)}.values())[::-1]  # one for each block
        several = [best[:many] for many in TOGETHER if 1 < many <= len(best)]
        if several:
            trials += [_changed(x, ends, together, side) for together in several]
            answers += (yield Want(torch.stack(trials[len(changes) :]))).tolist()
        least = min(range(len(trials)), key=answers.__getitem__, default=None)
        if least is not None and answers[least] < margin:
            x, margin = trials[least], answers[least]
        elif side > 1:
            side //= 2
        else:
            return margin, x


def _changes(x: Tensor, ends: Tensor, side: int) -> list[Change]:
    """List the changes that would change anything."""
    differs = F.max_pool2d((ends != x).to(x), side, ceil_mode=True)
    return [tuple(change) for change in differs.nonzero().tolist()]


def _changed(x: Tensor, ends: Tensor, changes: Sequence[Change], side: int) -> Tensor:
    """The image (C, H, W) after these changes."""
    x = x.clone()
    for end, channel, row, column in changes:
        at = channel, slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
        x[at] = ends[end][at]
    return x


def _ranked(changes: Sequence[Change], directions: Tensor, moves: Tensor, side: int) -> list[Change]:
    """All, by what directions (n, C, H, W) expect of them: of each direction in turn the next best."""
    gains = F.avg_pool2d((directions[:, None] * moves).flatten(0, 1), side, ceil_mode=True, divisor_override=1)
    gains = gains.unflatten(0, (len(directions), 2))
    at = torch.tensor(changes, device=gains.device)
    orders = gains[:, at[:, 0], at[:, 1], at[:, 2], at[:, 3]].argsort(dim=1, descending=True, stable=True)
    return [changes[number] for number in dict.fromkeys(orders.T.flatten().tolist())]
