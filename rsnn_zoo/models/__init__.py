"""The network families, ANN and SNN from one definition each."""

from collections.abc import Callable

from rsnn_zoo.models._base import Network, Temporal
from rsnn_zoo.models._foreign import ForeignNetwork
from rsnn_zoo.models.resnet import ResNet, resnet20, resnet32
from rsnn_zoo.models.vgg import VGG, vgg11, vgg16
from rsnn_zoo.models.wide_resnet import WideResNet, wrn16_4, wrn28_4

__all__ = [
    "ARCHITECTURES",
    "VGG",
    "ForeignNetwork",
    "Network",
    "ResNet",
    "Temporal",
    "WideResNet",
    "resnet20",
    "resnet32",
    "vgg11",
    "vgg16",
    "wrn16_4",
    "wrn28_4",
]

ARCHITECTURES: dict[str, Callable[..., Network]] = {
    builder.__name__: builder for builder in (vgg11, vgg16, resnet20, resnet32, wrn16_4, wrn28_4)
}
"""Every architecture of the zoo and its entry point."""
