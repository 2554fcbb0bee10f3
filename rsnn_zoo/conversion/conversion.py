"""Conversion of a trained ANN to an SNN: weights are taken over, thresholds are found from data.

By two methods: one that keeps what the ANN knows, for any network of ReLUs, and the published one.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace as changed
from typing import Any

import torch
from torch import Tensor, nn

from rsnn_zoo._utils.defaults import plain_defaults
from rsnn_zoo.conversion.absorb import Observed, absorb, chunks_of, observe, thresholds_of
from rsnn_zoo.conversion.equalise import equalise, takes_scales
from rsnn_zoo.conversion.published import calibrate, relearn_statistics
from rsnn_zoo.data.images import check_images
from rsnn_zoo.models import ForeignNetwork, Network, Temporal
from rsnn_zoo.models.layers import Normalize, PooledCounts, Spiking
from rsnn_zoo.models.rows import check_rows, hooked, mark_stem, undisturbed, with_timesteps
from rsnn_zoo.models.surgery import average_pool, prepared, replace
from rsnn_zoo.models.watch import POOLS, ClippedReLU
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron, Surrogate, check_timesteps
from rsnn_zoo.spec.names import near_matches

__all__ = ["METHODS", "SpikingNetwork", "calibrate", "convert", "relearn_statistics"]

_log = logging.getLogger(__name__)

_FEW_IMAGES = 8  # with fewer, figures of an SNN depend on which they are

METHODS = {"absorb": ("soft", 0.5), "published": ("hard", 0.0)}
"""The methods of :func:`convert`, each with the reset and the initial membrane that it was made for."""


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


@torch.inference_mode(False)
@undisturbed()
@plain_defaults()
def convert(
    ann: nn.Module,
    timesteps: int = 8,
    images: Tensor | None = None,
    *,
    method: str = "absorb",
    percentile: float | None = None,
    scale: float | None = None,
    calibration_timesteps: int | None = None,
    reset: str | None = None,
    leak: float = 1.0,
    initial: float | None = None,
    surrogate: Surrogate | None = None,
    max_pool: str | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    progress: bool = False,
) -> Temporal:
    """A spiking copy of a trained network.

    With the method ``"absorb"`` a spike stands for its threshold: what follows a neuron is multiplied by it. Batch
    norms keep the ANN's statistics; each threshold is the one whose T-level staircase errs least on the ANN's
    activations; weights and biases, of batch norms and of other layers, are corrected layer by layer so that currents
    have the ANN's mean and spread in each channel. The channels of a network of this zoo are first brought to one
    scale, for which a ResNet gets weights by channel in its residual sums. It ends with thresholds of 1, its currents
    scaled; any other network has a gain beside each layer of neurons (:class:`rsnn_zoo.models.layers.Scaled`). So the
    logits approach the ANN's as T grows, with a soft reset and no leak; thresholds and corrections are those of
    ``timesteps``: for many more, convert again.

    With ``"published"`` each threshold is a percentile of the layer's currents times ``scale``, a spike is 1, and
    statistics are relearned: a start for fine-tuning, which keeps little of the ANN's accuracy by itself.

    Args:
        ann: A network of this zoo, or any whose activations are ReLUs (timm's, torchvision's, yours), clipped ones
            among them; it is left as it is. A module used in several places is split, and a ReLU or max pooling called
            as a function is made a module, through ``torch.fx``.
        timesteps: T of the SNN.
        images: Calibration images (B, C, H, W) in [0, 1], some hundreds of the training set.
        method: A key of ``METHODS``.
        percentile: Of each layer's currents that becomes its threshold, in (0, 100]; of the published method alone,
            where None means 99.7.
        scale: Factor on the thresholds found; likewise, 0.3.
        calibration_timesteps: Steps over which thresholds are found; likewise, 100.
        reset: ``"hard"`` or ``"soft"``; None for that of the method, soft for ``"absorb"``.
        leak: Membrane leak in [0, 1].
        initial: Membrane before the first step, as a part of the threshold, in [0, 1); None for that of the method: 0.5
            for ``"absorb"``, which loses the least in few steps (Bu et al., AAAI 2022).
        surrogate: How training will differentiate the spike.
        max_pool: ``"counts"`` gives spikes at the largest rate of a window
            (:class:`rsnn_zoo.models.layers.PooledCounts`), the default of ``"absorb"``; ``"spikes"`` pools each step's
            spikes, that of ``"published"`` and of registered architectures; ``"average"`` puts average pooling in its
            place.
        mean: Normalisation that the network expects from outside, per channel: it moves inside. None for one that
            takes [0, 1] as it is; not for networks of this zoo, which have theirs inside.
        std: Likewise.
        progress: Show a progress bar, with ``"absorb"``.

    Returns:
        The SNN in evaluation mode: for a network of this zoo its spiking twin, else a :class:`SpikingNetwork`.

    Raises:
        TypeError: If the network is no module, the images are no tensor of floating point, or timesteps no integer.
        ValueError: For a network with another activation, a product of activations, a norm by each image's statistics,
            or one that would mix images or time steps (the message names the layer and the remedy), for one that spikes
            already, does not run on the images, gives no logits, or holds weights of 16 bits or that are no numbers,
            for images that are none, and for an argument of the other method.

    Example:
        >>> snn = convert(timm.create_model("resnet18"), 8, images, mean=mean, std=std)  # doctest: +SKIP

    Source:
        ``"absorb"``: weights scaled by thresholds, Diehl et al., IJCNN 2015; the staircase, Bu et al., ICLR 2022;
        biases corrected by mean currents, Li et al., "A Free Lunch From ANN", ICML 2021; rescaled channels, Nagel et
        al., ICCV 2019. ``"published"``: Özdenizci &
        Legenstein, TMLR 2024, section 3.2.
    """
    counted = method == "absorb" and not isinstance(ann, ForeignNetwork)
    max_pool = max_pool or ("counts" if counted else "spikes")
    _check_arguments(ann, images, method, max_pool, mean, std)
    given = {"timesteps": calibration_timesteps, "percentile": percentile, "scale": scale}
    published = {key: value for key, value in given.items() if value is not None}
    if method == "absorb" and published:
        names = ", ".join(key.replace("timesteps", "calibration_timesteps") for key in published)
        raise ValueError(f"{names}: of method='published' alone; 'absorb' finds thresholds without, so leave it out")
    usual_reset, usual_initial = METHODS[method]
    reset, initial = usual_reset if reset is None else reset, usual_initial if initial is None else initial
    spiking = Spiking(check_timesteps(timesteps), leak=leak, reset=reset, initial=initial, surrogate=surrogate)
    network = _copied_network(ann)
    images = images.to(next(network.parameters(), images))  # in the network's precision, on its device
    normalize: nn.Module = nn.Identity()
    if mean is not None or std is not None:
        normalize = Normalize(mean, std, images.shape[1]).to(images)
    own = isinstance(ann, Network)
    _check_runs(network, normalize(images[:2]))
    network = prepared(network, normalize(images[:2]), max_pool, split=not own)
    if max_pool == "average":
        replace(network, POOLS, average_pool)
    absorbs = method == "absorb"
    # where it is known which weights stand around each activation, what spikes stand for goes into them
    spiking = changed(spiking, scaled=absorbs and not (own and takes_scales(network)))
    activations = {name: module for name, module in network.named_modules() if isinstance(module, nn.ReLU)}
    bounds = {name: module.limit for name, module in activations.items() if isinstance(module, ClippedReLU)}
    observed = None
    if absorbs:  # while it still is the ANN
        observed = _observed(network, list(activations), normalize, images, spiking, progress)
    replace(network, nn.ReLU, lambda _: spiking.activation())
    snn = _in_time(ann, network, spiking, normalize).to(images).eval()
    mark_stem(snn, images)
    if max_pool == "counts":
        _count_pools(snn, images[:2])
    if observed is not None:
        root = snn if own else snn.network
        absorb(snn, root, thresholds_of(observed, spiking, bounds), observed, progress)
        check_rows(snn, images)
        return snn
    _publish(snn, images, {name if own else f"network.{name}": limit for name, limit in bounds.items()}, published)
    return snn


def _observed(
    network: nn.Module, names: list[str], normalize: nn.Module, images: Tensor, spiking: Spiking, progress: bool
) -> Observed:
    """What the ANN does on the images; where its weights are to take what spikes stand for, of equal channels."""
    chunks = chunks_of(network, names, normalize, images, spiking.timesteps)
    if not spiking.scaled:
        equalise(network, normalize, chunks, spiking)
    return observe(network, names, normalize, chunks, progress)


def _publish(snn: Temporal, images: Tensor, bounds: dict[str, float | None], settings: dict[str, Any]) -> None:
    """Finds thresholds and statistics by the published method; a clipped activation bounds its threshold."""
    try:
        calibrate(snn, images, **settings)
        check_rows(snn, images)
        relearn_statistics(snn, images)
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise ValueError("the published method relearns batch norms: it takes more than one image") from error
        raise
    for name, neuron in snn.neurons():
        if (limit := bounds.get(name)) is not None:
            neuron.threshold.clamp_(max=limit)


def _check_runs(network: nn.Module, x: Tensor) -> None:
    """Refuses a network that takes other images, or more than images.

    Raises:
        ValueError: If it does not run; says what it said.
    """
    try:
        network(x.clone())
    except (RuntimeError, TypeError, IndexError) as error:
        cause = str(error).strip().split("\n")[0]
        raise ValueError(
            f"the network does not run on {len(x)} images of shape (C, H, W) = {tuple(x.shape[1:])} ({cause}): pass "
            "images as it takes them, let it take any number of them, and wrap one that takes more than images in a "
            "module that takes images alone"
        ) from error


def _check_arguments(
    ann: nn.Module, images: Tensor | None, method: str, max_pool: str, mean: object, std: object
) -> None:
    """Refuses what :func:`convert` cannot take."""
    if not isinstance(ann, nn.Module):
        kind = f"the class {ann.__name__}" if isinstance(ann, type) else f"a {type(ann).__name__}"
        raise TypeError(f"convert takes a trained network, an nn.Module, not {kind}: create_model makes one of a name")
    if images is None:
        raise ValueError("convert finds thresholds from data: pass some hundred training images (B, C, H, W) in [0, 1]")
    if method not in METHODS:
        raise ValueError(f"method is {method!r}{near_matches(str(method), METHODS)}")
    if max_pool not in ("counts", "spikes", "average"):
        raise ValueError(f"max_pool must be 'counts', 'spikes' or 'average', got {max_pool!r}")
    check_images(images)
    if len(images) < _FEW_IMAGES:
        _log.warning("thresholds are found from few images (%d), and depend on which: pass some hundreds", len(images))
    if any(isinstance(values, int | float) for values in (mean, std)):
        raise TypeError("mean and std hold one number for each channel: mean=(0.5,)")
    if any(isinstance(module, SpikingNeuron) for module in ann.modules()):
        raise ValueError("the network spikes already: set snn.timesteps, or call rsnn_zoo.calibrate for new thresholds")
    if isinstance(ann, ForeignNetwork) and max_pool != "spikes":
        raise ValueError("a registered architecture is rebuilt by its builder: put the average pooling there")
    if isinstance(ann, Network) and (mean is not None or std is not None):
        raise ValueError("a network of this zoo normalises inside: leave mean and std out")
    if lost := [name for name, value in ann.state_dict().items() if not _is_finite(value)]:
        raise ValueError(f"{lost[0]} holds values that are no finite numbers: was the network trained to the end?")
    if any(tensor.dtype in (torch.float16, torch.bfloat16) for tensor in ann.state_dict().values()):
        raise ValueError(
            "the network holds weights of 16 bits, in which spikes flip by rounding: convert network.float(), and "
            "train or attack that in mixed precision"
        )


def _is_finite(value: object) -> bool:
    known = isinstance(value, Tensor) and value.is_floating_point() and not value.is_meta
    return not known or bool(value.isfinite().all())


def _count_pools(snn: Temporal, images: Tensor) -> None:
    """Lets the max pools behind the first neuron follow the largest rate."""
    timed: set[nn.Module] = set()
    steps = 3  # more than 1, to tell them from those that see the images

    def note(pool: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].shape[0] == steps * len(images):
            timed.add(pool)

    pools = [module for module in snn.modules() if isinstance(module, POOLS)]
    with with_timesteps(snn, steps), hooked(pools, pre=note):
        snn(images)
    replace(snn, POOLS, lambda pool: PooledCounts(pool, snn.timesteps) if pool in timed else pool)


def _copied_network(ann: nn.Module) -> nn.Module:
    """A copy in evaluation mode."""
    if isinstance(ann, torch.jit.ScriptModule):
        raise ValueError("a scripted network has no modules to put neurons in place of: convert the nn.Module itself")
    try:
        return copy.deepcopy(ann).eval()
    except RuntimeError as error:
        raise ValueError(
            f"the network cannot be copied ({error}): weights that a hook makes anew (weight_norm, spectral_norm, "
            "prune) need torch.nn.utils.parametrizations, or the hook removed"
        ) from error


def _in_time(ann: nn.Module, network: nn.Module, spiking: Spiking, normalize: nn.Module) -> Temporal:
    """The network as an SNN: one of this zoo as what it is, with a record of its ANN."""
    if not isinstance(network, Network):
        return SpikingNetwork(network, spiking, normalize)
    network.spiking = spiking
    ann_of = {"ann": ann.pretrained_name, "ann_sha256": ann.weights_sha256}
    network.training_record = {key: value for key, value in ann_of.items() if value}
    network.pretrained_name = network.weights_sha256 = None  # those were the ANN's
    return network
