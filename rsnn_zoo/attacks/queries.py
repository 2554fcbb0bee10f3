"""Attacks that only ask the victim for answers: Square (scores), RayS (labels alone), and noise, the floor of them all.

None of them follows a gradient, so what they fell and gradient attacks do not shows that gradients were masked.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from rsnn_zoo.attacks.base import Batch, State, Victim, kept, per_image, project
from rsnn_zoo.attacks.losses import largest_other

__all__ = ["NOISES", "Noise", "QueryAttack", "RayS", "Square", "margins"]


def _sampled(
    sampler: Callable[..., Tensor], shape: Sequence[int], generators: Sequence[Generator], like: Tensor
) -> Tensor:
    """(B, *shape), each row from the generator of its sample."""
    return torch.stack([sampler(*shape, generator=generator) for generator in generators]).to(like)


def _signs(draws: Tensor) -> Tensor:
    return torch.where(draws < 0.5, -1.0, 1.0).to(draws)


@dataclass(frozen=True)
class QueryAttack(ABC):
    """An attack that asks one question a sample and round: subclasses say what to ask first, and what next.

    A sample that falls leaves at once. All samples ask together, each with state and generator of its own.

    Attributes:
        queries: Questions a sample, at most.
    """

    queries: int

    def __post_init__(self) -> None:
        """Refuse attacks that ask nothing."""
        if self.queries < 1:
            raise ValueError(f"{type(self).__name__} needs at least 1 query, got {self.queries}")

    @property
    @abstractmethod
    def name(self) -> str:
        """The attack's name as reports give it."""

    @abstractmethod
    def first(self, images: Tensor, eps: float, generators: Sequence[Generator]) -> State:
        """The images to ask about first, under ``"x"``, and what else is to be remembered of each sample."""

    @abstractmethod
    def step(
        self, k: int, state: State, answer: Tensor, images: Tensor, eps: float, generators: Sequence[Generator]
    ) -> State:
        """The state after question k (from 0), given the answers (B,) about its ``"x"``."""

    def ask(self, victim: Victim, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The answers that :meth:`step` is given, and which images the victim misclassifies; both (B,)."""
        wrong = victim.fallen(x, labels)
        return wrong, wrong

    def __call__(self, victim: Victim, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which samples fell, (B,) bool, and their adversarial images (B, C, H, W) (for others the clean image)."""
        clean, labels, generators = batch.images, batch.labels, batch.generators()
        adversarial = clean.clone()
        fell = torch.zeros(len(batch), dtype=torch.bool, device=clean.device)
        left = torch.arange(len(batch), device=clean.device)
        state = self.first(clean, batch.eps, generators)
        for k in range(self.queries):
            answer, wrong = self.ask(victim, state["x"], labels)
            # RayS also asks about images outside of the ball
            down = wrong & (state["x"] == project(state["x"], clean, batch.eps)).flatten(1).all(1)
            if down.any():
                fell[left[down]], adversarial[left[down]] = True, state["x"][down]
                keep = ~down
                left, clean, labels, answer = left[keep], clean[keep], labels[keep], answer[keep]
                state = kept(state, keep)
                generators = [each for each, stays in zip(generators, keep.tolist(), strict=True) if stays]
            if not len(left):
                break
            state = self.step(k, state, answer, clean, batch.eps, generators)
        return fell, adversarial


def margins(victim: Victim, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The margin, logit of the label minus the largest of the others, and which images have fallen; both (B,)."""
    logits, fallen = victim.answers(x, labels)
    return logits.gather(1, labels[:, None]).squeeze(1) - largest_other(logits, labels), fallen


# The share of the image that a square covers is p / divisor until a question, out of 10000: the paper's schedule.
_SCHEDULE = (
    (10, 1),
    (50, 2),
    (200, 4),
    (500, 8),
    (1000, 16),
    (2000, 32),
    (4000, 64),
    (6000, 128),
    (8000, 256),
    (10000, 512),
)


@dataclass(frozen=True)
class Square(QueryAttack):
    """Random search on the margin of the logits with squares that shrink, L-infinity.

    Attributes:
        queries: Questions a sample, at most.
        p: Share of the image that the first square covers, in (0, 1].

    Example:
        >>> fell, adversarial = Square(5000)(victim, batch)  # doctest: +SKIP

    Source:
        Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search",
        ECCV 2020, algorithms 1 and 2.
    """

    queries: int = 5000
    p: float = 0.8

    def __post_init__(self) -> None:
        """Refuse squares without area or beyond the image."""
        super().__post_init__()
        if not 0 < self.p <= 1:
            raise ValueError(f"p is a share of the image in (0, 1], got {self.p}")

    @property
    def name(self) -> str:
        """The attack's name as reports give it."""
        return f"square{self.queries}"

    def side(self, k: int, height: int, width: int) -> int:
        """Pixels along a side of the square of question k (from 0)."""
        divisor = next(divisor for until, divisor in _SCHEDULE if int(10000 * k / self.queries) <= until)
        return min(max(round(math.sqrt(self.p / divisor * height * width)), 1), height, width)

    def ask(self, victim: Victim, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The margins, and which images are misclassified: see :func:`margins`."""
        return margins(victim, x, labels)

    def first(self, images: Tensor, eps: float, generators: Sequence[Generator]) -> State:
        """Vertical stripes of eps or -eps; nothing has been found yet, so its margin will be the best."""
        _, channels, _, width = images.shape
        x = project(images + eps * _signs(_sampled(torch.rand, (channels, 1, width), generators, images)), images, eps)
        return {"x": x, "best": images, "margin": images.new_full((len(images),), torch.inf)}

    def step(
        self, k: int, state: State, answer: Tensor, images: Tensor, eps: float, generators: Sequence[Generator]
    ) -> State:
        """Keeps what lowered the margin, and sets a square of it to eps or -eps."""
        better = answer < state["margin"]
        best = torch.where(per_image(better), state["x"], state["best"])
        _, channels, height, width = images.shape
        side = self.side(k, height, width)
        draws = _sampled(torch.rand, (2 + channels,), generators, images)
        square = (_span(draws[:, 0], side, height)[:, :, None] & _span(draws[:, 1], side, width)[:, None]).unsqueeze(1)
        shift = 2 * eps * square * _signs(draws[:, 2:, None, None])
        x = project(best + shift, images, eps)
        idle = (x == best).flatten(1).all(1)  # no question is spent on the same image again
        x[idle] = project(best[idle] - shift[idle], images[idle], eps)
        return {"x": x, "best": best, "margin": torch.where(better, answer, state["margin"])}


def _span(draw: Tensor, side: int, length: int) -> Tensor:
    """Which of ``length`` places are covered by ``side`` of them, beginning where a draw (B,) in [0, 1) says."""
    places = torch.arange(length, device=draw.device)
    begin = (draw * (length - side + 1)).long()[:, None]
    return (places >= begin) & (places < begin + side)


@dataclass(frozen=True)
class RayS(QueryAttack):
    """Search for the direction, out of all sign vectors, in which the boundary is nearest; it sees labels alone.

    Signs of ever smaller blocks are flipped; where the image at the smallest distance so far is still misclassified
    in the new direction, a binary search finds the new distance. When a whole round from the largest block to single
    pixels has gained nothing, which happens on small images, it begins again with random signs.

    Attributes:
        queries: Questions a sample, at most.
        tolerance: Of the distance, in units of pixels in [0, 1].

    Example:
        >>> fell, adversarial = RayS(5000)(victim, batch)  # doctest: +SKIP

    Source:
        Chen & Gu, "RayS: A Ray Searching Method for Hard-label Adversarial Attack", KDD 2020, algorithms 1 to 3.
    """

    queries: int = 5000
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse a binary search that would not end."""
        super().__post_init__()
        if self.tolerance <= 0:
            raise ValueError(f"tolerance must be above 0, got {self.tolerance}")

    @property
    def name(self) -> str:
        """The attack's name as reports give it."""
        return f"rays{self.queries}"

    def first(self, images: Tensor, eps: float, generators: Sequence[Generator]) -> State:
        """Start with all signs positive, at the largest distance that there is."""
        zero, one = images.new_zeros(len(images)), images.new_ones(len(images))
        level, no = zero.long(), zero.bool()
        best = {"signs": torch.ones_like(images), "near": one, "gained": no}
        return _ask(best | {"level": level, "block": level - 1, "low": zero, "high": one, "searching": no}, images)

    def step(
        self, k: int, state: State, answer: Tensor, images: Tensor, eps: float, generators: Sequence[Generator]
    ) -> State:
        """Narrows a search by the answer; where it is over, keeps a nearer boundary and turns to the next block."""
        searching, radius = state["searching"], state["radius"]
        low = torch.where(searching & ~answer, radius, state["low"])
        high = torch.where(answer, radius, state["high"])
        searching = (searching | answer) & (high - low > self.tolerance)
        nearer = ~searching & (high < state["near"])
        near = torch.where(nearer, high, state["near"])
        signs = torch.where(per_image(nearer), _flipped_block(state), state["signs"])
        gained = state["gained"] | nearer

        level, block, pixels = state["level"], state["block"] + (~searching).long(), images[0].numel()
        finer = block * _block_size(level, pixels) >= pixels
        level, block = level + finer.long(), torch.where(finer, 0, block)
        through = level > (pixels - 1).bit_length()
        level = torch.where(through, 0, level)
        stuck = through & ~gained
        for row in stuck.nonzero().flatten().tolist():
            signs[row] = _signs(_sampled(torch.rand, images.shape[1:], generators[row : row + 1], images))[0]
        near, block = torch.where(stuck, 1.0, near), torch.where(stuck, -1, block)
        low, high = torch.where(searching, low, 0.0), torch.where(searching, high, near)
        best = {"signs": signs, "near": near, "gained": gained & ~through}
        return _ask(best | {"level": level, "block": block, "low": low, "high": high, "searching": searching}, images)


def _block_size(level: Tensor, pixels: int) -> Tensor:
    """The size of the blocks that an image is cut into, 2^level at most."""
    blocks = 2**level
    return (pixels + blocks - 1) // blocks


def _flipped_block(state: State) -> Tensor:
    """The best signs so far with those of the current block flipped; of none in block -1."""
    signs = state["signs"].flatten(1)
    pixels = signs.shape[1]
    size, places = _block_size(state["level"], pixels), torch.arange(pixels, device=signs.device)
    flipped = places // size[:, None] == state["block"][:, None]
    return torch.where(flipped, -signs, signs).view_as(state["signs"])


def _ask(state: State, images: Tensor) -> State:
    """The question that follows: whether the bracket of a new direction holds at its far end, or its middle."""
    radius = torch.where(state["searching"], (state["low"] + state["high"]) / 2, state["near"])
    return state | {"radius": radius, "x": (images + per_image(radius) * _flipped_block(state)).clamp(0.0, 1.0)}


NOISES: dict[str, Callable[..., Tensor]] = {
    "uniform": lambda *shape, generator: 2 * torch.rand(*shape, generator=generator) - 1,
    "gaussian": torch.randn,
}
"""Noise in units of eps: uniform in the ball, or normal with standard deviation eps and clipped to the ball."""


@dataclass(frozen=True)
class Noise(QueryAttack):
    """Images at random in the ball: the floor that every attack must beat.

    Attributes:
        queries: Draws a sample.
        kind: One of ``NOISES``.

    Example:
        >>> fell, adversarial = Noise(100, "gaussian")(victim, batch)  # doctest: +SKIP
    """

    queries: int = 100
    kind: str = "uniform"

    def __post_init__(self) -> None:
        """Refuse unknown kinds."""
        super().__post_init__()
        if self.kind not in NOISES:
            raise ValueError(f"kind must be one of {', '.join(NOISES)}, got {self.kind!r}")

    @property
    def name(self) -> str:
        """The attack's name as reports give it."""
        return f"{self.kind}-noise{self.queries}"

    def first(self, images: Tensor, eps: float, generators: Sequence[Generator]) -> State:
        """The first draw."""
        return {
            "x": project(images + eps * _sampled(NOISES[self.kind], images.shape[1:], generators, images), images, eps)
        }

    def step(
        self, k: int, state: State, answer: Tensor, images: Tensor, eps: float, generators: Sequence[Generator]
    ) -> State:
        """Another draw."""
        return self.first(images, eps, generators)
