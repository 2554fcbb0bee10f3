"""ResNet-20 and ResNet-32 for small images, ANN and SNN.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, with the trained residual weights and
projection shortcuts of the robust-conversion networks (Özdenizci & Legenstein, TMLR 2024).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rsnn_zoo.models._base import Channels, FeatureStage, Junction, Network, initialise
from rsnn_zoo.models.layers import Spiking, WeightedSum

__all__ = ["BasicBlock", "ResNet", "resnet20", "resnet32"]


class BasicBlock(nn.Module):
    """act2(w0 * shortcut(x) + w1 * bn2(conv2(act1(bn1(conv1(x))))))."""

    foldable = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, in_chs: int, out_chs: int, stride: int, spiking: Spiking, channel_sums: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.act1 = spiking.activation()
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_chs != out_chs:
            self.downsample = nn.Sequential(nn.Conv2d(in_chs, out_chs, 1, stride, bias=False), nn.BatchNorm2d(out_chs))
        self.sum = WeightedSum(out_chs if channel_sums else None)
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
        channel_sums: Whether each channel of a residual sum has two weights of its own, as after :func:`convert`.
        **kwargs: See :class:`rsnn_zoo.models.Network`.
    """

    foldable = (("conv1", "bn1"),)
    channel_sums = False  # of the class, so that the digests of networks without are what they were

    def __init__(self, architecture: str, depth: int, channel_sums: bool = False, **kwargs: Any):
        super().__init__(architecture, **kwargs)
        self.num_features = 64
        if channel_sums:
            self.channel_sums = True
        self.conv1 = nn.Conv2d(self.in_chans, 16, 3, 1, 1, bias=False)
        self.bn1 = self.spiking.static_norm(16)
        self.act1 = self.spiking.activation(repeated=True)
        self.layer1 = self._stage(16, 16, 1, depth)
        self.layer2 = self._stage(16, 32, 2, depth)
        self.layer3 = self._stage(32, 64, 2, depth)
        initialise(self)
        self.fc = nn.Linear(64, self.num_classes) if self.num_classes else nn.Identity()
        self.stages = (
            FeatureStage(("conv1", "bn1", "act1"), 16),
            *(FeatureStage((f"layer{n}",), 8 * 2**n, 2 ** (n - 1)) for n in (1, 2, 3)),
        )
        self.ready()

    def _stage(self, in_chs: int, out_chs: int, stride: int, depth: int) -> nn.Sequential:
        how = self.spiking, self.channel_sums
        first = BasicBlock(in_chs, out_chs, stride, *how)
        return nn.Sequential(first, *(BasicBlock(out_chs, out_chs, 1, *how) for _ in range(depth - 1)))

    @property
    def blocks(self) -> list[Any]:
        """The blocks in the order of the forward pass."""
        return [*self.layer1, *self.layer2, *self.layer3]

    def junctions(self) -> list[Junction]:
        """Every activation between its weights, in the order of the forward pass."""
        blocks = self.blocks
        after = [*(block.inputs for block in blocks), (self.get_classifier().weight,)]
        found = [Junction(self.act1, (self.bn1.weight, self.bn1.bias), after[0])]
        for block, following in zip(blocks, after[1:], strict=True):
            found.append(Junction(block.act1, (block.bn1.weight, block.bn1.bias), (block.conv2.weight,)))
            found.append(Junction(block.act2, (block.sum.weight,), following))
        return found

    def channels(self) -> list[Channels]:
        """Feature maps whose channels can be rescaled: those of every layer, where sums have weights by channel."""
        found = super().channels()  # of the layers behind a norm
        if self.channel_sums:
            sums = [one for one in self.junctions() if one.before[0].dim() == 2]
            found += [Channels(one.activation, (one.before[0].t(),), one.after) for one in sums]
        return found

    def free_channels(self) -> None:
        """Gives the residual sums weights by channel, without which identity shortcuts tie the scales of a stage."""
        self.channel_sums = True
        for block in self.blocks:
            block.sum.split(block.conv2.out_channels)

    def pool(self, x: Tensor) -> Tensor:
        """Global average pooling: (T * B, 64, h, w) to (T * B, 64)."""
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


def resnet20(**kwargs: Any) -> ResNet:
    """ResNet-20 (0.27 M parameters): He et al., CVPR 2016. Arguments as :class:`ResNet`'s."""
    return ResNet("resnet20", 3, **kwargs)


def resnet32(**kwargs: Any) -> ResNet:
    """ResNet-32 (0.47 M parameters): He et al., CVPR 2016. Arguments as :class:`ResNet`'s."""
    return ResNet("resnet32", 5, **kwargs)
