"""Conversion in which a spike stands for its threshold, and currents have the mean and the spread of the ANN's.

One sweep over the ANN finds thresholds and what its layers give; sweeps over the SNN correct weights and biases, each
layer behind those before it. Images go through in chunks, so memory does not grow with their number.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from rsnn_zoo._utils.progress import bar as shown
from rsnn_zoo.conversion.staircase import Histogram, best_threshold
from rsnn_zoo.models import Network, Temporal
from rsnn_zoo.models.layers import BATCH_NORMS, Scaled, Spiking
from rsnn_zoo.models.rows import hooked

__all__ = ["Observed", "absorb", "chunks_of", "observe", "thresholds_of"]

_log = logging.getLogger(__name__)

SWEEPS = 2
"""Of corrections: the first chunks of the first sweep say little about layers that they meet uncorrected."""
BUDGET = 2**24
"""Bytes that the largest current of a layer may take: some ten of its size are alive at once, and chunks that fit a
cache are faster."""
MOST = 2.0
"""A weight is multiplied by at most so much, and divided: what the calibration images hardly move says little."""
AFFINE = (nn.Conv2d, nn.Conv1d, nn.Linear, BATCH_NORMS)


@dataclass
class Moments:
    """Mean and spread of a layer's outputs, by channel.

    Attributes:
        count: Values of each channel.
        sums: Of them and of their squares, (2, C), double.
        rows: Length of the outputs' first axis.
    """

    count: int = 0
    sums: Tensor | float = 0.0
    rows: int = 0

    def add(self, output: Tensor, module: nn.Module) -> Moments:
        """Counts outputs (N, C, ...), or (N, ..., C) of a linear layer."""
        channel = output.dim() - 1 if isinstance(module, nn.Linear) else 1
        axes = [axis for axis in range(output.dim()) if axis != channel]
        output = output.double()
        self.sums = self.sums + torch.stack([output.sum(axes), output.square().sum(axes)])
        self.count += output.numel() // output.shape[channel]
        self.rows += len(output)
        return self

    def join(self, other: Moments) -> None:
        """Counts what another counted."""
        self.count, self.sums, self.rows = self.count + other.count, self.sums + other.sums, self.rows + other.rows

    def mean_and_deviation(self) -> tuple[Tensor, Tensor]:
        """Both (C,), double."""
        mean, square = self.sums / self.count
        return mean, (square - mean.square()).clamp(min=0).sqrt()


@dataclass
class Observed:
    """What an ANN does on the calibration images.

    Attributes:
        chunks: The images, a few at a time.
        histograms: Of each activation's outputs, by the activation's name.
        moments: Of each chunk's outputs of each layer with a bias, by its name.
    """

    chunks: tuple[Tensor, ...]
    histograms: dict[str, Histogram] = field(default_factory=dict)
    moments: dict[str, list[Moments]] = field(default_factory=dict)


def _correctable(network: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in network.named_modules() if isinstance(m, AFFINE) and m.bias is not None}


def chunks_of(
    network: nn.Module, activations: list[str], normalize: nn.Module, images: Tensor, timesteps: int
) -> tuple[Tensor, ...]:
    """The images, as many at a time as an SNN of so many steps may take; arguments as :func:`observe`'s."""
    sizes = [1]
    layers = [network.get_submodule(name) for name in activations]
    with hooked(layers, post=lambda module, inputs, output: sizes.append(output.numel())):
        network(normalize(images[:1]))
    return images.split(max(1, min(len(images), BUDGET // (max(sizes) * timesteps * images.element_size()))))


def observe(
    network: nn.Module, activations: list[str], normalize: nn.Module, chunks: tuple[Tensor, ...], progress: bool = False
) -> Observed:
    """Runs the ANN over the images.

    Args:
        network: The ANN, in evaluation mode.
        activations: Names of its activations.
        normalize: What the network expects to be done to the images.
        chunks: Of :func:`chunks_of`.
        progress: Show a progress bar.
    """
    layers = {network.get_submodule(name): name for name in activations}
    biased = {module: name for name, module in _correctable(network).items()}
    found = Observed(chunks)

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        found.histograms.setdefault(layers[module], Histogram()).add(output)

    def measure(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        found.moments.setdefault(biased[module], []).append(Moments().add(output, module))

    with hooked(list(layers), post=count), hooked(list(biased), post=measure):
        for part in shown(found.chunks, "the ANN's activations", disable=not progress, leave=False):
            network(normalize(part))
    # one that is called in several places has no moments of its own
    found.moments = {name: each for name, each in found.moments.items() if len(each) == len(found.chunks)}
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


class _Corrector:
    """Gives a layer's outputs, their mean over time, the mean and spread of the ANN's, by what all chunks so far say.

    Args:
        targets: The ANN's, of each chunk.
        scales: Whether the layer's weights are its own, so that they can be multiplied.
    """

    def __init__(self, targets: list[Moments], scales: bool):
        self.targets = iter(targets)
        self.scales = scales
        self.target, self.found = Moments(), Moments()

    def correction(self) -> tuple[Tensor, Tensor]:
        """What outputs are multiplied by, and what is then added, (C,) each."""
        (wanted, spread), (mean, deviation) = self.target.mean_and_deviation(), self.found.mean_and_deviation()
        factor = torch.ones_like(mean)
        if self.scales:
            factor = torch.where(deviation > 0, spread / deviation, factor).clamp(1 / MOST, MOST)
        return factor, wanted - factor * mean

    def __call__(self, module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        target = next(self.targets)
        self.target.join(target)
        self.found.add(output.unflatten(0, (-1, target.rows)).mean(0), module)
        shape = (-1,) if isinstance(module, nn.Linear) else (-1, *[1] * (output.dim() - 2))
        factor, shift = (each.to(output).view(shape) for each in self.correction())
        return output * factor + shift

    def apply(self, module: nn.Module) -> None:
        """Puts the correction into the layer."""
        factor, shift = (each.to(module.bias) for each in self.correction())
        if self.scales:
            module.weight *= factor.view(-1, *[1] * (module.weight.dim() - 1))
        module.bias.copy_(module.bias * factor + shift if self.scales else module.bias + shift)


def _correct(snn: Temporal, root: nn.Module, observed: Observed, progress: bool) -> None:
    """Corrects weights and biases of ``root``, a part of the SNN, in place."""
    layers = {root.get_submodule(name): each for name, each in observed.moments.items()}
    uses = Counter(id(module.weight) for module in root.modules() if isinstance(module, AFFINE))
    correctors: dict[nn.Module, _Corrector] = {}

    def correct(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return correctors[module](module, inputs, output)

    for sweep in range(SWEEPS):
        for module, targets in layers.items():
            correctors[module] = _Corrector(targets, uses[id(module.weight)] == 1 and not is_parametrized(module))
        with hooked(list(correctors), post=correct):
            for images in shown(observed.chunks, f"currents {sweep + 1}/{SWEEPS}", disable=not progress, leave=False):
                snn(images)
        for module, corrector in correctors.items():
            corrector.apply(module)


def absorb(
    snn: Temporal, root: nn.Module, thresholds: dict[str, float], observed: Observed, progress: bool = False
) -> None:
    """Makes each spike stand for its threshold, corrects the currents, and brings every threshold to 1, in place.

    Args:
        snn: Of the ANN's weights; its neurons where the activations were.
        root: The part of it that is named as the ANN was.
        thresholds: Of each activation, by name.
        observed: Of the ANN.
        progress: Show a progress bar.
    """
    layers = {root.get_submodule(name): value for name, value in thresholds.items()}
    plain = {layer: value for layer, value in layers.items() if not isinstance(layer, Scaled)}
    for layer, value in layers.items():
        if isinstance(layer, Scaled):
            layer.gain.fill_(value)
        else:
            layer.threshold.fill_(1.0)
    with _standing_for(plain):
        _correct(snn, root, observed, progress)
    if not plain:
        return
    assert isinstance(snn, Network)
    for neuron, before, after in snn.junctions():
        for tensor in before:
            tensor /= plain[neuron]
        for tensor in after:
            tensor *= plain[neuron]
