"""Sanity flags: signs that a robust accuracy should not be believed, each computed and each with what to do.

Some look at the model itself, the others at what attacks did to it.

Source:
    Carlini et al., "On Evaluating Adversarial Robustness", 2019, section 3; Croce et al., "Evaluating the Adversarial
    Robustness of Adaptive Test-time Defenses", ICML 2022.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from rsnn_zoo.attacks.base import Victim
from rsnn_zoo.attacks.losses import LOSSES
from rsnn_zoo.attacks.victim import passes_of
from rsnn_zoo.evaluation.consistency import TOLERATED
from rsnn_zoo.neurons.integrate_fire import BackwardMode, Relu
from rsnn_zoo.report.report import STANDS, Flag, Run, by_steps, wilson

__all__ = [
    "FAR",
    "GRADIENT_FREE",
    "MESSAGES",
    "above_chance",
    "depends_on_batch",
    "gradient_free",
    "hidden_margins",
    "ignores_input",
    "inconsistent",
    "knows_images",
    "more_eps",
    "more_steps",
    "normalisation_outside",
    "other_network",
    "random_model",
    "tied_logits",
    "zero_gradients",
]

FAR = 64 / 255
"""A radius at which no classifier of natural images should be better than chance."""

_LIBRARY = tuple(f"torchattacks.{name}" for name in ("Square", "SPSA", "OnePixel", "Pixle", "GN"))
GRADIENT_FREE = ("square", "rays", "gaussian", "uniform", "transfer", *_LIBRARY)
"""What the names of attacks begin with that follow no gradient of the model."""

ZEROS = 0.1
"""Share of zeros in the input gradient that is still ordinary."""
TIES = 0.01
"""Share of images with tied logits that is still ordinary."""
KNOWN = 0.4
"""How many more of the images may withstand PGD than of the same images moved a little, as a share: up to 0.2 do of
ordinary networks of the digits at 32/255, none at 8/255, and 0.7 of one that knew them."""
EDGE = 0.8
"""How large margins may be just before the class changes, as a share of those of the images: up to 0.04 in published
ANNs, up to 0.5 in published SNNs, and 1 where logits say the class alone."""
LINES, BISECTIONS = 32, 7
"""Lines between images of two classes on which the change is sought, and halvings of each: up to a step of an attack
from it, since margins may vanish in a seam that no attack steps into."""
CONTRADICTED = 0.02
"""Share of standing iterates in which the exact network may contradict the folded one: spikes hang on roundings."""
LUCK = 0.05
"""An attack with more steps, or a larger radius, starts elsewhere, so a few samples may stand there by luck: the
probability of as many at which that is no longer believed (sign test)."""

Stands = Sequence[bool]
"""Of each sample whether it stands."""

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
    "depends_on_batch": "{:.0%} of the images get other logits in other company: the model computes across the batch, "
    "so verdicts depend on which images are attacked together. Let batch norms use running statistics.",
    "inconsistent": "{:.0%} of the images get other logits {how}: the model is not a function of the image, so what an "
    "attack learns of it does not hold. Let it keep nothing between calls, and look at nothing but the pixels.",
    "knows_images": "{:.0%} more of the images withstand PGD than of the same images moved a little: the model knows "
    "them. Evaluate on images that nobody had before.",
    "hidden_margins": "margins just before the class changes are {:.0%} of those of the images: logits do not tell how "
    "near a change is, so attacks that follow them are blind. Return them as they are before they are rounded, ranked "
    "or changed for what they say; or attack by labels alone (rays).",
    "other_network": "{:.1%} of the iterates that stand by the folded network, of those that were shown to the exact "
    "one, have fallen: the two are not the same. Evaluate with precision float32.",
    "tied_logits": "{:.0%} of the images have several classes of the largest logit, of which verdicts take the first, "
    "and attacks on the margin find no slope. Return means over time of a linear layer, or membranes, and not counts "
    "of spikes.",
    "above_chance": "{:.0%} stand at eps 64/255, above chance ({chance:.0%}), where a human sees little: unless the "
    "images are nearly black and white, the attack fails. Use a stronger protocol, such as worst-case.",
    "gradient_free": "{:.0f} samples fell to an attack without gradients and to no gradient attack: gradients "
    "mislead there, or were followed for too few steps. Add steps, restarts or backward modes, and quote the accuracy "
    "under worst-case, of an ANN under autoattack.",
    "more_eps": "robust accuracy rises by {:.1%} with a larger radius: the attack is far from its optimum. Use more "
    "steps, restarts or modes.",
    "more_steps": "robust accuracy rises by {:.1%} with more steps: the attack is far from its optimum. "
    "Use more restarts or modes.",
}
"""What each flag says where it is raised, given its value."""


def _flag(name: str, raised: bool, value: float, **more: float | str) -> Flag:
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
        except Exception:  # such values are no input of this model: so it normalises by itself
            continue
    n = len(images)
    return _flag("normalisation_outside", wilson(best, n)[0] > wilson(given, n)[1], max(best - given, 0) / n)


def _right(victim: Victim, images: Tensor, labels: Tensor) -> int:
    return int((victim.logits(images).argmax(1) == labels).sum())


def zero_gradients(victim: Victim, images: Tensor, labels: Tensor, modes: Iterable[BackwardMode | None]) -> Flag:
    """How much of the input gradient is zero under the mode that has least of it.

    The ReLU stand-in is another network and says nothing of this one, unless it is all that there is.

    Raises:
        ValueError: If the model does not run under one of the modes.
    """
    zeros: dict[BackwardMode | None, float] = {}
    for mode in dict.fromkeys(modes):
        try:
            gradient, *_ = victim.under(mode).gradient(images, labels, LOSSES["ce"], labels, {})
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"the model fails under the backward mode {mode or 'own'}: {error}") from error
        zeros[mode] = (gradient == 0).double().mean().item()
    own = [share for mode, share in zeros.items() if not isinstance(mode, Relu)]
    share = min(own or zeros.values())
    return _flag("zero_gradients", share > ZEROS, share)


def depends_on_batch(victim: Victim, images: Tensor, is_random: bool = False) -> Flag:
    """Whether images (B, C, H, W) that fit in one chunk get other logits without the second half of them.

    Spikes hang on roundings, so a few may even where each image is on its own.
    """
    half = -(-len(images) // 2)
    company, alone = victim.logits(images)[:half], victim.logits(images[:half])
    share = (~torch.isclose(company, alone, rtol=1e-3, atol=1e-4, equal_nan=True).all(1)).double().mean().item()
    return _flag("depends_on_batch", share > TOLERATED and not is_random, share)


def inconsistent(found: Mapping[str, float], is_random: bool = False) -> Flag:
    """Whether images get other logits when they are asked about in other ways: see :mod:`.consistency`.

    Args:
        found: Share of images by way of asking.
        is_random: The model is known to be; then this says nothing more.
    """
    ways = [way for way, share in found.items() if share > TOLERATED]
    return _flag("inconsistent", bool(ways) and not is_random, max(found.values(), default=0.0), how=", ".join(ways))


def _unsquashed(logits: Tensor) -> Tensor:
    """Logits (B, K), where they are probabilities their logarithms: a softmax hides how far a sure answer moves."""
    squashed = bool((logits >= 0).all()) and torch.allclose(logits.sum(1), logits.new_ones(()), atol=1e-3)
    return logits.log() if squashed else logits


def knows_images(given: Stands, moved: Stands) -> Flag:
    """Whether far more of the images withstand an attack than of the same images moved by a part of a pixel.

    Args:
        given: Which of the images do.
        moved: Which of them do once they are moved, in the same order.
    """
    lost = (sum(given) - sum(moved)) / max(len(given), 1)
    return _flag("knows_images", lost > KNOWN and _rise([(moved, given)])[0], lost)


def hidden_margins(victim: Victim, images: Tensor, logits: Tensor, is_random: bool = False) -> Flag:
    """Whether margins stay large up to where the class changes, on lines between images of different classes.

    Args:
        victim: Asked.
        images: (B, C, H, W) in [0, 1].
        logits: Its answers to them, (B, K).
        is_random: The model is known to be; then this says nothing.
    """
    classes = logits.argmax(1)
    pairs = [(here, (classes != kind).nonzero()[:, 0]) for here, kind in enumerate(classes[:LINES])]
    pairs = [(here, int(others[here % len(others)])) for here, others in pairs if len(others)]
    if not pairs or is_random:
        return _flag("hidden_margins", False, 0.0)
    start, end = (torch.tensor(each, device=images.device) for each in zip(*pairs, strict=True))
    before = images.new_zeros(len(start), 1, 1, 1)  # the part of the way up to which the class is that of the start
    after = torch.ones_like(before)

    def answers(part: Tensor) -> Tensor:
        return victim.logits(images[start] + part * (images[end] - images[start]))

    for _ in range(BISECTIONS):
        middle = (before + after) / 2
        same = (answers(middle).argmax(1) == classes[start])[:, None, None, None]
        before, after = torch.where(same, middle, before), torch.where(same, after, middle)
    edge = _margins(answers(before)) + _margins(answers(after))
    ratios = edge / (_margins(logits[start]) + _margins(logits[end])).clamp(min=1e-9)
    ratio = torch.where(edge.isfinite(), ratios, 1.0).median().item()  # probabilities of 0: as sure as can be
    return _flag("hidden_margins", ratio > EDGE, ratio)


def _margins(logits: Tensor) -> Tensor:
    """How far the largest of an image's logits (B, K) is above the next, (B,)."""
    top = _unsquashed(logits).topk(min(2, logits.shape[1]), 1).values
    return top[:, 0] - top[:, -1]


def other_network(sampled: int, fell: int) -> Flag:
    """Whether more have fallen, of iterates that stand by the folded network, than roundings explain.

    Args:
        sampled: Those that the exact network was shown.
        fell: Those of them that fell.
    """
    raised = bool(sampled) and wilson(fell, sampled)[0] > CONTRADICTED
    return _flag("other_network", raised, fell / sampled if sampled else 0.0)


def tied_logits(logits: Tensor) -> Flag:
    """Whether the largest of an image's logits (B, K) is that of several classes."""
    first, second = logits.topk(2).values.unbind(1) if logits.shape[1] > 1 else (logits[:, 0], logits[:, 0] - 1)
    share = (first == second).double().mean().item()
    return _flag("tied_logits", share > TIES, share)


def above_chance(standing: int, n: int, classes: int) -> Flag:
    """Whether significantly more than chance stand at the radius ``FAR``, given how many of n do."""
    raised = wilson(standing, n)[0] > 1 / classes
    return _flag("above_chance", raised, standing / n, chance=1 / classes)


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
    """Count the samples that only attacks without gradients felled, in runs of the same samples at one radius."""
    follows = [[not attack.startswith(GRADIENT_FREE) for attack, _ in run.members] for run in runs]
    last = [max((number for number, follow in enumerate(each) if follow), default=None) for each in follows]
    count = 0
    for verdicts in zip(*(run.verdicts for run in runs), strict=True):
        met = any(n is not None and (v == STANDS or v > n) for v, n in zip(verdicts, last, strict=True))
        fell_to_gradients = [each[v] for v, each in zip(verdicts, follows, strict=True) if v >= 0]
        count += met and bool(fell_to_gradients) and not any(fell_to_gradients)
    return count


def more_eps(runs: Iterable[Run], also: Sequence[Stands] = ()) -> Flag:
    """Whether more stand at a larger radius, by more than luck.

    Args:
        runs: The evaluation's; those of one protocol are compared.
        also: Which of some samples stand, in the order of radii.
    """
    curves: dict[str, list[Stands]] = {}
    for run in sorted(runs, key=lambda run: run.eps):
        curves.setdefault(run.protocol, []).append(_standing(run))
    return _flag("more_eps", *_rise([*curves.values(), also]))


def more_steps(runs: Iterable[Run], also: Sequence[Stands] = ()) -> Flag:
    """Whether more stand after more steps, by more than luck.

    Args:
        runs: The evaluation's; those are compared that differ in nothing but steps.
        also: Which of some samples stand, in the order of steps.
    """
    families = by_steps((run.protocol, run.eps, _standing(run)) for run in runs).values()
    return _flag("more_steps", *_rise([*([one[steps] for steps in sorted(one)] for one in families), also]))


def _standing(run: Run) -> Stands:
    return [verdict == STANDS for verdict in run.verdicts]


def _rise(curves: Iterable[Sequence[Stands]]) -> tuple[bool, float]:
    """Whether more stand in a later part of a curve than in one before, by more than luck; and how many more."""
    from scipy.stats import binomtest  # half a second, which not every import need wait for

    most = {True: 0.0, False: 0.0}
    for before, after in (pair for curve in curves for pair in combinations(curve, 2)):
        differing = [there for here, there in zip(before, after, strict=True) if here != there]
        up, down = differing.count(True), differing.count(False)
        if up > down:
            raised = bool(binomtest(up, up + down, alternative="greater").pvalue < LUCK)
            most[raised] = max(most[raised], (up - down) / len(before))
    return (True, most[True]) if most[True] else (False, most[False])
