"""WideResNet-16-4 and -28-4 for small images, ANN and SNN.

Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016: pre-activation blocks. With the trained residual weights
of the robust-conversion networks (Özdenizci & Legenstein, TMLR 2024).
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rsnn_zoo.models._base import FeatureStage, Junction, Network, initialise
from rsnn_zoo.models.layers import Spiking, WeightedSum

__all__ = ["PreActBlock", "WideResNet", "wrn16_4", "wrn28_4"]


class PreActBlock(nn.Module):
    """w0 * shortcut + w1 * conv2(act2(bn2(conv1(y)))) with y = act1(bn1(x)).

    The shortcut takes y where the width changes, else x itself.
    """

    foldable = (("conv1", "bn2"),)

    def __init__(self, in_chs: int, out_chs: int, stride: int, spiking: Spiking, first: bool = False):
        super().__init__()
        self.bn1 = spiking.static_norm(in_chs) if first else nn.BatchNorm2d(in_chs)
        self.act1 = spiking.activation(repeated=first)
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.act2 = spiking.activation()
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        self.downsample = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False) if in_chs != out_chs else None
        self.sum = WeightedSum()

    def forward(self, x: Tensor) -> Tensor:
        """(T * B, in_chs, H, W) to (T * B, out_chs, H / stride, W / stride)."""
        y = self.act1(self.bn1(x))
        residual = self.conv2(self.act2(self.bn2(self.conv1(y))))
        return self.sum(x if self.downsample is None else self.downsample(y), residual)


class WideResNet(Network):
    """Three stages of 16, 32 and 64 times ``widen`` channels; arguments as :class:`rsnn_zoo.models.resnet.ResNet`'s.

    Args:
        architecture: Name of the configuration.
        depth: Blocks a stage.
        widen: Widening factor, at least 2.
        **kwargs: See :class:`rsnn_zoo.models.Network`.
    """

    def __init__(self, architecture: str, depth: int, widen: int, **kwargs: Any):
        super().__init__(architecture, **kwargs)
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.num_features = widths[-1]
        self.conv1 = nn.Conv2d(self.in_chans, widths[0], 3, 1, 1, bias=False)
        # The first block widens, so its shortcut starts behind its first neuron and all before that is computed once.
        self.layer1 = self._stage(widths[0], widths[1], 1, depth, self.spiking, first=True)
        self.layer2 = self._stage(widths[1], widths[2], 2, depth, self.spiking)
        self.layer3 = self._stage(widths[2], widths[3], 2, depth, self.spiking)
        self.bn = nn.BatchNorm2d(self.num_features)
        self.act = self.spiking.activation()
        initialise(self)
        self.fc = nn.Linear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()
        self.stages = (
            FeatureStage(("conv1",), widths[0]),
            *(FeatureStage((f"layer{n}",), widths[n], 2 ** (n - 1)) for n in (1, 2, 3)),
            FeatureStage(("bn", "act"), norm=True),
        )
        self.ready()

    @staticmethod
    def _stage(
        in_chs: int, out_chs: int, stride: int, depth: int, spiking: Spiking, first: bool = False
    ) -> nn.Sequential:
        head = PreActBlock(in_chs, out_chs, stride, spiking, first)
        return nn.Sequential(head, *(PreActBlock(out_chs, out_chs, 1, spiking) for _ in range(depth - 1)))

    def junctions(self) -> list[Junction]:
        """Every activation between its weights, in the order of the forward pass."""
        found = []
        for block in (*self.layer1, *self.layer2, *self.layer3):
            inputs = [conv.weight for conv in (block.conv1, block.downsample) if conv is not None]
            found.append(Junction(block.act1, (block.bn1.weight, block.bn1.bias), tuple(inputs)))
            found.append(Junction(block.act2, (block.bn2.weight, block.bn2.bias), (block.conv2.weight,)))
        return [*found, Junction(self.act, (self.bn.weight, self.bn.bias), (self.get_classifier().weight,))]

    def pool(self, x: Tensor) -> Tensor:
        """Global average pooling: (T * B, C, h, w) to (T * B, C)."""
        return F.adaptive_avg_pool2d(x, 1).flatten(1)


def wrn16_4(**kwargs: Any) -> WideResNet:
    """WRN-16-4 (2.75 M parameters): Zagoruyko & Komodakis, BMVC 2016. Arguments as :class:`WideResNet`'s."""
    return WideResNet("wrn16_4", 2, 4, **kwargs)


def wrn28_4(**kwargs: Any) -> WideResNet:
    """WRN-28-4 (5.85 M parameters): Zagoruyko & Komodakis, BMVC 2016. Arguments as :class:`WideResNet`'s."""
    return WideResNet("wrn28_4", 4, 4, **kwargs)
