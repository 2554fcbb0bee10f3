"""The published method: thresholds are percentiles of the currents, and batch-norm statistics are relearned.

Özdenizci & Legenstein, TMLR 2024, section 3.2.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn

from rsnn_zoo.data.images import check_images
from rsnn_zoo.models import Temporal
from rsnn_zoo.models.layers import BATCH_NORMS, batch_statistics
from rsnn_zoo.models.rows import hooked, in_mode, undisturbed, with_timesteps
from rsnn_zoo.neurons.integrate_fire import MIN_THRESHOLD

__all__ = ["calibrate", "relearn_statistics"]

_log = logging.getLogger(__name__)


def _percentile(values: Tensor, percentile: float, copies: int) -> Tensor:
    """The k-th smallest of ``copies`` equal sets of values, k = 1 + round(p (n - 1))."""
    n = copies * values.numel()
    k = 1 + round(percentile / 100 * (n - 1))
    return values.flatten().kthvalue(math.ceil(k / copies)).values


@undisturbed()
def calibrate(
    snn: Temporal, images: Tensor, *, timesteps: int = 100, percentile: float = 99.7, scale: float = 0.3
) -> dict[str, float]:
    """Sets every threshold of an SNN, in place, from one forward pass.

    Layer by layer, the threshold becomes a percentile of the layer's input currents over all steps, images and
    positions; the pass goes on with the threshold just found, so the work is that of one forward pass. Batch norms
    use the statistics of the images shown. At the end every threshold is multiplied by ``scale``.

    Args:
        snn: The network.
        images: (B, C, H, W) in [0, 1]; all are shown at once, so memory grows with B * timesteps.
        timesteps: Steps of the pass.
        percentile: In (0, 100].
        scale: Factor at the end, positive.

    Returns:
        The thresholds by layer name.

    Raises:
        TypeError: If the images are no tensor of floating point.
        ValueError: For images that are none, or a percentile or scale out of range.

    Source:
        Özdenizci & Legenstein, TMLR 2024, section 3.2 (percentile 99.7, T = 100, scale 0.3).
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile must lie in (0, 100], got {percentile}")
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    check_images(images)
    neurons = dict(snn.neurons())
    names = {neuron: name for name, neuron in neurons.items()}
    found: dict[nn.Module, Tensor] = {}

    def find(neuron: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[neuron] = _percentile(inputs[0], percentile, neuron.timesteps if neuron.repeated else 1)
        if found[neuron] <= 0:
            _log.warning(
                "%s is dead: the %gth percentile of its currents is %g; its threshold becomes the least, %g",
                *(names[neuron], percentile, found[neuron], MIN_THRESHOLD),
            )
        # While the pass goes on it acts in float32, as in the published code: whether the very current that set it
        # reaches it hangs on that rounding.
        neuron.threshold.copy_(found[neuron].float())

    still = in_mode(snn, training=False)  # without dropout
    with with_timesteps(snn, timesteps), still, batch_statistics(snn, track=False), hooked(neurons.values(), pre=find):
        snn(images)
    for neuron, threshold in found.items():
        neuron.threshold.copy_(threshold * scale if threshold > 0 else torch.full_like(threshold, MIN_THRESHOLD))
    return {name: neuron.threshold.item() for name, neuron in neurons.items()}


@undisturbed()
def relearn_statistics(snn: nn.Module, images: Tensor, batch_size: int = 128) -> None:
    """Forgets the batch norms' running statistics and learns them anew, in place, over time and images.

    Args:
        snn: The network.
        images: (B, C, H, W) in [0, 1].
        batch_size: Most images a forward pass; the batches' statistics are averaged.

    Raises:
        TypeError: If the images are no tensor of floating point.
        ValueError: For images that are none, or a batch size below 1.

    Example:
        >>> relearn_statistics(snn, images)  # doctest: +SKIP
    """
    check_images(images)
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    norms = [module for module in snn.modules() if isinstance(module, BATCH_NORMS) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain average
        with in_mode(snn, training=False), batch_statistics(snn, track=True):
            for batch in images.tensor_split(math.ceil(len(images) / batch_size)):  # of equal size, or nearly
                snn(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
