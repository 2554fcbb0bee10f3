"""Conversion in which a spike stands for its threshold, and mean currents are those of the ANN.

One sweep over the ANN finds thresholds and the means that its layers give; sweeps over the SNN correct the biases, each
layer behind those before it. Images go through in chunks, so memory does not grow with their number.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor, nn
from torch.nn.functional import kl_div

from rsnn_zoo._utils.progress import bar as shown
from rsnn_zoo.conversion.staircase import Histogram, best_threshold
from rsnn_zoo.models import Network, Temporal
from rsnn_zoo.models.layers import BATCH_NORMS, Scaled, Spiking
from rsnn_zoo.models.rows import hooked

__all__ = ["Observed", "absorb", "observe", "thresholds_of"]

_log = logging.getLogger(__name__)

SWEEPS = 3
"""Of corrections: with each, layers are corrected behind those that the one before corrected."""
BUDGET = 2**24
"""Bytes that the largest current of a layer may take: some ten of its size are alive at once, and chunks that fit a
cache are faster."""
FACTORS = (1.0, 0.85, 0.7, 0.55)
"""Of all thresholds, tried one after the other until the logits get worse: spikes come unevenly, which the staircase
does not know, and lower thresholds mend it."""
SEARCHED_TO = 32
"""Steps up to which they are tried; with more, unevenness is small."""
SEARCH_IMAGES = 64
AFFINE = (nn.Conv2d, nn.Conv1d, nn.Linear, BATCH_NORMS)


@dataclass
class Observed:
    """What an ANN does on the calibration images.

    Attributes:
        chunks: The images, a few at a time.
        histograms: Of each activation's outputs, by the activation's name.
        means: Of each layer with a bias, by name: (chunks, channels).
        logits: Of each chunk.
    """

    chunks: tuple[Tensor, ...]
    histograms: dict[str, Histogram] = field(default_factory=dict)
    means: dict[str, list[Tensor]] = field(default_factory=dict)
    logits: list[Tensor] = field(default_factory=list)

    def first(self, images: int) -> Observed:
        """The same of the first chunks alone, those of so many images or one."""
        count = max(1, images // len(self.chunks[0]))
        means = {name: each[:count] for name, each in self.means.items()}
        return replace(self, chunks=self.chunks[:count], means=means, logits=self.logits[:count])


def _channel_means(output: Tensor, module: nn.Module) -> Tensor:
    """Mean by channel, (C,), of (N, C, ...), or of (N, ..., C) behind a linear layer."""
    channel = output.dim() - 1 if isinstance(module, nn.Linear) else 1
    return output.mean([axis for axis in range(output.dim()) if axis != channel])


def _correctable(network: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in network.named_modules() if isinstance(m, AFFINE) and m.bias is not None}


def observe(
    network: nn.Module,
    activations: list[str],
    normalize: nn.Module,
    images: Tensor,
    timesteps: int,
    progress: bool = False,
) -> Observed:
    """Runs the ANN over the images.

    Args:
        network: The ANN, in evaluation mode.
        activations: Names of its activations.
        normalize: What the network expects to be done to the images.
        images: (B, C, H, W).
        timesteps: T of the SNN that it will be, which decides how many images go through at once.
        progress: Show a progress bar.
    """
    layers = {network.get_submodule(name): name for name in activations}
    biased = {module: name for name, module in _correctable(network).items()}
    sizes = [1]
    with hooked(list(layers), post=lambda module, inputs, output: sizes.append(output.numel())):
        network(normalize(images[:1]))
    chunk = max(1, min(len(images), BUDGET // (max(sizes) * timesteps * images.element_size())))
    found = Observed(images.split(chunk))

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        found.histograms.setdefault(layers[module], Histogram()).add(output)

    def measure(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        found.means.setdefault(biased[module], []).append(_channel_means(output, module))

    with hooked(list(layers), post=count), hooked(list(biased), post=measure):
        for part in shown(found.chunks, "the ANN's activations", disable=not progress, leave=False):
            found.logits.append(network(normalize(part)))
    # one that is called in several places has no single mean
    found.means = {name: means for name, means in found.means.items() if len(means) == len(found.chunks)}
    return found


def thresholds_of(observed: Observed, spiking: Spiking, bounds: dict[str, float]) -> dict[str, float]:
    """The threshold of each activation.

    Args:
        observed: Of the ANN.
        spiking: The neurons.
        bounds: Where an activation is clipped, by name.
    """
    found = {}
    for name, histogram in observed.histograms.items():
        threshold = best_threshold(histogram, spiking)
        if threshold is None:
            _log.warning("%s is dead: none of the images makes it positive; its neurons stay silent", name)
            threshold = 1.0
        found[name] = min(threshold, bounds.get(name, math.inf))
    return found


@contextmanager
def _standing_for(thresholds: dict[nn.Module, float]) -> Iterator[None]:
    """Neurons are as in :class:`Scaled`, while it lasts: a threshold itself may be below what acts as one."""

    def divide(neuron: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0] / thresholds[neuron],)

    def multiply(neuron: nn.Module, inputs: tuple[Tensor, ...], spikes: Tensor) -> Tensor:
        return spikes * thresholds[neuron]

    with hooked(list(thresholds), divide, multiply):
        yield


class _Gains:
    """What the spikes of each layer stand for.

    Args:
        thresholds: Of each activation.

    Attributes:
        plain: Those of layers that are no :class:`Scaled`.
    """

    def __init__(self, thresholds: dict[nn.Module, float]):
        self.thresholds = thresholds
        self.plain = {layer: value for layer, value in thresholds.items() if not isinstance(layer, Scaled)}
        for layer in self.plain:
            layer.threshold.fill_(1.0)
        self.set(1.0)

    def set(self, factor: float) -> None:
        """Set thresholds to those that were found, times a factor."""
        for layer, value in self.thresholds.items():
            if isinstance(layer, Scaled):
                layer.gain.fill_(value * factor)
            else:
                self.plain[layer] = value * factor


class _Corrector:
    """Shifts a layer's output so that its means are those of the ANN, by what all chunks so far say."""

    def __init__(self, targets: list[Tensor]):
        self.targets = targets
        self.total: Tensor | float = 0.0
        self.seen = 0

    @property
    def shift(self) -> Tensor:
        return self.total / len(self.targets)

    def __call__(self, module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        missing = self.targets[self.seen] - _channel_means(output, module)
        self.seen, self.total = self.seen + 1, self.total + missing
        shift = self.total / self.seen
        return output + (shift if isinstance(module, nn.Linear) else shift.view(-1, *[1] * (output.dim() - 2)))


def _correct(snn: Temporal, root: nn.Module, observed: Observed, progress: bool, sweeps: int = SWEEPS) -> float:
    """Corrects the biases of ``root``, a part of the SNN, in place.

    Returns:
        KL(ANN || SNN), the sum over the images in the last sweep.
    """
    correctors: dict[nn.Module, _Corrector] = {}
    divergence = 0.0

    def correct(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return correctors[module](module, inputs, output)

    for sweep in range(sweeps):
        correctors |= {root.get_submodule(name): _Corrector(means) for name, means in observed.means.items()}
        divergence, parts = 0.0, list(zip(observed.chunks, observed.logits, strict=True))
        with hooked(list(correctors), post=correct):
            for images, logits in shown(parts, f"biases {sweep + 1}/{sweeps}", disable=not progress, leave=False):
                found = snn(images).log_softmax(1)
                divergence += kl_div(found, logits.log_softmax(1), reduction="sum", log_target=True).item()
        for module, corrector in correctors.items():
            module.bias += corrector.shift
    return divergence


def _lower_gains(snn: Temporal, root: nn.Module, gains: _Gains, observed: Observed, progress: bool) -> None:
    """Lowers all gains by the one of ``FACTORS`` with which the logits of some images are nearest to the ANN's."""
    few = observed.first(SEARCH_IMAGES)
    biases = {name: root.get_submodule(name).bias.clone() for name in observed.means}
    best, chosen = math.inf, 1.0
    for factor in FACTORS:
        gains.set(factor)
        divergence = _correct(snn, root, few, progress, sweeps=2)
        for name, bias in biases.items():
            root.get_submodule(name).bias.copy_(bias)
        if not divergence < best:
            break
        best, chosen = divergence, factor
    gains.set(chosen)


def absorb(
    snn: Temporal, root: nn.Module, thresholds: dict[str, float], observed: Observed, progress: bool = False
) -> None:
    """Makes each spike stand for its threshold, corrects the biases, and brings every threshold to 1, in place.

    Args:
        snn: Of the ANN's weights; its neurons where the activations were.
        root: The part of it that is named as the ANN was.
        thresholds: Of each activation, by name.
        observed: Of the ANN.
        progress: Show a progress bar.
    """
    gains = _Gains({root.get_submodule(name): value for name, value in thresholds.items()})
    with _standing_for(gains.plain):
        if (snn.timesteps or 1) <= SEARCHED_TO:
            _lower_gains(snn, root, gains, observed, progress)
        _correct(snn, root, observed, progress)
    if not gains.plain:
        return
    assert isinstance(snn, Network)
    for neuron, before, after in snn.junctions():
        for tensor in before:
            tensor /= gains.plain[neuron]
        for tensor in after:
            tensor *= gains.plain[neuron]
