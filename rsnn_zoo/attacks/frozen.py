"""Layers whose weights want no gradient: to pass one on to their input they need nothing of it, and so keep nothing.

What autograd keeps for the gradients of weights, though nobody wants them, is most of the memory of a backward pass;
without it the next layer finds memory that is still in the caches.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rsnn_zoo.layers import is_plain_norm

__all__ = ["freeze"]


class _Convolve(torch.autograd.Function):
    """The convolution of a layer, to the bit, and its gradient with respect to the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Conv2d) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return nn.Conv2d._conv_forward(layer, x, layer.weight, layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        sizes = zip(ctx.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
        beyond = [(n + 2 * p - d * (k - 1) - 1) % stride for n, k, stride, p, d in sizes]  # what no window reached
        how = layer.stride, layer.padding, beyond, layer.groups, layer.dilation
        return F.conv_transpose2d(grad, layer.weight, None, *how), None


class _Normalise(torch.autograd.Function):
    """The batch norm of a layer in evaluation, to the bit, and its gradient with respect to the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
        ctx.layer = layer
        return nn.BatchNorm2d.forward(layer, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        layer = ctx.layer
        scale = (layer.running_var + layer.eps).rsqrt()
        if layer.weight is not None:
            scale = scale * layer.weight
        return grad * scale.to(grad.dtype)[:, None, None], None


class _Conv2d(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wanted = torch.is_grad_enabled() and input.requires_grad
        return _Convolve.apply(input, self) if wanted else super()._conv_forward(input, weight, bias)


class _BatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        wanted = torch.is_grad_enabled() and x.requires_grad
        known = not self.training and self.running_var is not None
        return _Normalise.apply(x, self) if wanted and known else super().forward(x)


def freeze(model: nn.Module) -> nn.Module:
    """Convolutions and batch norms pass gradients on to their input alone; weights want none any more.

    Outputs stay the same to the bit. Gradients of gradients are not to be had.

    Args:
        model: Changed in place, and to be used in evaluation mode: hand over a copy.

    Returns:
        The model.

    Example:
        >>> freeze(copy.deepcopy(model).eval())(images.requires_grad_()).sum().backward()  # doctest: +SKIP
    """
    for module in model.requires_grad_(False).modules():
        plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        if plain:
            module.__class__ = _Conv2d
        elif is_plain_norm(module):
            module.__class__ = _BatchNorm2d
    return model
