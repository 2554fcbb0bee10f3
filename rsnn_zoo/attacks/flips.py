"""Corner flips: greedy search for pixels to set to an end of their interval, where gradients no longer lead on.

What strong gradient attacks leave standing is often a few pixels away from falling, and no gradient says which.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsnn_zoo.attacks.apgd import LOSSES
from rsnn_zoo.attacks.base import Batch, State, Victim, project
from rsnn_zoo.attacks.gradients import input_gradient
from rsnn_zoo.attacks.queries import margins
from rsnn_zoo.neurons.modes import BackwardMode, parse_mode

__all__ = ["STARTS", "Flips"]

STARTS = ("source", "nes", "rate", "assg", "source", "pcw-1", "nes", "relu", "random")
"""Where searches start, over and over: at the end of PGD with momentum on the network that the model was converted
from, or under a backward mode; of a search with estimated gradients (NES); at a random corner."""

GRADIENT_FREE = ("nes", "random")

TOGETHER = (1, 2, 3, 4, 6, 8, 12, 16)
"""How many of the best single changes are tried together."""

STEPS, DECAY, SIZE = 30, 0.9, 0.125
"""Of PGD in the starts: steps, momentum, and their size in units of eps."""

NES_STEPS, NES_PAIRS, NES_SIGMA = 20, 24, 0.5
"""Of NES in the starts: steps, pairs of questions for each, and how far apart these are, in units of eps."""

A_GRADIENT = 3
"""Questions that a gradient counts for."""

Direction = Callable[[Tensor, Tensor], Tensor]
"""Iterates (B, C, H, W) and labels (B,) to what raises the loss, shaped as the iterates."""


@dataclass(frozen=True)
class Flips:
    """Greedy search over the ends of the pixels' intervals, from many starts; it asks for margins.

    From a start, the margin of every single pixel at either end of its interval; then the best 1, 2, 3, 4, 6, 8, 12 or
    16 of these changes together, kept where the margin falls; until stuck, then the next of ``STARTS``. Where an image
    has more pixels than half of ``candidates``, the changes are blocks of pixels that halve where the search is stuck,
    down to single ones, and each round tries those that gradients rank highest, of each backward mode as many.

    Each sample searches by itself, with a generator of its own.

    Attributes:
        queries: Questions a sample, at most; a gradient of a start or a ranking counts for three.
        source: The network that the model was converted from, where it is known; else the starts on it are left out.
        follows: Whether the model's neurons follow backward modes; else the model's own gradient stands for all.
        candidates: Changes tried in a round, at most.

    Raises:
        ValueError: For less than one query.

    Example:
        >>> fell, adversarial = Flips(20_000, source=ann)(victim, batch)  # doctest: +SKIP
    """

    queries: int = 20_000
    source: nn.Module | None = field(default=None, repr=False, compare=False)
    follows: bool = True
    candidates: int = 128

    def __post_init__(self) -> None:
        """Refuses a search that asks nothing."""
        if self.queries < 1:
            raise ValueError(f"Flips needs at least 1 query, got {self.queries}")

    @property
    def name(self) -> str:
        """As reports have it."""
        return f"flips{self.queries}"

    @property
    def starts(self) -> tuple[str, ...]:
        """Those of ``STARTS`` that this model allows."""
        possible = (start for start in STARTS if start != "source" or self.source is not None)
        if self.follows:
            return tuple(possible)
        return tuple(dict.fromkeys(start if start in ("source", *GRADIENT_FREE) else "own" for start in possible))

    def __call__(self, victim: Victim, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which samples fell, (B,) bool, and their adversarial images (B, C, H, W) (for others the clean image)."""
        fell = torch.zeros(len(batch), dtype=torch.bool, device=batch.images.device)
        adversarial, generators = batch.images.clone(), batch.generators()
        left, queries = list(range(len(batch))), [self.queries] * len(batch)
        for start in cycle(self.starts):
            left = [row for row in left if not fell[row] and queries[row] > 0]
            if not left:
                return fell, adversarial
            if not (rows := [row for row in left if queries[row] > _cost(start)]):
                continue
            part, mine = batch.rows(torch.tensor(rows, device=fell.device)), [generators[row] for row in rows]
            x = self._start(start, victim, part, mine)
            found = self._search(victim, part, x, [queries[row] - _cost(start) for row in rows])
            for row, (remain, image) in zip(rows, found, strict=True):
                queries[row] = remain
                if image is not None:
                    fell[row], adversarial[row] = True, image

    def _search(self, victim: Victim, batch: Batch, x: Tensor, queries: list[int]) -> list[tuple[int, Tensor | None]]:
        """From a start of each sample, all in step: the questions that are left, and what fooled the victim."""
        searches = [
            _greedy(start, image, batch.eps, self.candidates) for start, image in zip(x, batch.images, strict=True)
        ]
        wants: dict[int, Request] = {row: next(search) for row, search in enumerate(searches) if queries[row] > 0}
        fooled: dict[int, Tensor] = {}
        last, ways = x.clone(), [self._direction(victim, way) for way in self._ways]
        while wants:
            answers: dict[int, Tensor] = {}
            if blind := [row for row, want in wants.items() if want is None]:
                at, own = last[blind], batch.labels[blind]
                answers |= zip(blind, torch.stack([way(at, own) for way in ways], 1), strict=True)
            asked = {row: want[: queries[row]] for row, want in wants.items() if want is not None}
            if asked:
                whose = torch.cat([batch.labels[row].expand(len(images)) for row, images in asked.items()])
                found, wrong = margins(victim, torch.cat(list(asked.values())), whose)
                sizes = [len(images) for images in asked.values()]
                for row, told, down in zip(asked, found.split(sizes), wrong.split(sizes), strict=True):
                    answers[row] = told
                    if down.any():
                        fooled[row] = asked[row][int(down.long().argmax())]
            for row, answer in answers.items():
                want = wants.pop(row)
                queries[row] -= A_GRADIENT * len(ways) if want is None else len(answer)
                if row not in fooled and queries[row] > 0 and (want is None or len(answer) == len(want)):
                    with suppress(StopIteration):
                        wants[row] = searches[row].send(answer)
        return [(queries[row], fooled.get(row)) for row in range(len(batch))]

    @property
    def _ways(self) -> tuple[str, ...]:
        """Starts that follow a gradient, each once: what ranks changes."""
        return tuple(dict.fromkeys(start for start in self.starts if start not in GRADIENT_FREE))

    def _direction(self, victim: Victim, start: str) -> Direction:
        """The gradient of the cross-entropy that a start follows."""
        if start == "source" and self.source is not None:
            network = self.source

            def on_source(x: Tensor, labels: Tensor) -> Tensor:
                return input_gradient(network, x, lambda logits: LOSSES["ce"](logits, labels))[0]

            return on_source
        mode: BackwardMode | None = None if start == "own" else parse_mode(start)
        memory, under = State(), victim.under(mode)

        def on_victim(x: Tensor, labels: Tensor) -> Tensor:
            if any(len(rows) != len(x) for rows in memory.values()):
                memory.clear()
            return under.gradient(x, labels, LOSSES["ce"], labels, memory)[0]

        return on_victim

    def _start(self, start: str, victim: Victim, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
        """Points to search from, (B, C, H, W)."""
        images, eps = batch.images, batch.eps
        draws = [torch.rand(images.shape[1:], generator=generator) for generator in generators]
        noise = 2 * torch.stack(draws).to(images) - 1
        if start == "random":
            return project(images + eps * noise.sign(), images, eps)
        steps, size = STEPS, SIZE
        if start == "nes":
            steps, size = NES_STEPS, 2 * SIZE
            direction = _estimated(victim, eps, generators)
        else:
            direction = self._direction(victim, start)
        x, momentum = project(images + eps * noise, images, eps), torch.zeros_like(images)
        for _ in range(steps):
            gradient = direction(x, batch.labels)
            scale = gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
            momentum = DECAY * momentum + gradient / scale
            x = project(x + size * eps * momentum.sign(), images, eps)
        return x


def _cost(start: str) -> int:
    """Questions that a start counts for."""
    return {"random": 0, "nes": NES_STEPS * 2 * NES_PAIRS}.get(start, STEPS * A_GRADIENT)


def _estimated(victim: Victim, eps: float, generators: Sequence[torch.Generator]) -> Direction:
    """The gradient of minus the margin, estimated from pairs of questions."""

    def direction(x: Tensor, labels: Tensor) -> Tensor:
        shape = (NES_PAIRS, *x.shape[1:])
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(x)
        shift = NES_SIGMA * eps * noise
        asked = torch.cat([x[:, None] + shift, x[:, None] - shift], 1).clamp(0.0, 1.0)
        answers = margins(victim, asked.flatten(0, 1), labels.repeat_interleave(2 * NES_PAIRS))[0]
        up, down = answers.unflatten(0, (len(x), 2, NES_PAIRS)).unbind(1)
        return ((down - up)[..., None, None, None] * noise).mean(1)

    return direction


Request = Tensor | None
"""Images (n, C, H, W) to be told the margins of, or nothing: then directions are wanted."""

Change = tuple[int, int, int, int]
"""An end of the interval (0 or 1), a channel, and the row and column of a block."""


def _greedy(x: Tensor, image: Tensor, eps: float, limit: int) -> Generator[Request, Tensor, None]:
    """The greedy search of one sample, until it is stuck: it yields requests and is sent answers.

    Args:
        x: Start, (C, H, W).
        image: Clean, (C, H, W).
        eps: Radius.
        limit: Changes tried in a round, at most.
    """
    ends = torch.stack([project(image - eps, image, eps), project(image + eps, image, eps)])
    side = max(image.shape[-1] // 8, 1) if 2 * image.numel() > limit else 1
    margin = (yield x[None]).item()
    while True:
        changes = _changes(x, ends, side)
        if len(changes) > limit:
            directions = yield None
            changes = _ranked(changes, directions, ends - x, side, limit)
        trials = [_changed(x, ends, [change], side) for change in changes]
        answers = (yield torch.stack(trials)).tolist() if trials else []
        order = sorted(range(len(changes)), key=answers.__getitem__)
        best = list({changes[at][1:]: changes[at] for at in reversed(order)}.values())[::-1]  # one for each block
        several = [best[:many] for many in TOGETHER if 1 < many <= len(best)]
        if several:
            trials += [_changed(x, ends, together, side) for together in several]
            answers += (yield torch.stack(trials[len(changes) :])).tolist()
        least = min(range(len(trials)), key=answers.__getitem__, default=None)
        if least is not None and answers[least] < margin:
            x, margin = trials[least], answers[least]
        elif side > 1:
            side //= 2
        else:
            return


def _changes(x: Tensor, ends: Tensor, side: int) -> list[Change]:
    """Those that would change anything."""
    differs = F.max_pool2d((ends != x).to(x), side, ceil_mode=True)
    return [tuple(change) for change in differs.nonzero().tolist()]


def _changed(x: Tensor, ends: Tensor, changes: Sequence[Change], side: int) -> Tensor:
    """The image (C, H, W) after these changes."""
    x = x.clone()
    for end, channel, row, column in changes:
        at = channel, slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
        x[at] = ends[end][at]
    return x


def _ranked(changes: Sequence[Change], directions: Tensor, moves: Tensor, side: int, limit: int) -> list[Change]:
    """As many as the limit of those that directions (n, C, H, W) expect most of, of each about as many."""
    gains = F.avg_pool2d((directions[:, None] * moves).flatten(0, 1), side, ceil_mode=True, divisor_override=1)
    gains = gains.unflatten(0, (len(directions), 2))
    at = torch.tensor(changes, device=gains.device)
    orders = gains[:, at[:, 0], at[:, 1], at[:, 2], at[:, 3]].argsort(dim=1, descending=True, stable=True)
    return [changes[number] for number in dict.fromkeys(orders.T.flatten().tolist())][:limit]
