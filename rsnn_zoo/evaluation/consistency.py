"""Whether a model gives an image the same logits whenever, and in whatever way, it is asked.

An evaluation takes it for granted that a model is a function of the image. One that is not can look robust: it may
remember what it was asked, count or time its calls, look at the size of the batch or at an image's place in it, at
whether gradients are wanted, or at whether an image is one that a camera could have taken.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from rsnn_zoo.attacks.base import project
from rsnn_zoo.attacks.gradients import input_gradient
from rsnn_zoo.attacks.victim import ModelVictim

__all__ = ["IMAGES", "TOLERATED", "Consistency"]

IMAGES = 12
"""Images that are asked about, each clean and perturbed."""
TOLERATED = 0.25
"""Share of images whose logits may differ: a library may round otherwise, and spikes hang on roundings."""
LEAST = 8 / 255
"""Radius of the perturbation at least: at less, every spike of an image may well stay."""


class Consistency:
    """Asks a model about the same images at the start of an evaluation and, in many ways, at its end.

    Args:
        model: Never asked itself: copies of it are, one of them for the first time at the end.
        victim: The copy that is attacked.
        images: (B, C, H, W) in [0, 1]; the first are taken.
        eps: The largest radius of the evaluation.

    Example:
        >>> asked = Consistency(model, victim, images, 8 / 255)  # doctest: +SKIP
        >>> attack(victim, batch)  # doctest: +SKIP
        >>> asked.again()  # doctest: +SKIP
        {'at the end': 0.0, 'the first time': 0.0, 'alone': 0.0, ...}
    """

    def __init__(self, model: nn.Module, victim: ModelVictim, images: Tensor, eps: float):
        clean, radius = images[:IMAGES], max(eps, LEAST)
        generator = torch.Generator().manual_seed(0)
        noise = (2 * torch.rand(clean.shape, generator=generator) - 1).to(clean)
        self.model, self.victim = model, victim
        self.clean, self.perturbed = clean, project(clean + radius * noise.sign(), clean, radius)
        self.between = project(clean + radius * noise, clean, radius)
        self.asked = torch.cat([self.perturbed, self.clean])  # who remembers takes the clean ones for the others
        self.before = victim.logits(self.asked)

    def again(self) -> dict[str, float]:
        """Share of the images with another answer than at the start, by way of asking.

        Of the last two, it is the share whose logits a perturbation leaves as they were, to the last bit, and the share
        whose class depends on whether its pixels are multiples of 1 / 255.
        """
        module, x = self.victim.module, self.asked
        ways: dict[str, Callable[[], Tensor]] = {
            "at the end": lambda: self.victim.logits(x),
            "the first time": lambda: ModelVictim(self.model, self.victim.chunk).logits(x),
            "in another order": lambda: self.victim.logits(x.flip(0)).flip(0),
            "alone": lambda: torch.cat([module(one[None]) for one in x]),
            "in a batch of another size": lambda: module(torch.cat([x, x, x[:1]]))[: len(x)],
            "where gradients are wanted": lambda: input_gradient(module, x, lambda logits: logits.sum(1))[1],
        }
        found = {}
        for way, ask in ways.items():
            with torch.no_grad(), suppress(RuntimeError, ValueError):  # one batch size alone, as an export may have
                found[way] = _apart(self.before, ask())
        perturbed, clean = self.before.chunk(2)
        if len(clean) > 1 and not torch.equal(clean, clean[:1].expand_as(clean)):  # else it ignores its input
            found["like the clean image"] = _share((perturbed == clean).all(1))
        written = (self.between * 255).round() / 255
        classes = [self.victim.logits(each).argmax(1) for each in (self.between, written)]
        found["when written as 8 bits"] = _share(classes[0] != classes[1])
        return found


def _apart(one: Tensor, other: Tensor) -> float:
    return _share(~torch.isclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True).all(1))


def _share(rows: Tensor) -> float:
    return rows.double().mean().item()
