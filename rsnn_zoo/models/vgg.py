"""VGG-11 and VGG-16 with batch norm and average pooling, ANN and SNN.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, in the layout
of the ANN-to-SNN literature (three to five average pools, two hidden linear layers of 4096): Özdenizci & Legenstein,
TMLR 2024.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

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
        hidden_features: Width of the two hidden linear layers.
        drop_rate: Dropout behind each hidden layer, in [0, 1].
        **kwargs: See :class:`rsnn_zoo.models.Network`.
    """

    classifier_name = "head"
    first_conv = "features.0"
    fixed_img_size = True

    def __init__(self, architecture: str, hidden_features: int = 4096, drop_rate: float = 0.0, **kwargs: Any):
        super().__init__(architecture, **kwargs)
        layers: list[nn.Module] = []
        channels, side = self.in_chans, self.img_size
        for item in CONFIGURATIONS[architecture]:
            if isinstance(item, int):
                first = not layers
                norm = self.spiking.static_norm(item) if first else nn.BatchNorm2d(item)
                layers += [nn.Conv2d(channels, item, 3, padding=1), norm, self.spiking.activation(repeated=first)]
                channels = item
            elif side > 1:
                layers.append(nn.AvgPool2d(2))
                side //= 2
        if side > 4:
            layers.append(nn.AvgPool2d(2))
            side //= 2
        self.num_features, self.hidden_features = channels, hidden_features
        self.features = nn.Sequential(*layers)
        self.pre_logits = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * side * side, hidden_features),
            self.spiking.activation(),
            nn.Dropout(drop_rate),
            nn.Linear(hidden_features, hidden_features),
            self.spiking.activation(),
            nn.Dropout(drop_rate),
        )
        initialise(self)
        self.head = nn.Linear(hidden_features, self.num_classes) if self.num_classes else nn.Identity()

    @property
    def head_features(self) -> int:
        """Width of the hidden linear layers."""
        return self.hidden_features

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
