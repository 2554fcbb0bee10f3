"""Whether an exported file computes what the network does: the same images, spike by spike where they can be seen."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsnn_zoo.data.images import load_dataset
from rsnn_zoo.exports.graph import ExportError
from rsnn_zoo.models import Network
from rsnn_zoo.models.rows import hooked
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron

__all__ = ["Comparison", "Judged", "Pass", "compare", "default_images", "recorded_spikes", "reference_pass"]

_CHUNK = 32

Pass = Callable[[Tensor], tuple[Tensor, dict[str, Tensor]]]
"""Images (B, C, H, W) to logits (B, K) and, by the name of the layer, spikes (T, B, ...) of bool; empty if unseen."""


@dataclass(frozen=True)
class Comparison:
    """How one runtime's results compare with the network's own.

    Attributes:
        runtime: Name and version.
        precision: Of the runtime and of the network's own pass.
        images: How many were shown.
        spikes: Places where a spike could be: steps times neurons times images; 0 where they cannot be seen.
        differing_spikes: Of these, where one of both spikes and the other does not.
        differing_predictions: Images of another class.
        largest_logit_difference: Over all images and classes.
        passes: Whether that is within what is asked of this runtime.
    """

    runtime: str
    precision: str
    images: int
    spikes: int
    differing_spikes: int
    differing_predictions: int
    largest_logit_difference: float
    passes: bool

    def __str__(self) -> str:
        spikes = f"{self.differing_spikes} of {self.spikes} spikes differ, " if self.spikes else ""
        return (
            f"{self.runtime} ({self.precision}): {spikes}{self.differing_predictions} of {self.images} predictions "
            f"differ, logits by at most {self.largest_logit_difference:.2g}"
        )


def default_images(model: Network, n: int = 64) -> Tensor:
    """The first test digits, which need no download, brought to the network's size and channels: (n, C, H, W)."""
    images = load_dataset("digits", "test").pixels(slice(0, n))
    size = (model.img_size, model.img_size)
    if images.shape[2:] != size:
        images = F.interpolate(images, size, mode="bilinear", align_corners=False).clamp(0, 1)
    return images.repeat(1, model.in_chans, 1, 1)


@contextmanager
def recorded_spikes(layers: dict[str, nn.Module], found: dict[str, list[Tensor]]) -> Iterator[None]:
    """While it lasts, what layers put out at each call goes into ``found``, by name, as bool."""
    names = {layer: name for name, layer in layers.items()}

    def keep(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        found.setdefault(names[layer], []).append(output.detach() > 0)

    with hooked(names, post=keep):
        yield


def reference_pass(model: Network, dtype: torch.dtype) -> Pass:
    """The network's own forward pass, on a copy in evaluation mode on the CPU."""
    model = copy.deepcopy(model).eval().cpu().to(dtype)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, SpikingNeuron)}

    @torch.no_grad()
    def run(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        found: dict[str, list[Tensor]] = {}
        with recorded_spikes(layers, found):
            logits = model(images.to(dtype))
        return logits, {name: spikes[0].unflatten(0, (model.steps, -1)) for name, spikes in found.items()}

    return run


@dataclass(frozen=True)
class Judged:
    """A runtime and what is asked of it.

    Attributes:
        run: Its pass over a file.
        package: That runs it, to name its version.
        precision: What is said of the precision.
        spikes_within: Share of the spikes that may differ.
        predictions_within: Share of the predictions that may.
    """

    run: Pass
    package: str
    precision: str
    spikes_within: float = 0.0
    predictions_within: float = 0.0


@dataclass
class _Counts:
    spikes: int = 0
    flipped: int = 0
    wrong: int = 0
    largest: float = 0.0


def compare(ours: Pass, judged: Sequence[Judged], images: Tensor) -> list[Comparison]:
    """Shows the images to the network, once, and to each runtime.

    Args:
        ours: :func:`reference_pass`.
        judged: The runtimes.
        images: (N, C, H, W) in [0, 1].

    Raises:
        ExportError: If logits have another shape, or are not finite.
    """
    counts = [_Counts() for _ in judged]
    for chunk in images.split(_CHUNK):
        logits, spikes = ours(chunk)
        for one, count in zip(judged, counts, strict=True):
            other, others = one.run(chunk)
            if other.shape != logits.shape or not bool(other.isfinite().all()):
                raise ExportError(f"{one.package} gives {tuple(other.shape)} or values that are not finite for logits")
            count.wrong += int((logits.argmax(1) != other.argmax(1)).sum())
            count.largest = max(count.largest, (logits.double() - other.double()).abs().max().item())
            for name, fired in others.items():
                count.spikes += fired.numel()
                count.flipped += int((fired.flatten() != spikes[name].flatten()).sum())
    return [_comparison(one, count, len(images)) for one, count in zip(judged, counts, strict=True)]


def _comparison(one: Judged, count: _Counts, images: int) -> Comparison:
    within = count.flipped <= one.spikes_within * count.spikes and count.wrong <= one.predictions_within * images
    runtime = f"{one.package} {version(one.package)}"
    return Comparison(runtime, one.precision, images, count.spikes, count.flipped, count.wrong, count.largest, within)
