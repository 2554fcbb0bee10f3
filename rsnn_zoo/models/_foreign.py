"""Networks from elsewhere (timm's, torchvision's, yours) as architectures of the zoo, ANN and SNN from one builder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rsnn_zoo.models._base import Junction, Network
from rsnn_zoo.models.rows import mark_stem
from rsnn_zoo.models.surgery import prepared, replace

__all__ = ["ForeignNetwork"]


class ForeignNetwork(Network):
    """A network whose activations are ReLU modules, with normalisation put inside; as an SNN it has neurons for them.

    Args:
        architecture: Name of the architecture.
        build: ``num_classes`` and ``in_chans`` to the ANN, a module from normalised images to logits.
        **kwargs: See :class:`rsnn_zoo.models.Network`.

    Attributes:
        network: What ``build`` gave; a ReLU that was used in several places is split.
        stem_once: Whether everything before the first neuron is computed once and not T times.

    Raises:
        ValueError: For another activation than ReLU, or one that is called as a function: names layer and remedy.
    """

    fixed_img_size = True
    channels_last = False

    def __init__(self, architecture: str, build: Callable[..., nn.Module], **kwargs: Any):
        super().__init__(architecture, **kwargs)
        network = build(num_classes=self.num_classes, in_chans=self.in_chans).eval()
        images = torch.zeros(2, self.in_chans, self.img_size, self.img_size)
        self.network = prepared(network, self.normalize(images), "spikes")
        self.stem_once = True
        if self.timesteps is not None:
            replace(self.network, nn.ReLU, lambda _: self.spiking.activation())
            self.eval()
            mark_stem(self, images)
            self.train()
        layers = {kind: [n for n, m in self.named_modules() if isinstance(m, kind)] for kind in (nn.Conv2d, nn.Linear)}
        if not all(layers.values()):
            raise ValueError(f"{architecture} has no convolution, or no linear layer to be its classifier")
        self.first_conv, self.classifier_name = layers[nn.Conv2d][0], layers[nn.Linear][-1]
        self.num_features = self.get_classifier().in_features
        self.pretrained_cfg |= {"first_conv": self.first_conv, "classifier": self.classifier_name}
        self.ready()

    def forward(self, x: Tensor, per_step: bool = False) -> Tensor:
        """Logits (B, K) of images (B, C, H, W) in [0, 1]; with ``per_step`` those of each step, (T, B, K)."""
        self.check(x)
        x = self.normalize(x)
        return self.over_time(self.network(x if self.stem_once else x.repeat(self.steps, 1, 1, 1)), per_step)

    def junctions(self) -> list[Junction]:
        """None: how its weights hang together is the builder's, so its neurons keep their gains."""
        return []

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Refuses: the classifier is the builder's."""
        raise ValueError(f"{self.architecture} is built as it is: build it with num_classes={num_classes}")
