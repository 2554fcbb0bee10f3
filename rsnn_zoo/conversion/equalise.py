"""Channels of a layer brought to one scale, so that one threshold fits them all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rsnn_zoo.conversion.staircase import Histogram, best_thresholds
from rsnn_zoo.models import Network
from rsnn_zoo.models.layers import Spiking
from rsnn_zoo.models.rows import hooked

__all__ = ["equalise", "takes_scales"]

LEAST_SCALE = 0.004
"""The least scale of a channel, as a part of its layer's: others say too little to be weighed against noise."""
BELIEVED_BY_HALF = 100
"""Positive activations that a channel's scale is believed by half of: few of them may all lie low by chance."""


def takes_scales(network: Network) -> bool:
    """Whether each ReLU stands once between weights of its own, which can take any scale in place.

    Not where there is no classifier, or where parts were replaced, are used twice, or have parametrised weights.
    """
    try:
        junctions = network.junctions() if network.num_classes else []
    except AttributeError:  # a part is no longer what it was
        return False
    stored = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    sides = ([t for one in junctions for t in one.before], [t for one in junctions for t in one.after])
    for tensors in sides:
        places = [tensor.untyped_storage().data_ptr() for tensor in tensors]
        if len(set(places)) < len(places) or not stored.issuperset(places):
            return False
    return bool(junctions) and {one.activation for one in junctions} == {
        m for m in network.modules() if isinstance(m, nn.ReLU)
    }


def equalise(network: Network, normalize: nn.Module, chunks: Sequence[Tensor], spiking: Spiking) -> None:
    """Rescales the channels of an ANN in place, which leaves it the function that it is.

    A ReLU passes on any positive factor. So each channel is divided by the threshold that would suit it alone, relative
    to its layer's, and what follows is multiplied by it; residual sums get weights by channel for that.

    Args:
        network: An ANN of this zoo, in evaluation mode.
        normalize: What the network expects to be done to the images.
        chunks: Images, (B, C, H, W) each.
        spiking: The neurons that it will get.

    Source:
        Rescaled channels: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV
        2019. Thresholds by channel: Kim et al., "Spiking-YOLO", AAAI 2020.
    """
    network.free_channels()
    layers = network.channels()
    histograms = {layer.activation: Histogram(len(layer.before[0])) for layer in layers}

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        histograms[module].add(output.transpose(0, 1))

    with hooked(list(histograms), post=count):
        for images in chunks:
            network(normalize(images))
    for layer in layers:
        factor = _scales(histograms[layer.activation], spiking).exp().to(layer.before[0])
        for tensor in layer.before:
            tensor /= factor.view(-1, *[1] * (tensor.dim() - 1))
        for tensor in layer.after:
            tensor *= factor.view(1, -1, *[1] * (tensor.dim() - 2))


def _scales(histogram: Histogram, spiking: Spiking) -> Tensor:
    """Logarithms of the channels' thresholds, (C,), relative to their mean, as far as known; 0 of a dead one."""
    if not histogram.counts.any():
        return torch.zeros(len(histogram.counts), dtype=torch.float64)
    scales = best_thresholds(histogram, spiking, LEAST_SCALE * histogram.largest).log()
    seen = histogram.counts.sum(1)
    return (scales - scales.nanmean()).nan_to_num() * seen / (seen + BELIEVED_BY_HALF)
