"""Sanity flags: signs that a robust accuracy should not be believed, each computed and each with what to do.

The first four look at the model itself, the others at what attacks did to it.

Source:
    Carlini et al., "On Evaluating Adversarial Robustness", 2019, section 3; Croce et al., "Evaluating the Adversarial
    Robustness of Adaptive Test-time Defenses", ICML 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from rsnn_zoo.attacks.base import Victim
from rsnn_zoo.attacks.gradients import LOSSES
from rsnn_zoo.attacks.victim import passes_of
from rsnn_zoo.neurons import BackwardMode, Relu
from rsnn_zoo.report import STANDS, Flag, Run, wilson

__all__ = [
    "FAR",
    "GRADIENT_FREE",
    "MESSAGES",
    "above_chance",
    "gradient_free",
    "ignores_input",
    "more_eps",
    "more_steps",
    "normalisation_outside",
    "random_model",
    "zero_gradients",
]

FAR = 64 / 255
"""A radius at which no classifier of natural images should be better than chance."""

_LIBRARY = tuple(f"torchattacks.{name}" for name in ("Square", "SPSA", "OnePixel", "Pixle", "GN"))
GRADIENT_FREE = ("square", "rays", "gaussian", "uniform", "transfer", *_LIBRARY)
"""What the names of attacks begin with that follow no gradient of the model."""

ZEROS = 0.1
"""Share of zeros in the input gradient that is still ordinary."""

MESSAGES = {
    "random_model": "{:.0%} of the images get other logits at a second pass: the model is random, or keeps a state. "
    "Gradients are means over {draws} draws (EOT), verdicts over {passes}, and a few will differ next time. "
    "Fix its randomness, reset its state in each forward pass, or raise draws until the accuracy stays.",
    "ignores_input": "{:.0%} of the images get the logits of the first one: the model does not look at its input. "
    "Check that forward() uses its argument, and that the state of a spiking model is reset.",
    "normalisation_outside": "accuracy rises by {:.0%} on normalised images: the model expects them, so the numbers "
    "are not its own. Put the normalisation inside: the model is to take images in [0, 1].",
    "zero_gradients": "at least {:.0%} of the input gradient is exactly zero under each mode: gradient attacks are "
    "blind there. Attack a smooth stand-in of what stands in front, and trust gradient-free attacks only.",
    "above_chance": "{:.0%} stand at eps 64/255, above chance ({chance:.0%}), where a human sees little: unless the "
    "images are nearly black and white, the attack fails. Use a stronger protocol, such as worst-case.",
    "gradient_free": "{:.0f} samples fell to an attack without gradients and to no gradient attack: gradients "
    "mislead. Add backward modes or restarts, and quote the accuracy under worst-case.",
    "more_eps": "robust accuracy rises by {:.1%} with a larger radius: the attack is far from its optimum. Use more "
    "steps, restarts or modes.",
    "more_steps": "robust accuracy rises by {:.1%} with more steps: the attack is far from its optimum. "
    "Use more restarts or modes.",
}
"""What each flag says where it is raised, given its value."""


def _flag(name: str, raised: bool, value: float, **more: float) -> Flag:
    return Flag(name, raised, value, MESSAGES[name].format(value, **more) if raised else "")


def random_model(victim: Victim, images: Tensor, draws: int) -> Flag:
    """Whether two passes of the same images (B, C, H, W) give other logits; ``draws`` is what is then averaged."""
    first, second = victim.logits(images), victim.logits(images)
    share = (~torch.isclose(first, second, rtol=1e-4, atol=1e-5, equal_nan=True).all(1)).double().mean().item()
    return _flag("random_model", share > 0, share, draws=draws, passes=passes_of(draws))


def ignores_input(logits: Tensor) -> Flag:
    """Whether all of several images have the same logits (B, K)."""
    share = torch.isclose(logits, logits[:1], rtol=1e-5, atol=1e-6).all(1).double().mean().item()
    return _flag("ignores_input", share == 1 and len(logits) > 1, share)


def normalisation_outside(
    victim: Victim, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Flag:
    """Whether the model classifies images (B, C, H, W) significantly better when they are normalised first.

    Tried are the statistics of the data, those of ImageNet, and [-1, 1]; significant are disjoint 95 % intervals.
    """
    statistics = [(tuple(mean), tuple(std)), ((0.5,), (0.5,))]
    if images.shape[1] == 3:
        statistics.append(((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    given = _right(victim, images, labels)
    best = 0
    for centre, spread in statistics:
        shift, scale = (images.new_tensor(values)[:, None, None] for values in (centre, spread))
        try:
            best = max(best, _right(victim, (images - shift) / scale, labels))
        except (ValueError, AssertionError):  # it checks its range: so it normalises by itself
            continue
    n = len(images)
    return _flag("normalisation_outside", wilson(best, n)[0] > wilson(given, n)[1], max(best - given, 0) / n)


def _right(victim: Victim, images: Tensor, labels: Tensor) -> int:
    return int((victim.logits(images).argmax(1) == labels).sum())


def zero_gradients(victim: Victim, images: Tensor, labels: Tensor, modes: Iterable[BackwardMode | None]) -> Flag:
    """How much of the input gradient is zero under the mode that has least of it.

    The ReLU stand-in is another network and says nothing of this one, unless it is all that there is.
    """
    own = [mode for mode in dict.fromkeys(modes) if not isinstance(mode, Relu)] or [Relu()]
    gradients = (victim.under(mode).gradient(images, labels, LOSSES["ce"], labels, {})[0] for mode in own)
    share = min((gradient == 0).double().mean().item() for gradient in gradients)
    return _flag("zero_gradients", share > ZEROS, share)


def above_chance(standing: float, classes: int) -> Flag:
    """Whether more than chance stand at the radius ``FAR``, given their share."""
    return _flag("above_chance", standing > 1 / classes, standing, chance=1 / classes)


def gradient_free(runs: Iterable[Run], also: int = 0) -> Flag:
    """How many samples fell to an attack without gradients and, at the same radius, to no gradient attack.

    Only samples count that have met all gradient attacks of some run.

    Args:
        runs: The evaluation's.
        also: Samples that stood in them and then fell to such an attack.
    """
    radii: dict[float, list[Run]] = {}
    for run in runs:
        radii.setdefault(run.eps, []).append(run)
    return _flag("gradient_free", (found := also + sum(map(_without_gradients, radii.values()))) > 0, found)


def _without_gradients(runs: Sequence[Run]) -> int:
    """That number, of runs of the same samples at one radius."""
    follows = [[not attack.startswith(GRADIENT_FREE) for attack, _ in run.members] for run in runs]
    last = [max((number for number, follow in enumerate(each) if follow), default=None) for each in follows]
    count = 0
    for verdicts in zip(*(run.verdicts for run in runs), strict=True):
        met = any(n is not None and (v == STANDS or v > n) for v, n in zip(verdicts, last, strict=True))
        fell_to_gradients = [each[v] for v, each in zip(verdicts, follows, strict=True) if v >= 0]
        count += met and bool(fell_to_gradients) and not any(fell_to_gradients)
    return count


def more_eps(curves: Iterable[Sequence[float]]) -> Flag:
    """Whether more stand at a larger radius, given robust accuracies on the same samples in the order of radii."""
    rise = _rise(curves)
    return _flag("more_eps", rise > 0, rise)


def more_steps(curves: Iterable[Sequence[float]]) -> Flag:
    """Whether more stand after more steps, given robust accuracies on the same samples in the order of steps."""
    rise = _rise(curves)
    return _flag("more_steps", rise > 0, rise)


def _rise(curves: Iterable[Sequence[float]]) -> float:
    return max([0.0, *(after - before for curve in curves for before, after in combinations(curve, 2))])
