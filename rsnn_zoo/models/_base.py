"""What every network of the zoo is: a timm-style module, ANN or SNN, with its normalisation inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rsnn_zoo._utils.integers import checked_integer
from rsnn_zoo.models._arguments import neuron_arguments
from rsnn_zoo.models._stages import FeatureStage, Staged
from rsnn_zoo.models.layers import Normalize, PooledCounts, Spiking, StaticBatchNorm2d
from rsnn_zoo.neurons.integrate_fire import Relu, SpikingNeuron, Surrogate, check_timesteps, current_mode
from rsnn_zoo.spec.timm_cfg import pretrained_cfg

__all__ = ["Channels", "FeatureStage", "Junction", "Network", "Temporal", "initialise"]


class Junction(NamedTuple):
    """A layer of activations between the weights that make its currents and those that its outputs are multiplied by.

    Multiplying all ``before`` by c and all ``after`` by 1 / c leaves a ReLU network the function that it is.
    """

    activation: nn.Module
    before: tuple[Tensor, ...]
    after: tuple[Tensor, ...]


class Channels(NamedTuple):
    """A layer of activations whose channels have a free scale each, between the weights that make and take them.

    Dividing all ``before`` (channels first) by positive numbers, one for each channel, and multiplying all ``after``
    (channels second) by them leaves a ReLU network the function that it is.
    """

    activation: nn.Module
    before: tuple[Tensor, ...]
    after: tuple[Tensor, ...]


class Temporal(nn.Module):
    """A network in time: knows its number of steps and its spiking layers.

    Attributes:
        spiking: What its activations are.
    """

    def __init__(self, spiking: Spiking):
        super().__init__()
        self.spiking = spiking

    @property
    def reset(self) -> str:
        """``"hard"`` or ``"soft"``."""
        return self.spiking.reset

    @property
    def leak(self) -> float:
        """What remains of a membrane from step to step."""
        return self.spiking.leak

    @property
    def initial(self) -> float:
        """The membrane before the first step, as a part of the threshold."""
        return self.spiking.initial

    @property
    def surrogate(self) -> str | None:
        """Name of the derivative by which training differentiates the spike; None for the usual one."""
        surrogate = self.spiking.surrogate
        return None if surrogate in (None, Surrogate()) else str(surrogate)

    @property
    def scaled(self) -> bool:
        """Whether each layer of neurons has a gain beside it."""
        return self.spiking.scaled

    @property
    def timesteps(self) -> int | None:
        """T of the SNN, changeable at any time; None of the ANN."""
        return self.spiking.timesteps

    @timesteps.setter
    def timesteps(self, timesteps: int) -> None:
        if self.timesteps is None:
            raise ValueError("an ANN has no time steps: convert it with rsnn_zoo.convert(ann, timesteps=...)")
        timesteps = check_timesteps(timesteps)
        self.spiking = replace(self.spiking, timesteps=timesteps)
        for module in self.modules():
            if isinstance(module, SpikingNeuron | PooledCounts):
                module.timesteps = timesteps
            elif isinstance(module, StaticBatchNorm2d):
                module.copies = timesteps

    @property
    def steps(self) -> int:
        """Steps of a forward pass now: T, or 1 for the ANN and under the ReLU mode."""
        return 1 if self.timesteps is None or isinstance(current_mode(), Relu) else self.timesteps

    def neurons(self) -> Iterator[tuple[str, SpikingNeuron]]:
        """The spiking layers by name, as they are registered: in this zoo's families the order of the forward pass."""
        return ((name, module) for name, module in self.named_modules() if isinstance(module, SpikingNeuron))

    def over_time(self, logits: Tensor, per_step: bool) -> Tensor:
        """(T * B, K) to (T, B, K), or to the mean over time, (B, K); likewise feature maps."""
        logits = logits.reshape(self.steps, -1, *logits.shape[1:])
        return logits if per_step else logits.mean(0)


class Network(Temporal, Staged):
    """Base class of the families: images (B, C, H, W) in [0, 1] to logits (B, K), the mean over time.

    A family sets ``num_features``, the name of its last linear layer in ``classifier_name`` and that of its first
    convolution in ``first_conv`` and its ``stages``, implements ``pool``, and is ``ready`` when it is built.

    Args:
        architecture: Name of the configuration.
        num_classes: K; 0 for no classifier.
        in_chans: Channels of the images.
        img_size: Side of the images in pixels.
        timesteps: T of the SNN, or None for the ANN.
        mean: Per channel, of pixels in [0, 1]; zeros by default.
        std: Likewise; ones by default.
        global_pool: ``"avg"``, or ``""`` for unpooled features where there is no classifier.
        device: Of the parameters.
        dtype: Of the parameters.
        **neuron: ``threshold``, ``leak``, ``reset``, ``initial``, ``surrogate``, ``scaled`` of every neuron:
            see :class:`Spiking`. Arguments of timm's that have no meaning here are taken at the value that changes
            nothing.

    Raises:
        TypeError: For an unknown argument.
        ValueError: For a value out of range, mean and std that do not fit the channels, or an argument of timm's that
            would have to change something.
    """

    classifier_name = "fc"
    first_conv = "conv1"
    fixed_img_size = False
    global_pool = "avg"
    channels_last = True  # it may run in that layout
    # of one that was loaded; a converted one has a record of its ANN
    pretrained_name: str | None = None
    weights_sha256: str | None = None
    stored_as: Any = None  # a ``Form`` of rsnn_zoo.hub.shards, by which it saves as the files that it was loaded from
    training_record: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        architecture: str,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int = 32,
        timesteps: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        global_pool: str = "avg",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **neuron: Any,
    ):
        super().__init__(Spiking(timesteps, **neuron_arguments(architecture, neuron)))
        in_chans, img_size = checked_integer("in_chans", in_chans, 1), checked_integer("img_size", img_size, 1)
        num_classes = checked_integer("num_classes", num_classes, 0)
        self._set_pool(global_pool, num_classes)
        self._placed_at = device, dtype
        self.architecture = architecture
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.img_size = img_size
        self.normalize = Normalize(mean, std, in_chans)
        self.pretrained_cfg: dict[str, Any] = {
            "architecture": f"rsnn_{architecture}",
            "fixed_input_size": self.fixed_img_size,
            **pretrained_cfg(num_classes, in_chans, img_size, self.first_conv, self.classifier_name),
        }
        self.default_cfg = self.pretrained_cfg  # as in timm

    # --- forward ---

    def pool(self, x: Tensor) -> Tensor:
        """Feature map to what the classifier sees, (T * B, F)."""
        raise NotImplementedError

    def junctions(self) -> list[Junction]:
        """Every activation between its weights, in the order of the forward pass."""
        raise NotImplementedError

    def channels(self) -> list[Channels]:
        """Feature maps whose channels can be rescaled: of junctions between a norm and weights for its channels."""
        found = []
        for activation, before, after in self.junctions():
            norm = all(tensor.dim() == 1 for tensor in before)
            if norm and all(weight.shape[1:2] == before[0].shape for weight in after):
                found.append(Channels(activation, before, after))
        return found

    def free_channels(self) -> None:
        """Gives every channel weights of its own where it shares one with others, which changes no output."""

    def forward_head(self, x: Tensor, pre_logits: bool = False, per_step: bool = False) -> Tensor:
        """Feature map (T * B, ...) to logits.

        Args:
            x: What ``forward_features`` returned.
            pre_logits: Return what the classifier would see, (T * B, F).
            per_step: Return the logits of each step, (T, B, K), in place of their mean over time, (B, K).

        Returns:
            Logits; of a network without classifier and pooling its feature map, in the same way over time.
        """
        if not self.global_pool:
            return x if pre_logits else self.over_time(x, per_step)
        x = self.pool(x)
        if pre_logits:
            return x
        return self.over_time(self.get_classifier()(x), per_step)

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        """Logits of images in [0, 1].

        Args:
            x: (B, C, H, W).
            per_step: Return the logits of each step.

        Returns:
            (B, K), the mean over time; with ``per_step`` (T, B, K).

        Raises:
            TypeError: For images of integers.
            ValueError: For a wrong number of dimensions, channels, or (where the network fixes it) image size.
        """
        self.check(x)
        return self.forward_head(self.forward_features(x), per_step=per_step)

    def check(self, x: Tensor) -> None:
        """Raises where ``forward`` would."""
        if not x.is_floating_point():
            raise TypeError(f"images must be floating point in [0, 1], got {x.dtype}: divide uint8 by 255")
        expected = (self.in_chans, self.img_size, self.img_size)
        if x.dim() != 4 or x.shape[1] != self.in_chans or (self.fixed_img_size and tuple(x.shape[1:]) != expected):
            raise ValueError(
                f"{self.architecture} takes images (B, {', '.join(map(str, expected))}) in [0, 1], got {tuple(x.shape)}"
            )

    # --- classifier, as in timm ---

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The last linear layer, or its name."""
        return self.classifier_name if name_only else self.get_submodule(self.classifier_name)

    def _set_pool(self, global_pool: str | None, num_classes: int) -> None:
        if global_pool not in (None, "avg", "") or (global_pool == "" and num_classes):
            raise ValueError(f"global_pool must be 'avg', or '' without classes, got {global_pool!r}")
        self.__dict__.pop("global_pool", None)  # the usual one is the class's
        if global_pool == "":
            self.global_pool = ""

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the last linear layer by a new one of ``num_classes`` outputs (0: none).

        ``global_pool`` may be ``""`` where there are no classes: the network then gives its feature maps.
        """
        num_classes = checked_integer("num_classes", num_classes, 0)
        self._set_pool(global_pool, num_classes)
        self.num_classes = num_classes
        old = self.normalize.mean
        new = nn.Linear(self.head_features, num_classes) if num_classes else nn.Identity()
        setattr(self, self.classifier_name, new.to(old.device, old.dtype).train(self.training))

    @property
    def head_features(self) -> int:
        """Inputs of the last linear layer."""
        return self.num_features

    @property
    def head_hidden_size(self) -> int:
        """The same by timm's name."""
        return self.head_features

    def ready(self) -> None:
        """Puts a network that has been built where it was asked for."""
        if place := [place for place in self._placed_at if place is not None]:
            self.to(*place)
        del self._placed_at


def initialise(network: nn.Module) -> None:
    """He initialisation of convolutions, as the three families' papers have it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
