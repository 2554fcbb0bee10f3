"""ResNet-20 and ResNet-32 for small images, ANN and SNN.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, with the trained residual weights and
projection shortcuts of the robust-conversion networks (Özdenizci & Legenstein, TMLR 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rsnn_zoo.models._base import Channels, FeatureStage, Junction, Network, initialise
from rsnn_zoo.models.layers import Spiking, WeightedSum

__all__ = ["BasicBlock", "ResNet", "resnet20", "resnet32"]


class BasicBlock(nn.Module):
    """act2(w0 * shortcut(x) + w1 * bn2(conv2(act1(bn1(conv1(x))))))."""

    foldable = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, in_chs: int, out_chs: int, stride: int, spiking: Spiking):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.act1 = spiking.activation()
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_chs != out_chs:
            self.downsample = nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, stride, bias=False), nn.BatchNorm2d(out_chs))
        self.sum = WeightedSum()
        self.act2 = spiking.activation()

    def forward(self, x: Tensor) -> Tensor:
        """(T * B, in_chs, H, W) to (T * B, out_chs, H / stride, W / stride)."""
        residual = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(self.sum(self.downsample(x), residual))

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The weights that the block's input is multiplied by."""
        plain = isinstance(self.downsample, nn.Identity)
        return self.conv1.weight, self.sum.weight[:1] if plain else self.downsample[0].weight


class ResNet(Network):
    """Three stages of 16, 32 and 64 channels.

    Args:
        architecture: Name of the configuration.
        depth: Blocks a stage.
        **kwargs: See :class:`rsnn_zoo.models.Network`.
    """

    foldable = (("conv1", "bn1"),)

    def __init__(self, architecture: str, depth: int, **kwargs: Any):
        super().__init__(architecture, **kwargs)
        self.num_features = 64
        self.conv1 = nn.Conv2d(self.in_chans, 16, 3, 1, 1, bias=False)
        self.bn1 = self.spiking.static_norm(16)
        self.act1 = self.spiking.activation(repeated=True)
        self.layer1 = self._stage(16, 16, 1, depth, self.spiking)
        self.layer2 = self._stage(16, 32, 2, depth, self.spiking)
        self.layer3 = self._stage(32, 64, 2, depth, self.spiking)
        initialise(self)
        self.fc = nn.Linear(64, self.num_classes) if self.num_classes else nn.Identity()
        self.stages = (
            FeatureStage(("conv1", "bn1", "act1"), 16),
            *(FeatureStage((f"layer{n}",), 8 * 2**n, 2 ** (n - 1)) for n in (1, 2, 3)),
        )
        self.ready()

    @staticmethod
    def _stage(in_chs: int, out_chs: int, stride: int, depth: int, spiking: Spiking) -> nn.Sequential:
        first = BasicBlock(in_chs, out_chs, stride, spiking)
        return nn.Sequential(first, *(BasicBlock(out_chs, out_chs, 1, spiking) for _ in range(depth - 1)))

    def junctions(self) -> list[Junction]:
        """Every activation between its weights, in the order of the forward pass."""
        blocks = [*self.layer1, *self.layer2, *self.layer3]
        after = [*(block.inputs for block in blocks), (self.get_classifier().weight,)]
        found = [Junction(self.act1, (self.bn1.weight, self.bn1.bias), after[0])]
        for block, following in zip(blocks, after[1:], strict=True):
            found.append(Junction(block.act1, (block.bn1.weight, block.bn1.bias), (block.conv2.weight,)))
            found.append(Junction(block.act2, (block.sum.weight,), following))
        return found

    def channels(self) -> list[Channels]:
        """Feature maps whose channels can be rescaled: inside a block alone, along identity shortcuts together."""
        found = [one for one in super().channels() if one.activations[0] is not self.act1]
        activations, norms, layers = [self.act1], [self.bn1], []
        for block in (*self.layer1, *self.layer2, *self.layer3):
            layers.append(block.conv1)
            if not isinstance(block.downsample, nn.Identity):
                projection, norm = block.downsample
                found.append(_along_shortcuts(activations, norms, [*layers, projection]))
                activations, norms, layers = [], [norm], []
            activations.append(block.act2)
            norms.append(block.bn2)
        return [*found, _along_shortcuts(activations, norms, [*layers, self.get_classifier()])]

    def pool(self, x: Tensor) -> Tensor:
        """Global average pooling: (T * B, 64, h, w) to (T * B, 64)."""
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


def _along_shortcuts(
    activations: Sequence[nn.Module], norms: Sequence[nn.Module], layers: Sequence[nn.Module]
) -> Channels:
    before = tuple(tensor for norm in norms for tensor in (norm.weight, norm.bias))
    return Channels(tuple(activations), before, tuple(layer.weight for layer in layers))


def resnet20(**kwargs: Any) -> ResNet:
    """ResNet-20 (0.27 M parameters): He et al., CVPR 2016. Arguments as :class:`ResNet`'s."""
    return ResNet("resnet20", 3, **kwargs)


def resnet32(**kwargs: Any) -> ResNet:
    """ResNet-32 (0.47 M parameters): He et al., CVPR 2016. Arguments as :class:`ResNet`'s."""
    return ResNet("resnet32", 5, **kwargs)
