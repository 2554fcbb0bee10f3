"""Corner flips: greedy search for pixels to set to an end of their interval, where gradients no longer lead on.

What strong gradient attacks leave standing is often a few pixels away from falling, and no gradient says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle

import torch
from torch import Tensor, nn

from rsnn_zoo.attacks.base import Batch, State, Victim, project
from rsnn_zoo.attacks.gradients import InputGradient
from rsnn_zoo.attacks.greedy import greedy
from rsnn_zoo.attacks.guided import guided
from rsnn_zoo.attacks.losses import LOSSES
from rsnn_zoo.attacks.queries import margins
from rsnn_zoo.attacks.victim import default_chunk
from rsnn_zoo.neurons.modes import BackwardMode, parse_mode

__all__ = ["SEARCH_STARTS", "Flips"]

SEARCH_STARTS = ("source", "nes", "rate", "assg", "source", "pcw-1", "nes", "relu", "random")
"""Where searches start, over and over: at the end of PGD with momentum on the network that the model was converted
from, or under a backward mode; of a search with estimated gradients (NES); at a random corner."""

GRADIENT_FREE_STARTS = ("nes", "random")

GUIDES = ("source", "pcw-1", "rate", "hart-1", "exp_d-1")
"""Whose gradients say what to try where there are too many pixels to try each."""

FEW_CHANGES = 128
"""Changes in a round, at most, where each pixel is tried at both ends; larger images are searched by masks."""

GIVE_UP = {300: 0.4, 600: 0.3, 1200: 0.2}
SLOW = 0.1
"""After so many questions about masks a sample gives up whose least margin is above that share of its clean one, and
fell by less than a tenth of it over the last half of them; chosen on validation images of CIFAR-10."""

KICKS, KICKED = 8, 8
"""Searches from the best point so far after each start, and how many pixels are set at random before it, at most."""

STEPS, DECAY, SIZE = 30, 0.9, 0.125
"""Of PGD in the starts: steps, momentum, and their size in units of eps."""

NES_STEPS, NES_PAIRS, NES_SIGMA = 20, 24, 0.5
"""Of NES in the starts: steps, pairs of questions for each, and how far apart these are, in units of eps."""

A_GRADIENT = 3
"""Questions that a gradient counts for."""

Direction = Callable[[Tensor, Tensor], Tensor]
"""Iterates (B, C, H, W) and labels (B,) to what raises the loss, shaped as the iterates."""


@dataclass
class _Sample:
    """One image that is searched around."""

    row: int
    queries: int
    generator: torch.Generator
    clean: float | None = None
    """The clean margin, where it is to be given up if it stays far from falling."""
    asked: int = 0
    searched: int = 0
    """Questions of searches, without those of starts."""
    least: float = math.inf
    """Margin of all that searches asked about."""
    past: dict[int, float] = field(default_factory=dict)
    """The least margin after some numbers of questions."""
    margin: float = math.inf
    best: Tensor | None = None
    """Where a search found the least margin and got stuck, (C, H, W)."""
    fooled: Tensor | None = None
    """What the victim misclassifies."""

    @property
    def left(self) -> int:
        """Questions."""
        return self.queries - self.asked

    def wants(self, questions: int = 0) -> bool:
        """Whether to go on, for more than so many questions."""
        return self.fooled is None and self.left > questions and not self.is_far

    @property
    def is_far(self) -> bool:
        """Whether to give it up: see ``GIVE_UP``."""
        reached = [asked for asked in GIVE_UP if asked in self.past] if self.clean is not None else []
        return any(
            self.past[asked] > GIVE_UP[asked] * self.clean
            and self.past[asked // 2] - self.past[asked] < SLOW * self.clean
            for asked in reached
        )

    def heard(self, margins: Tensor) -> None:
        """Takes note of answers, (n,)."""
        self.searched += len(margins)
        self.least = min(self.least, margins.min().item())
        for asked in (each for far in GIVE_UP for each in (far // 2, far)):
            if self.searched >= asked:
                self.past.setdefault(asked, self.least)

    def kicked(self, image: Tensor, eps: float) -> Tensor:
        """The best point with some pixels at random ends of their intervals."""
        most = min(KICKED, image.numel())
        many = int(torch.randint(min(2, most), most + 1, (), generator=self.generator))
        at = torch.randperm(image.numel(), generator=self.generator)[:many].to(image.device)
        signs = 2.0 * torch.randint(2, (many,), generator=self.generator).to(image) - 1
        x = image.clone() if self.best is None else self.best.clone()
        x.view(-1)[at] = image.flatten()[at] + eps * signs
        return project(x, image, eps)


@dataclass(frozen=True)
class Flips:
    """Greedy search over the ends of the pixels' intervals, from many starts; it asks for margins.

    From a start, the margin of every single pixel at either end of its interval; then the best 1, 2, 3, 4, 6, 8, 12 or
    16 of these changes together, kept where the margin falls; until stuck. Then, some times, again from the best point
    so far with up to 8 pixels set at random, and then the next of ``SEARCH_STARTS``. Where an image has more pixels
    than half of ``FEW_CHANGES``, a round asks about masks in place of single pixels: shares of the pixels, drawn at
    random, are set to the ends that the gradient of the margin speaks for, with momentum, of each of ``GUIDES`` in turn
    (:func:`rsnn_zoo.attacks.guided.guided`).

    Each sample searches by itself, with a generator of its own.

    Attributes:
        queries: Questions a sample, at most; a gradient counts for three.
        source: The network that the model was converted from, where it is known; else the starts on it are left out.
        follows: Whether the model's neurons follow backward modes; else the model's own gradient stands for all.
        kicks: Searches from the best point so far, after each start.

    Raises:
        ValueError: For less than one query.

    Example:
        >>> fell, adversarial = Flips(20_000, source=ann)(victim, batch)  # doctest: +SKIP
    """

    queries: int = 20_000
    source: nn.Module | None = field(default=None, repr=False, compare=False)
    follows: bool = True
    kicks: int = KICKS

    def __post_init__(self) -> None:
        """Refuses a search that asks nothing."""
        if self.queries < 1:
            raise ValueError(f"Flips needs at least 1 query, got {self.queries}")

    @property
    def name(self) -> str:
        """The attack's name as reports give it."""
        return f"flips{self.queries}"

    @property
    def starts(self) -> tuple[str, ...]:
        """The names in ``SEARCH_STARTS`` that this model allows."""
        possible = self._known(SEARCH_STARTS)
        if self.follows:
            return tuple(possible)
        kept = "source", *GRADIENT_FREE_STARTS
        return tuple(dict.fromkeys(start if start in kept else "own" for start in possible))

    def __call__(self, victim: Victim, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which samples fell, (B,) bool, and their adversarial images (B, C, H, W) (for others the clean image)."""
        each = [_Sample(row, self.queries, generator) for row, generator in enumerate(batch.generators())]
        if _by_masks(batch.images):
            for sample, margin in zip(each, margins(victim, batch.images, batch.labels)[0].tolist(), strict=True):
                sample.asked, sample.clean = 1, margin
        ways = [self._direction(victim, way, "margin") for way in self.guides]
        for start in cycle(self.starts):  # one of which costs nothing
            if not any(sample.wants() for sample in each):
                break
            if some := [sample for sample in each if sample.wants(_cost(start))]:
                part = batch.rows(_row_numbers(some, batch))
                x = self._start(start, victim, part, [sample.generator for sample in some])
                for sample in some:
                    sample.asked += _cost(start)
                self._search(victim, part, x, some, ways)
            for _ in range(self.kicks):
                if some := [sample for sample in each if sample.wants() and sample.best is not None]:
                    part = batch.rows(_row_numbers(some, batch))
                    kicked = [one.kicked(image, batch.eps) for one, image in zip(some, part.images, strict=True)]
                    self._search(victim, part, torch.stack(kicked), some, ways)
        fell, adversarial = torch.zeros_like(batch.labels, dtype=torch.bool), batch.images.clone()
        for sample in each:
            if sample.fooled is not None:
                fell[sample.row], adversarial[sample.row] = True, sample.fooled
        return fell, adversarial

    def _search(
        self, victim: Victim, batch: Batch, x: Tensor, samples: Sequence[_Sample], ways: Sequence[Direction]
    ) -> None:
        """Climb from a start of each sample, all in step, until each is stuck, has fallen or has no question left."""
        masks = _by_masks(batch.images)
        searches = [
            guided(start, image, batch.eps, sample.generator) if masks else greedy(start, image, batch.eps)
            for start, image, sample in zip(x, batch.images, samples, strict=True)
        ]
        wants = {row: next(search) for row, search in enumerate(searches) if samples[row].wants()}
        while wants:
            # the questions of all samples in one batch: each alone has too few to fill a pass
            asked = {row: want.images[: samples[row].left] for row, want in wants.items() if not want.rank}
            answers = _ranked_by(ways, {row: want.images for row, want in wants.items() if want.rank}, batch.labels)
            if asked:
                whose = torch.cat([batch.labels[row].expand(len(images)) for row, images in asked.items()])
                found, wrong = margins(victim, torch.cat(list(asked.values())), whose)
                sizes = [len(images) for images in asked.values()]
                for row, told, down in zip(asked, found.split(sizes), wrong.split(sizes), strict=True):
                    answers[row] = told
                    samples[row].heard(told)
                    if down.any():
                        samples[row].fooled = asked[row][int(down.long().argmax())]
            for row, answer in answers.items():
                want, sample = wants.pop(row), samples[row]
                sample.asked += A_GRADIENT * len(ways) if want.rank else len(answer)
                if sample.wants() and (want.rank or len(answer) == len(want.images)):
                    try:
                        wants[row] = searches[row].send(answer)
                    except StopIteration as stuck:
                        margin, where = stuck.value
                        if margin <= sample.margin:
                            sample.margin, sample.best = margin, where

    @property
    def guides(self) -> tuple[str, ...]:
        """Whose gradients guide masks: those of ``GUIDES`` that this model allows."""
        return tuple(dict.fromkeys(way if self.follows or way == "source" else "own" for way in self._known(GUIDES)))

    def _known(self, ways: Sequence[str]) -> list[str]:
        return [way for way in ways if way != "source" or self.source is not None]

    def _direction(self, victim: Victim, start: str, loss: str = "ce", memory: State | None = None) -> Direction:
        """The gradient that a start or a mask follows; the memory is of the samples that it is handed."""
        if start == "source" and self.source is not None:
            gradients: list[InputGradient] = []  # one, once it is known where and of what

            def on_source(x: Tensor, labels: Tensor) -> Tensor:
                if not gradients:
                    gradients.append(InputGradient(self.source, chunk=default_chunk(x), pad=True))
                    gradients[0].model.to(x.device)
                return gradients[0](x, labels, LOSSES[loss])[0]

            return on_source
        mode: BackwardMode | None = None if start == "own" else parse_mode(start)
        under = victim.under(mode)

        def on_victim(x: Tensor, labels: Tensor) -> Tensor:
            return under.gradient(x, labels, LOSSES[loss], labels, {} if memory is None else memory)[0]

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
            direction = _nes_gradient(victim, eps, generators)
        else:
            direction = self._direction(victim, start, memory=State())
        x, momentum = project(images + eps * noise, images, eps), torch.zeros_like(images)
        for _ in range(steps):
            gradient = direction(x, batch.labels)
            scale = gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
            momentum = DECAY * momentum + gradient / scale
            x = project(x + size * eps * momentum.sign(), images, eps)
        return x


def _by_masks(images: Tensor) -> bool:
    """Whether images (B, C, H, W) have too many pixels to try each."""
    return len(images) > 0 and 2 * images[0].numel() > FEW_CHANGES


def _row_numbers(samples: Sequence[_Sample], batch: Batch) -> Tensor:
    return torch.tensor([sample.row for sample in samples], device=batch.labels.device)


def _ranked_by(ways: Sequence[Direction], wanted: dict[int, Tensor], labels: Tensor) -> dict[int, Tensor]:
    """Directions at images (1, C, H, W) by their row, each (n, C, H, W)."""
    if not wanted:
        return {}
    x, own = torch.cat(list(wanted.values())), labels[list(wanted)]
    return dict(zip(wanted, torch.stack([way(x, own) for way in ways], 1), strict=True))


def _cost(start: str) -> int:
    """Questions that a start counts for."""
    return {"random": 0, "nes": NES_STEPS * 2 * NES_PAIRS}.get(start, STEPS * A_GRADIENT)


def _nes_gradient(victim: Victim, eps: float, generators: Sequence[torch.Generator]) -> Direction:
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
