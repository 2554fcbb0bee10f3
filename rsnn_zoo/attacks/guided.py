"""The search of ``flips`` on images of many pixels: masked steps, where to try each pixel alone would ask too much.

Like :func:`rsnn_zoo.attacks.greedy.greedy` it is a generator, which knows neither the victim nor other samples.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from rsnn_zoo.attacks.base import project
from rsnn_zoo.attacks.greedy import Want

__all__ = ["guided"]

MASKS = 32
"""Masks tried in a round."""

BY_CHANCE = 4
"""One mask in so many has random signs and an eighth of the pixels, for gradients may say nothing."""

MASKS_TOGETHER = (2, 3, 4)
"""How many of the best masks are tried together."""

FIRST_SHARE, SHARE_SPREAD, LEAST_SHARE = 2.0, 1.5, 11.0
"""Shares of pixels in a mask are 2^-u, u normal: its first mean, its deviation, and its largest value."""

LEARNED, SMALLER = 0.3, 1.0
"""How much of the mean of u comes from the best masks of a round, and what a round that gained nothing adds to it."""

MASK_DECAY = 0.8
"""Momentum of each direction, from one round that gained to the next."""

TIE = 1e-6
"""Random part of directions, which alone speaks where gradients are zero."""

IDLE_ROUNDS = 4
"""Rounds in a row that gain nothing, after which the search is stuck."""


def guided(
    x: Tensor, image: Tensor, eps: float, generator: torch.Generator
) -> Generator[Want, Tensor, tuple[float, Tensor]]:
    """The search of one sample: it yields what it wants, is sent answers, and ends with where it is stuck.

    Each round asks about ``MASKS`` images in which some pixels are set to the end of their interval that a direction
    speaks for, the directions in turn; then about the best of these masks together; and goes on from the best of all
    where the margin falls. Half of the masks draw pixels with equal chances, a quarter prefer large gradients, and the
    rest goes by chance alone.

    Args:
        x: Start, (C, H, W).
        image: Clean, (C, H, W).
        eps: Radius.
        generator: Of the masks.
    """
    ends = torch.stack([project(image - eps, image, eps), project(image + eps, image, eps)])
    margin = (yield Want(x[None])).item()
    mean, stuck, memory, directions = FIRST_SHARE, 0, x.new_zeros(()), None
    while stuck < IDLE_ROUNDS:
        if directions is None:
            found = yield Want(x[None], rank=True)
            memory = MASK_DECAY * memory + _unit(found)
            directions = _unit(memory) + TIE * torch.randn(memory.shape, generator=generator).to(memory)
        drawn = (mean + SHARE_SPREAD * torch.randn(MASKS, generator=generator)).clamp(0.0, LEAST_SHARE).tolist()
        trials = [_masked(x, ends, directions, number, 2.0**-u, generator) for number, u in enumerate(drawn)]
        answers = (yield Want(torch.stack(trials))).tolist()
        order = sorted(range(MASKS), key=answers.__getitem__)
        together = [_together(x, [trials[at] for at in order[:many]]) for many in MASKS_TOGETHER]
        answers += (yield Want(torch.stack(together))).tolist()
        trials += together
        best = order[: MASKS_TOGETHER[-1]]
        mean += LEARNED * (sum(drawn[at] for at in best) / len(best) - mean)
        least = min(range(len(trials)), key=answers.__getitem__)
        if answers[least] < margin:
            x, margin, stuck, directions = trials[least], answers[least], 0, None
        else:
            stuck, mean = stuck + 1, min(mean + SMALLER, LEAST_SHARE)
    return margin, x


def _unit(directions: Tensor) -> Tensor:
    """Directions (n, C, H, W), each divided by the mean of its absolute values."""
    return directions / directions.abs().mean((1, 2, 3), keepdim=True).clamp(min=torch.finfo(directions.dtype).tiny)


def _masked(
    x: Tensor, ends: Tensor, directions: Tensor, number: int, share: float, generator: torch.Generator
) -> Tensor:
    """The image (C, H, W) with a share of its pixels at the ends that a direction, or chance, speaks for."""
    chance = torch.rand(x.shape, generator=generator).to(x)
    if number % BY_CHANCE == 0:
        signs, mask = torch.randn(x.shape, generator=generator).to(x), chance < share / 8
    else:
        signs = directions[number % len(directions)]
        if number % 2:
            mask = chance < share
        else:  # keys of weighted draws without replacement: Efraimidis & Spirakis, 2006
            keys = chance.log() / signs.abs()
            mask = keys >= keys.flatten().topk(max(int(share * x.numel()), 1)).values[-1]
    return torch.where(mask, torch.where(signs > 0, ends[1], ends[0]), x)


def _together(x: Tensor, trials: list[Tensor]) -> Tensor:
    """The image (C, H, W) with what trials changed; where they differ the last one's."""
    y = x
    for trial in trials:
        y = torch.where(trial != x, trial, y)
    return y
