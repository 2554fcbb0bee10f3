"""VGG-11 and VGG-16 with batch norm and average pooling, ANN and SNN.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, in the layouts
of Özdenizci & Legenstein, TMLR 2024: two hidden linear layers of 4096 behind the flattened feature map, and for the
VGG-11 of 64x64 images (Tiny ImageNet) other convolutions, a global average pool and one hidden layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from rsnn_zoo.models._base import FeatureStage, Junction, Network, initialise

__all__ = ["VGG", "vgg11", "vgg16"]

# Output channels of the 3x3 convolutions; "A" is a 2x2 average pool.
CONFIGURATIONS: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "A", 128, 256, "A", 512, 512, 512, "A", 512, 512),
    "vgg16": (64, 64, "A", 128, 128, "A", 256, 256, 256, "A", 512, 512, 512, "A", 512, 512, 512, "A"),
}

# Of images of LARGE pixels and more: these end in a global average pool and one hidden layer, without dropout.
LARGE = 64
POOLED: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "A", 128, "A", 256, 256, "A", 512, 512, "A", 512, 512),
}


class VGG(Network):
    """Convolution, batch norm and activation after one another, hidden linear layers, a classifier.

    A pool that would leave nothing is left out (images below 32 pixels), and one more follows where the flattened
    feature map would be wider than 4.

    Args:
        architecture: A name of ``CONFIGURATIONS``; from 64x64 pixels on that of ``POOLED``, where there is one.
        hidden_features: Width of the hidden linear layers.
        drop_rate: Dropout behind each of two hidden layers, in [0, 1].
        **kwargs: See :class:`rsnn_zoo.models.Network`.
    """

    classifier_name = "head"
    first_conv = "features.0"
    fixed_img_size = True

    def __init__(self, architecture: str, hidden_features: int = 4096, drop_rate: float = 0.0, **kwargs: Any):
        super().__init__(architecture, **kwargs)
        pooled = self.img_size >= LARGE and architecture in POOLED
        layers, channels, side = self._features((POOLED if pooled else CONFIGURATIONS)[architecture])
        if side > 4 and not pooled:  # or the first hidden layer would have four times the weights
            layers.append(nn.AvgPool2d(2))
            side //= 2
        self.num_features, self.hidden_features = channels, hidden_features
        self.features = nn.Sequential(*layers)
        if pooled:
            hidden = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), *self._hidden(channels)]
        else:
            hidden = [nn.Flatten(), *self._hidden(channels * side * side), nn.Dropout(drop_rate)]
            hidden += [*self._hidden(hidden_features), nn.Dropout(drop_rate)]
        self.pre_logits = nn.Sequential(*hidden)
        initialise(self)
        self.head = nn.Linear(hidden_features, self.num_classes) if self.num_classes else nn.Identity()
        self.stages = self._stages()
        self.ready()

    def _features(self, configuration: Sequence[int | str]) -> tuple[list[nn.Module], int, int]:
        """Layers of a configuration, then the channels and the side of the maps that they give."""
        layers: list[nn.Module] = []
        channels, side = self.in_chans, self.img_size
        for item in configuration:
            if isinstance(item, int):
                first = not layers  # sees the same image at every step
                norm = self.spiking.static_norm(item) if first else nn.BatchNorm2d(item)
                layers += [nn.Conv2d(channels, item, 3, padding=1), norm, self.spiking.activation(repeated=first)]
                channels = item
            elif side > 1:
                layers.append(nn.AvgPool2d(2))
                side //= 2
        return layers, channels, side

    def _stages(self) -> tuple[FeatureStage, ...]:
        """A convolution with its norm and activation each; feature maps are taken before pools and at the end."""
        stages: list[FeatureStage] = []
        names: list[str] = []
        channels, reduction, layers = 0, 1, list(self.features)
        for i, (layer, following) in enumerate(zip(layers, [*layers[1:], None], strict=True)):
            names.append(f"features.{i}")
            pools = isinstance(layer, nn.AvgPool2d)
            reduction *= 2 if pools else 1
            channels = layer.out_channels if isinstance(layer, nn.Conv2d) else channels
            if following is None or isinstance(following, nn.Conv2d | nn.AvgPool2d):
                mapped = not pools and not isinstance(following, nn.Conv2d)
                stages.append(FeatureStage(tuple(names), channels if mapped else None, reduction))
                names = []
        return tuple(stages)

    def _hidden(self, inputs: int) -> tuple[nn.Module, nn.Module]:
        return nn.Linear(inputs, self.hidden_features), self.spiking.activation()

    @property
    def head_features(self) -> int:
        """Width of the hidden linear layers."""
        return self.hidden_features

    def junctions(self) -> list[Junction]:
        """Every activation between its weights, in the order of the forward pass."""
        layers = [*self.features, *self.pre_logits, self.get_classifier()]
        weighted = [layer for layer in layers if getattr(layer, "weight", None) is not None]
        found = []
        for before, activation in pairwise(layers):
            if isinstance(before, nn.BatchNorm2d) or (isinstance(before, nn.Linear) and before is not layers[-1]):
                after = weighted[weighted.index(before) + 1]
                found.append(Junction(activation, (before.weight, before.bias), (after.weight,)))
        return found

    def pool(self, x: Tensor) -> Tensor:
        """The hidden linear layers: (T * B, 512, h, w) to (T * B, hidden_features)."""
        return self.pre_logits(x)


def vgg11(**kwargs: Any) -> VGG:
    """VGG-11 (61 M parameters; 12 M at 64x64): Simonyan & Zisserman, ICLR 2015. Arguments: see :class:`VGG`."""
    return VGG("vgg11", **kwargs)


def vgg16(**kwargs: Any) -> VGG:
    """VGG-16: Simonyan & Zisserman, ICLR 2015. Arguments: see :class:`VGG`."""
    return VGG("vgg16", **kwargs)
