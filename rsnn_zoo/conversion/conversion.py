"""From a trained ANN to an SNN: weights and batch norms are taken over, thresholds are found from data.

The recipe of Özdenizci & Legenstein, TMLR 2024, section 3.2, for our networks and for any network whose activations are
ReLU modules.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rsnn_zoo.data.images import check_images
from rsnn_zoo.models import ForeignNetwork, Network, Temporal
from rsnn_zoo.models.layers import BATCH_NORMS, Normalize, Spiking, batch_statistics
from rsnn_zoo.models.surgery import (
    POOLS,
    average_pool,
    check_rows,
    find_activations,
    hooked,
    mark_stem,
    replace,
    split_shared,
    undisturbed,
)
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron, Surrogate, check_timesteps

__all__ = ["SpikingNetwork", "calibrate", "convert", "relearn_statistics"]


class SpikingNetwork(Temporal):
    """Any converted network in time: images (B, C, H, W) in [0, 1] to logits (B, K), the mean over T steps.

    Attributes:
        network: The converted module; it sees time and batch merged.
        stem_once: Whether everything before the first neuron is computed once and not T times.
    """

    def __init__(self, network: nn.Module, spiking: Spiking, normalize: nn.Module):
        super().__init__(spiking)
        self.normalize = normalize
        self.network = network
        self.stem_once = True

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        """Logits (B, K); with ``per_step`` those of each step, (T, B, K)."""
        x = self.normalize(x)
        if not self.stem_once:
            x = x.repeat(self.steps, 1, 1, 1)
        return self.over_time(self.network(x), per_step)


# --- thresholds and statistics --------------------------------------------------------------------------------------


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode: no dropout."""
    before = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


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
    found: dict[nn.Module, Tensor] = {}

    def find(neuron: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[neuron] = _percentile(inputs[0], percentile, neuron.timesteps if neuron.repeated else 1)
        # While the pass goes on it acts in float32, as in the published code: whether the very current that set it
        # reaches it hangs on that rounding.
        neuron.threshold.copy_(found[neuron].float())

    before, snn.timesteps = snn.timesteps, timesteps
    try:
        with _evaluating(snn), batch_statistics(snn, track=False), hooked(list(neurons.values()), pre=find):
            snn(images)
    finally:
        snn.timesteps = before
    for neuron, threshold in found.items():
        neuron.threshold.copy_(threshold * scale)
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
        with _evaluating(snn), batch_statistics(snn, track=True):
            for batch in images.tensor_split(math.ceil(len(images) / batch_size)):  # of equal size, or nearly
                snn(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@undisturbed()
def convert(
    ann: nn.Module,
    timesteps: int = 8,
    images: Tensor | None = None,
    *,
    percentile: float = 99.7,
    scale: float = 0.3,
    calibration_timesteps: int = 100,
    reset: str = "hard",
    leak: float = 1.0,
    initial: float = 0.0,
    surrogate: Surrogate | None = None,
    max_pool: str = "spikes",
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Temporal:
    """A spiking copy of a trained network: same weights, thresholds from data, batch-norm statistics relearned.

    Args:
        ann: A network of this zoo, or any whose activations are ReLU modules (timm's, torchvision's, yours); it is
            left as it is. A module used in several places is split through ``torch.fx``.
        timesteps: T of the SNN.
        images: Calibration images (B, C, H, W) in [0, 1], some hundreds of the training set.
        percentile: Of each layer's currents that becomes its threshold, in (0, 100].
        scale: Factor on the thresholds found.
        calibration_timesteps: Steps over which thresholds are found.
        reset: ``"hard"`` or ``"soft"``.
        leak: Membrane leak in [0, 1].
        initial: Membrane before the first step, as a part of the threshold, in [0, 1); 0.5 loses the least in few
            steps (Bu et al., AAAI 2022).
        surrogate: How training will differentiate the spike.
        max_pool: ``"spikes"`` pools each step's spikes; ``"average"`` puts average pooling in its place.
        mean: Normalisation that the network expects from outside, per channel: it moves inside. None for one that
            takes [0, 1] as it is; not for networks of this zoo, which have theirs inside.
        std: Likewise.

    Returns:
        The SNN in evaluation mode: for a network of this zoo its spiking twin, else a :class:`SpikingNetwork`.

    Raises:
        TypeError: If the images are no tensor of floating point, or timesteps no integer.
        ValueError: For a network with another activation, one that calls ReLU as a function, or that would mix images
            or time steps (the message names the layer and the remedy), for one that spikes already or gives no logits,
            and for images that are none.

    Example:
        >>> snn = convert(timm.create_model("resnet18"), 8, images, mean=mean, std=std)  # doctest: +SKIP

    Source:
        Özdenizci & Legenstein, TMLR 2024, section 3.2.
    """
    if images is None:
        raise ValueError("convert finds thresholds from data: pass some hundred training images (B, C, H, W) in [0, 1]")
    if max_pool not in ("spikes", "average"):
        raise ValueError(f"max_pool must be 'spikes' or 'average', got {max_pool!r}")
    check_images(images)
    if any(isinstance(module, SpikingNeuron) for module in ann.modules()):
        raise ValueError("the network spikes already: set snn.timesteps, or call rsnn_zoo.calibrate for new thresholds")
    own = isinstance(ann, Network)
    if isinstance(ann, ForeignNetwork) and max_pool != "spikes":
        raise ValueError("a registered architecture is rebuilt by its builder: put the average pooling there")
    if own and (mean is not None or std is not None):
        raise ValueError("a network of this zoo normalises inside: leave mean and std out")
    spiking = Spiking(check_timesteps(timesteps), leak=leak, reset=reset, initial=initial, surrogate=surrogate)

    if isinstance(ann, torch.jit.ScriptModule):
        raise ValueError("a scripted network has no modules to put neurons in place of: convert the nn.Module itself")
    try:
        network = copy.deepcopy(ann).eval()
    except RuntimeError as error:
        raise ValueError(
            f"the network cannot be copied ({error}): weights that a hook makes anew (weight_norm, spectral_norm, "
            "prune) need torch.nn.utils.parametrizations, or the hook removed"
        ) from error
    images = images.to(next(network.parameters(), images))  # in the network's precision, on its device
    normalize: nn.Module = nn.Identity()
    if mean is not None or std is not None:
        normalize = Normalize(mean, std, images.shape[1]).to(images)
    uses = find_activations(network, normalize(images[:2]), max_pool)
    if not own:
        network = split_shared(network, uses)
    replace(network, nn.ReLU, lambda _: spiking.activation())
    if max_pool == "average":
        replace(network, POOLS, average_pool)
    if own:
        network.spiking = spiking
        ann_of = {"ann": ann.pretrained_name, "ann_sha256": ann.weights_sha256}
        network.training_record = {key: value for key, value in ann_of.items() if value}
        network.pretrained_name = network.weights_sha256 = None  # those were the ANN's
        snn: Temporal = network
    else:
        snn = SpikingNetwork(network, spiking, normalize)
    snn = snn.to(images).eval()

    mark_stem(snn, images)
    calibrate(snn, images, timesteps=calibration_timesteps, percentile=percentile, scale=scale)
    check_rows(snn, images)
    relearn_statistics(snn, images)
    return snn
