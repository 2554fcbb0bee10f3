"""VGG-11 and VGG-16 with batch norm and average pooling, ANN and SNN.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, in the layout
of the ANN-to-SNN literature (three to five average pools, two hidden linear layers of 4096): Özdenizci & Legenstein,
TMLR 2024.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from rsnn_zoo.layers import Spiking
from rsnn_zoo.models._base import Network, initialise

__all__ = ["VGG", "vgg11", "vgg16"]

# Output channels of the 3x3 convolutions; "A" is a 2x2 average pool.
CONFIGURATIONS: dict[str, tuple[int | str, ...]] = {
    "vgg11": (64, "A", 128, 256, "A", 512, 512, 512, "A", 512, 512),
    "vgg16": (64, 64, "A", 128, 128, "A", 256, 256, 256, "A", 512, 512, 512, "A", 512, 512, 512),
}


class VGG(Network):
    """Convolution, batch norm and activation after one another, two hidden linear layers, a classifier.

    A pool that would leave nothing is left out (images below 16 pixels), and one more follows where the last feature
    map is wider than 4 (the 64x64 variant for Tiny-ImageNet), so that the hidden layers keep their size.

    Args:
        architecture: A name of ``CONFIGURATIONS``.
        num_classes: K; 0 for no classifier.
        in_chans: Channels of the images.
        img_size: Side of the images in pixels; fixed, since linear layers follow.
        timesteps: T of the SNN, or None for the ANN.
        mean: Per channel, of pixels in [0, 1]; zeros by default.
        std: Likewise; ones by default.
        hidden_features: Width of the two hidden linear layers.
        drop_rate: Dropout behind each hidden layer, in [0, 1].
        **neuron: ``threshold``, ``leak``, ``reset``, ``surrogate`` of every neuron: see :class:`Spiking`.
    """

    classifier_name = "head"
    first_conv = "features.0"
    fixed_img_size = True

    def __init__(
        self,
        architecture: str,
        num_classes: int = 10,
        in_chans: int = 3,
        img_size: int = 32,
        timesteps: int | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        hidden_features: int = 4096,
        drop_rate: float = 0.0,
        **neuron: Any,
    ):
        spiking = Spiking(timesteps, **neuron)
        super().__init__(architecture, num_classes, in_chans, img_size, spiking, mean, std)
        layers: list[nn.Module] = []
        channels, side = in_chans, img_size
        for item in CONFIGURATIONS[architecture]:
            if isinstance(item, int):
                first = not layers
                norm = spiking.static_norm(item) if first else nn.BatchNorm2d(item)
                layers += [nn.Conv2d(channels, item, 3, padding=1), norm, spiking.activation(repeated=first)]
                channels = item
            elif side > 1:
                layers.append(nn.AvgPool2d(2))
                side //= 2
        if side > 4:
            layers.append(nn.AvgPool2d(2))
            side //= 2
        self.num_features, self._hidden_features = channels, hidden_features
        self.features = nn.Sequential(*layers)
        self.pre_logits = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * side * side, hidden_features),
            spiking.activation(),
            nn.Dropout(drop_rate),
            nn.Linear(hidden_features, hidden_features),
            spiking.activation(),
            nn.Dropout(drop_rate),
        )
        initialise(self)
        self.head = nn.Linear(hidden_features, num_classes) if num_classes else nn.Identity()

    @property
    def head_features(self) -> int:
        """Width of the hidden linear layers."""
        return self._hidden_features

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to (T * B, 512, h, w)."""
        return self.features(self.normalize(x))

    def pool(self, x: Tensor) -> Tensor:
        """The hidden linear layers: (T * B, 512, h, w) to (T * B, hidden_features)."""
        return self.pre_logits(x)


def vgg11(**kwargs: Any) -> VGG:
    """VGG-11 (61 M parameters at 32x32): Simonyan & Zisserman, ICLR 2015. Arguments as :class:`VGG`'s."""
    return VGG("vgg11", **kwargs)


def vgg16(**kwargs: Any) -> VGG:
    """VGG-16: Simonyan & Zisserman, ICLR 2015. Arguments as :class:`VGG`'s."""
    return VGG("vgg16", **kwargs)
