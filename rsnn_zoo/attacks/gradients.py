"""The gradient of a loss with respect to the images: what every gradient attack spends its time on.

Batch norms are folded into the convolutions before them, what stands before the first neuron is computed once, weights get
no gradient, the batch is cut into chunks whose T steps stay in the cache, and convolutions may run in bfloat16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from rsnn_zoo.neurons import BackwardMode, backward_mode

__all__ = ["LOSSES", "PRECISIONS", "InputGradient", "fold_batch_norms", "input_gradient"]

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "ce": lambda logits, labels: F.cross_entropy(logits, labels, reduction="none"),
}
"""Losses to maximise by name: logits (B, K) and labels (B,) to one value a sample, (B,)."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _fold(parent: nn.Module, conv: str, norm: str) -> None:
    setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), getattr(parent, norm)))
    setattr(parent, norm, nn.Identity())


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode with every foldable batch norm folded into the convolution before it.

    Foldable are the pairs that a module names in ``foldable``, and a batch norm right behind a convolution in an
    ``nn.Sequential``. The outputs are the same but for rounding, which may flip single spikes.
    """
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        for conv, norm in getattr(module, "foldable", ()):
            _fold(module, conv, norm)
        if isinstance(module, nn.Sequential):
            names = list(module._modules)
            for conv, norm in zip(names, names[1:], strict=False):
                if isinstance(module._modules[conv], nn.Conv2d) and isinstance(module._modules[norm], nn.BatchNorm2d):
                    _fold(module, conv, norm)
    return model


def input_gradient(
    model: Callable[[Tensor], Tensor], images: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradient of a loss with respect to the images, and the logits, of any model as it stands.

    Args:
        model: Images (B, C, H, W) to logits (B, K); nothing of it is touched.
        images: (B, C, H, W).
        loss: Logits to the losses, summed here, so that samples do not weigh on each other.

    Returns:
        The gradient, shaped as the images, and the logits, both detached.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(images)
        (gradient,) = torch.autograd.grad(loss(logits).sum(), images)
    return gradient, logits.detach()


class InputGradient:
    """The input gradient of one model under one backward mode, as fast as this machine gives it.

    Args:
        model: A network of this zoo, or any module from images in [0, 1] to logits. It is copied, not touched.
        mode: How to differentiate the spike; None for each neuron's own surrogate.
        precision: ``"float32"``, or ``"bfloat16"`` for the convolutions and linear layers; membranes stay in float32.
        chunk: Images that go through the network at once.
        fold: Fold batch norms. Without it (and in float32) the logits are those of the model itself, to the bit.

    Example:
        >>> gradient, logits = InputGradient(model, Rate())(images, labels)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        mode: BackwardMode | None = None,
        precision: str = "float32",
        chunk: int = 16,
        fold: bool = True,
    ):
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        self.mode = mode
        self.chunk = chunk
        self.dtype = PRECISIONS[precision]
        self.model = (fold_batch_norms(model) if fold else copy.deepcopy(model).eval()).requires_grad_(False)
        if self.dtype != torch.float32:
            self._lower()

    def _lower(self) -> None:
        """Everything to 16 bits but the normalisation of the images and the thresholds."""
        for module in self.model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.modules.batchnorm._BatchNorm):
                module.to(self.dtype)
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(self.dtype),))

    def __call__(self, images: Tensor, labels: Tensor, loss: str | Loss = "ce") -> tuple[Tensor, Tensor]:
        """Gradients (B, C, H, W) and logits (B, K), both float32.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: (B,).
            loss: A name of ``LOSSES``, or a function of logits (B, K) and labels (B,) to values (B,).
        """
        function = LOSSES[loss] if isinstance(loss, str) else loss
        pairs = zip(images.split(self.chunk), labels.split(self.chunk), strict=True)
        with backward_mode(self.mode):
            parts = [input_gradient(self.model, x, lambda z, y=y: function(z.float(), y)) for x, y in pairs]
        gradients, logits = zip(*parts, strict=True)
        return torch.cat(gradients), torch.cat(logits).float()
