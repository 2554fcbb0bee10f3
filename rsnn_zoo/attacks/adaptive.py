"""The adaptive ensemble: steps go to the samples that are near to falling, under the modes that make them fall.

Most of what a fixed ensemble spends goes to samples that no member comes near to felling. Here all samples run a short
Auto-PGD; those that come near enough run one twice as long; those that come nearer still again twice as long ... Inside
a run a sample turns to the next (loss, backward mode) pair where its loss stalls. What is near, and the order of the
pairs, are learned on a pilot, the first samples of the data set: so a sample's fate depends on it and the pilot alone,
not on batches, processes or time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rsnn_zoo.attacks.apgd import APGD
from rsnn_zoo.attacks.base import Batch, State, Victim
from rsnn_zoo.attacks.losses import LOSSES
from rsnn_zoo.neurons.modes import BackwardMode

__all__ = ["PILOT", "Adaptive", "Pair", "Switching", "adaptive"]

PILOT = 64
"""Samples in the pilot."""
SECOND_ROUND_SHARE = 0.6
"""Of the samples that stand after the first round, those that go on to the second; to the third half as many ..."""
FEW = 8
"""Fewer margins tell nothing about how they are distributed."""
RACE_STEPS = 5
"""Gradient steps of each pair and sample where the order is learned."""

Pair = tuple[str, BackwardMode | None]
"""A loss of ``LOSSES``, and the backward mode under which it is differentiated."""


@dataclass(frozen=True)
class Switching(APGD):
    """Auto-PGD whose samples turn to the next pair whenever they halve their step size: where their loss stalls.

    After the last pair comes the first again. Progress is the margin, whatever the loss of the pair.

    Attributes:
        pairs: In the order in which samples take them.
    """

    objective: str = "margin"
    pairs: tuple[Pair, ...] = ()

    def first(self, victim: Victim, batch: Batch) -> State:
        """The first pair for all."""
        return super().first(victim, batch) | {"pair": torch.zeros_like(batch.labels)}

    def gradient(self, victim: Victim, state: State, labels: Tensor, memory: State) -> tuple[Tensor, Tensor, Tensor]:
        """A gradient pass for each pair, of the samples that are at it."""
        order = state["pair"].argsort(stable=True)
        counts = state["pair"].bincount(minlength=len(self.pairs)).tolist()
        found = [
            victim.under(mode).gradient(state["x"][rows], labels[rows], LOSSES[loss], labels[rows], {})
            for (loss, mode), rows in zip(self.pairs, order.split(counts), strict=True)
            if len(rows)
        ]
        gradient, logits, down = (torch.cat(parts)[order.argsort()] for parts in zip(*found, strict=True))
        return gradient, logits, down

    def step(self, k: int, state: State, gradient: Tensor, logits: Tensor, images: Tensor, eps: float) -> State:
        """A step of Auto-PGD; where it halved its size, the next pair."""
        after = super().step(k, state, gradient, logits, images, eps)
        stalled = (after["size"] < state["size"]).long()
        return after | {"pair": (state["pair"] + stalled) % len(self.pairs)}


@dataclass(frozen=True)
class Adaptive:
    """Rounds of :class:`Switching`, each of twice the steps for half of the samples; see :func:`adaptive`.

    Attributes:
        name: As reports have it.
        rounds: Gradient steps of each.
        pairs: Round k begins with the k-th.
        bars: After each round but the last, the largest best margin so far of a sample that goes on; without, all do.
    """

    name: str
    rounds: tuple[int, ...]
    pairs: tuple[Pair, ...]
    bars: tuple[float, ...] = ()

    least_classes = 3
    """For DLR."""

    @property
    def steps(self) -> int:
        """Gradient steps of a sample that runs all rounds."""
        return sum(self.rounds)

    def to_json(self) -> dict[str, Any]:
        """What a report keeps of it: a bar is None where all that stand go on."""
        pairs = [f"{loss}/{mode or 'own'}" for loss, mode in self.pairs]
        return {
            "rounds": list(self.rounds),
            "pairs": pairs,
            "bars": [None if math.isinf(bar) else bar for bar in self.bars],
        }

    def taught(self, known: Mapping[str, Any]) -> Adaptive:
        """The same with what :meth:`to_json` gave of one that has learned.

        Raises:
            ValueError: If it is nothing that this one could learn. Low bars could be, and make it weak.
        """
        pairs = {f"{loss}/{mode or 'own'}": (loss, mode) for loss, mode in self.pairs}
        try:
            rounds, order = tuple(known["rounds"]), tuple(pairs[name] for name in known["pairs"])
            bars = tuple(math.inf if bar is None else float(bar) for bar in known["bars"])
        except (LookupError, TypeError, ValueError):
            rounds = order = bars = ()
        if (rounds, order, bars) == (self._untold.rounds, self.pairs, ()):
            return self._untold
        complete = len(order) == len(pairs) and set(order) == set(self.pairs) and order[0] == self.pairs[0]
        # A bar below 0 is learned where gradients come with other logits than verdicts, in bfloat16 or of few draws.
        if rounds != self.rounds or not complete or len(bars) != len(rounds) - 1 or any(map(math.isnan, bars)):
            raise ValueError(f"{self.name} cannot have learned {known!r:.200}")
        return replace(self, pairs=order, bars=bars)

    @property
    def _untold(self) -> Adaptive:
        """The same where the pilot tells nothing."""
        return replace(self, rounds=self.rounds[:3], bars=())

    def learned(self, victim: Victim, pilot: Batch) -> Adaptive:
        """The same with the bars between its rounds and the order of its pairs learned on some samples.

        They run the rounds themselves. The bar after the first lets ``SECOND_ROUND_SHARE`` of those that stand then go
        on, that after the second half as many ... or all that still stand, where they are fewer. Those that go on after
        the first are raced for: each pair attacks them alone for five steps. The first pair stays the first. Then
        comes, one by one, the pair that together with those before it fells most of them; of equals, the one that
        leaves the smallest margins.

        Where fewer than eight stand after the first round, there is no telling who is near: all go on, to the third.

        Args:
            victim: The model under attack.
            pilot: The first samples of the data set that are classified correctly.
        """
        attack, bars = replace(self, bars=()), list[float]()
        left, nearest, stood = pilot, pilot.images.new_full((len(pilot),), torch.inf), 0
        for number in range(len(self.rounds) - 1):
            if len(left):
                down, _, margins = attack._round(number, victim, left)
                left, nearest = left.rows((~down).nonzero().flatten()), nearest[~down].minimum(margins)
            stood = stood or len(left)
            if stood < FEW:
                return self._untold
            going = math.ceil(SECOND_ROUND_SHARE * stood / 2**number)
            bars.append(nearest.sort().values[going - 1].item() if going < len(left) else torch.inf)
            near = nearest <= bars[-1]
            left, nearest = left.rows(near.nonzero().flatten()), nearest[near]
            if number == 0:
                attack = replace(attack, pairs=attack._raced(victim, left, nearest))
        return replace(attack, bars=tuple(bars))

    def _raced(self, victim: Victim, batch: Batch, margins: Tensor) -> tuple[Pair, ...]:
        """The pairs in the order of what they add, on samples that came to these margins under the first."""
        reached = {}
        for pair in self.pairs[1:]:
            runner = Switching("race", RACE_STEPS, pairs=(pair,))
            down, _, state = runner.search(victim, replace(batch, stream=f"race/{pair[0]}/{pair[1]}"))
            reached[pair] = torch.zeros_like(margins).masked_scatter(~down, -state["best_loss"])
        order = [self.pairs[0]]
        while reached:
            together = {pair: torch.minimum(margins, found) for pair, found in reached.items()}
            best = max(together, key=lambda pair: ((together[pair] <= 0).sum().item(), -together[pair].mean().item()))
            order.append(best)
            margins = together[best]
            del reached[best]
        return tuple(order)

    def _round(self, number: int, victim: Victim, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Which samples fell in a round, (B,), the images (B, C, H, W), and the best margins of those that stand."""
        turn = number % len(self.pairs)
        run = Switching(self.name, self.rounds[number], pairs=self.pairs[turn:] + self.pairs[:turn])
        down, images, state = run.search(victim, replace(batch, stream=f"{batch.stream}/{number}"))
        return down, images, -state["best_loss"]

    def __call__(self, victim: Victim, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which samples fell, (B,) bool, and their adversarial images (B, C, H, W) (for others the last tried)."""
        fell = torch.zeros_like(batch.labels, dtype=torch.bool)
        adversarial, left = batch.images.clone(), torch.arange(len(batch), device=fell.device)
        nearest = batch.images.new_full((len(batch),), torch.inf)
        for number, bar in enumerate((*self.bars, *[torch.inf] * (len(self.rounds) - len(self.bars)))):
            if not len(left):
                break
            down, adversarial[left], margins = self._round(number, victim, batch.rows(left))
            fell[left[down]] = True
            left = left[~down]
            nearest[left] = nearest[left].minimum(margins)
            left = left[nearest[left] <= bar]
        return fell, adversarial


def adaptive(steps: int, modes: tuple[BackwardMode | None, ...]) -> Adaptive:
    """The adaptive ensemble of both losses under these modes, in five rounds of together about ``steps`` steps.

    Raises:
        ValueError: For less than 31 steps: rounds of 1, 2, 4, 8 and 16.

    Example:
        >>> attack = adaptive(434, MODE_LISTS["adaptive"]).learned(victim, pilot)  # doctest: +SKIP
    """
    if steps < 31:
        raise ValueError(f"the adaptive ensemble needs at least 31 steps (rounds of 1, 2, 4, 8 and 16), got {steps}")
    rounds = tuple(steps // 31 * 2**number for number in range(5))
    return Adaptive(f"adaptive{steps}", rounds, tuple((loss, mode) for mode in modes for loss in ("ce", "dlr")))
