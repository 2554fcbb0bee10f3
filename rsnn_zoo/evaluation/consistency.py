"""Whether a model gives an image the same logits whenever, and in whatever way, it is asked.

An evaluation takes it for granted that a model is a function of the image. One that is not can look robust: it may
remember what it was asked, count or time its calls, look at the size of the batch or at an image's place in it, at
whether gradients are wanted, at who asks, or at whether an image is one that a camera could have taken.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from rsnn_zoo.attacks.base import project
from rsnn_zoo.attacks.gradients import checked_logits, input_gradient
from rsnn_zoo.attacks.victim import ModelVictim
from rsnn_zoo.evaluation.witness import Witness
from rsnn_zoo.report.report import wilson

__all__ = ["IMAGES", "TOLERATED", "Consistency"]

IMAGES = 12
"""Images that are asked about, each clean and perturbed, and as many others that nobody has seen."""
TOLERATED = 0.25
"""Share of images whose logits may differ: a library may round otherwise, and spikes hang on roundings."""
OTHERWISE = 0.02
"""Share of what was asked that may be of another class in another process, where each answer is computed the same way:
who remembers need not change more answers than those that would be wrong."""
LEAST = 8 / 255
"""Radius of the perturbation at least: at less, every spike of an image may well stay."""
ALONE = 3
"""One in so many of them is asked about alone, which takes longest."""
PAIRS = 16
"""Images of which it is told whether answers follow the last bits, or what was asked before."""
SPANS = (0.6, 1.2, 2.4)
"""Distances from an image, in radii, at which one that remembers may still take others for it."""
ODDS = 5e-4
"""The probability of as one-sided a comparison of pairs at which luck is no longer believed (sign test)."""
FACTOR = 1.2
"""And by how much the one side is to be farther than the other."""


class Consistency:
    """Asks a model about the same images at the start of an evaluation and, in many ways, at its end.

    Args:
        model: Never asked itself in this process: copies of it are, one of them for the first time at the end; and it
            is in a fork of this process, see :mod:`.witness`.
        victim: The copy that is attacked, before it is asked anything else.
        images: (B, C, H, W) in [0, 1]; the first are taken.
        eps: The largest radius of the evaluation.

    Example:
        >>> asked = Consistency(model, victim, images, 8 / 255)  # doctest: +SKIP
        >>> attack(victim, batch)  # doctest: +SKIP
        >>> asked.again()  # doctest: +SKIP
        {'at the end': 0.0, 'the first time': 0.0, 'alone': 0.0, ...}
    """

    def __init__(self, model: nn.Module, victim: ModelVictim, images: Tensor, eps: float):
        self.model, self.victim = model, victim
        possible = Witness.possible(images.device)
        self.witness = Witness(lambda x: self._ask(model.eval(), x)) if possible else None  # before anything is asked
        self.radius = max(eps, LEAST)
        self.generator = torch.Generator().manual_seed(0)
        self.images = images[:PAIRS]
        clean = torch.cat([unseen(images[:IMAGES], 1, 1), images[:IMAGES]])
        # the clean ones last, and off the grid of 8 bits: who remembers clean images takes the perturbed for them later
        self.asked = torch.cat([self._near(clean, 0.8), clean])
        self.before = victim.logits(self.asked)

    def _near(self, images: Tensor, least: float) -> Tensor:
        """Images moved by ``least`` to all of the radius in each pixel."""
        noise = 2 * torch.rand(images.shape, generator=self.generator).to(images) - 1
        size = least + (1 - least) * noise.abs()
        return project(images + self.radius * size * noise.sign(), images, self.radius)

    def again(self) -> dict[str, float]:
        """Share of the images with another answer than at the start, by way of asking.

        The last ones are no such shares, but that of the images whose logits a perturbation leaves as they were, to the
        last bit; that of images whose class depends on whether pixels are multiples of 1 / 255; and 1 or 0 for
        whether logits follow such multiples, or those of which the images are, or what was asked before, or whether the
        copy is another model.
        """
        module, x, chunk = self.victim.module, self.asked, self.victim.chunk
        # nothing prepares these for attacks; the second is shown iterates alone, before it could remember anything else
        bare, other = (copy.deepcopy(self.model).eval() for _ in range(2))

        def transposed() -> Tensor:
            padded = torch.cat([x, x.new_zeros(-len(x) % chunk, *x.shape[1:])]).transpose(2, 3).contiguous()
            return torch.cat([bare(part) for part in padded.transpose(2, 3).split(chunk)])[: len(x)]

        ways: dict[str, Callable[[], Tensor]] = {
            "at the end": lambda: self.victim.logits(x),
            "the first time": lambda: self._ask(bare, x),
            "in another order": lambda: self.victim.logits(x.flip(0)).flip(0),
            "alone": lambda: torch.cat([module(one[None].clone()) for one in x[::ALONE]]),
            "in a batch of another size": lambda: module(torch.cat([x, x, x[:1]]))[: len(x)],
            "where gradients are wanted": lambda: input_gradient(module, x, lambda logits: logits.sum(1))[1],
            "in another memory layout": transposed,
            "in inference mode": lambda: _in_inference(self.model, x),
        }
        found = {}
        for way, again in ways.items():
            with torch.no_grad(), suppress(RuntimeError, ValueError):  # one batch size alone, as an export may have
                found[way] = self._apart(again(), ALONE if way == "alone" else 1)
        found |= self._heard(other)
        perturbed, clean = self.before.chunk(2)
        if len(clean) > 1 and not torch.equal(clean, clean[:1].expand_as(clean)):  # else it ignores its input
            found["like the clean image"] = _share((perturbed == clean).all(1))
        found["by the copy that is attacked"] = float(not _alike(bare, self.model))
        return found | self._written() | {"after another one like it": float(self._follows())}

    def _ask(self, network: nn.Module, x: Tensor) -> Tensor:
        """Answers of what nothing prepares for attacks, in padded chunks of the evaluation's size and layout."""
        layout = torch.channels_last if getattr(network, "channels_last", False) else torch.contiguous_format
        network, chunk = network.to(memory_format=layout), self.victim.chunk
        padded = torch.cat([x, x.new_zeros(-len(x) % chunk, *x.shape[1:])])
        parts = [part.contiguous(memory_format=layout) for part in padded.split(chunk)]
        return torch.cat([checked_logits(network(part.clone()), part) for part in parts])[: len(x)]

    def _heard(self, other: nn.Module) -> dict[str, float]:
        """Shares of what was said to attacks that is said neither by another copy nor by the model elsewhere."""
        while_attacked, elsewhere = "than while it was attacked", "in a process that saw none of it"
        found, classes = {while_attacked: 0.0, elsewhere: 0.0}, []
        for iterates, said in [*self.victim.heard.by_asker().values(), (self.asked, self.before)]:
            started = time.perf_counter()
            with torch.no_grad():
                again = self._ask(other, iterates)
            found[while_attacked] = max(found[while_attacked], _apart(said, again))
            told = None
            try:
                told = self.witness.logits(iterates, time.perf_counter() - started) if self.witness else None
            except RuntimeError:  # it answers here alone
                found[elsewhere] = 1.0
            if told is not None:
                found[elsewhere] = max(found[elsewhere], _apart(said, told))
                classes += (said.argmax(1) != told.argmax(1)).tolist()
        if self.witness:
            self.witness.dismiss()
        if classes and wilson(sum(classes), len(classes))[0] > OTHERWISE:
            found[elsewhere] = 1.0
        return found

    def _apart(self, logits: Tensor, every: int) -> float:
        """Share of other logits, among the unseen images or the others, of every so many images."""
        unseen_ones = torch.arange(len(self.before), device=logits.device) % (len(self.before) // 2)
        unseen_ones = (unseen_ones < len(self.before) // 4)[::every]
        before = self.before[::every]
        return max(_apart(before[rows], logits[rows]) for rows in (unseen_ones, ~unseen_ones))

    def _written(self) -> dict[str, float]:
        """Whether the last bits count: where images are written in levels, and moved as far to the other side."""
        found = 0.0
        for levels in {255, _levels(self.images)}:
            between = self._near(self.images, 0.0)
            written = (between * levels).round() / levels
            here, there, mirrored = (self.victim.logits(x) for x in (between, written, 2 * between - written))
            follows = _farther((there - here).norm(dim=1), (mirrored - here).norm(dim=1), 2.0)
            apart = _share(here.argmax(1) != there.argmax(1)) if levels == 255 else 0.0  # others are farther apart
            found = max(found, apart, float(follows))
        return {"when written in the levels of the images": found}

    def _follows(self) -> bool:
        """Whether an image half-way between two is answered like the one that was asked about first.

        Who remembers, wherever, answers of what it takes for another image as it answered of that one. Each image and
        one near it come first and second as it comes, so to a function of the image both are the same.
        """
        for number, span in enumerate(SPANS):
            ends = unseen(self.images, number, -2 - number)
            inwards = torch.where(ends < 0.5, 2.0, -2.0) * span * self.radius
            there = (ends + inwards * (torch.rand(ends.shape, generator=self.generator) < 0.5).to(ends)).clamp(0, 1)
            swap = torch.arange(len(ends), device=ends.device) % 2 == 0
            swap = swap[:, None, None, None]
            first, last = torch.where(swap, there, ends), torch.where(swap, ends, there)
            one, half, other = (self.victim.logits(x) for x in (first, (first + last) / 2, last))
            if _farther((half - other).norm(dim=1), (half - one).norm(dim=1), FACTOR):
                return True
        return False


def _levels(images: Tensor) -> int:
    """The least number of steps from 0 to 1 in which all images are written; 255 where there is none below."""
    values = images.unique()[:4096]
    steps = (n for n in range(2, 255) if torch.allclose((values * n).round() / n, values, rtol=0.0, atol=1e-6))
    return next(steps, 255)


def unseen(images: Tensor, down: int, right: int) -> Tensor:
    """Images like those given (B, C, H, W), moved and mirrored: a model that knows images does not know these."""
    return images.flip(3).roll((down, right), (2, 3))


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two are of the same classes and hold the same tensors: a model may say itself what a copy of it is."""

    def classes(model: nn.Module) -> list[str]:
        return [type(module).__qualname__ for module in model.modules()]

    here, there = one.state_dict(), other.state_dict()
    tensors = [(here.get(name), tensor) for name, tensor in there.items() if isinstance(tensor, Tensor)]
    return classes(one) == classes(other) and all(
        isinstance(mine, Tensor) and mine.shape == its.shape and torch.allclose(mine, its, 0.0, 0.0, equal_nan=True)
        for mine, its in tensors
    )


def _in_inference(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        logits = copy.deepcopy(model).eval()(x.clone())
    return logits.clone()


def _farther(these: Tensor, those: Tensor, factor: float) -> bool:
    """Whether distances (B,) are longer than others, by more than luck and by a factor."""
    from scipy.stats import binomtest  # half a second, which not every import need wait for

    longer, shorter = int((these > those).sum()), int((these < those).sum())
    if not longer or these.sum() <= factor * those.sum():
        return False
    return bool(binomtest(longer, longer + shorter, alternative="greater").pvalue < ODDS)


def _apart(one: Tensor, other: Tensor) -> float:
    return _share(~torch.isclose(one, other.to(one), rtol=1e-3, atol=1e-4, equal_nan=True).all(1))


def _share(rows: Tensor) -> float:
    return rows.double().mean().item() if len(rows) else 0.0
