"""Layers whose weights want no gradient: to pass one on to their input they need nothing of it, and so keep nothing.

What autograd keeps for the gradients of weights, though nobody wants them, is most of the memory of a backward pass;
without it the next layer finds memory that is still in the caches.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rsnn_zoo.models.layers import is_plain_norm

__all__ = ["FrozenConv2d", "freeze"]


class _Convolve(torch.autograd.Function):
    """The convolution of a layer, to the bit, and its gradient with respect to the input."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, layer: FrozenConv2d) -> Tensor:
        return layer.forth(x) if weight is layer.weight else nn.Conv2d._conv_forward(layer, x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.layer = inputs
        ctx.size = x.shape[2:]
        ctx.save_for_backward(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), layer = ctx.saved_tensors, ctx.layer
        own = weight is layer.weight
        result = layer.back(grad, ctx.size) if own else _gradient(layer, weight, grad, ctx.size)
        return result, None, None, None


def _gradient(layer: nn.Conv2d, weight: Tensor, grad: Tensor, size: torch.Size) -> Tensor:
    """Gradient with respect to the input of a convolution, of ``size`` (H, W), given that of its output."""
    sizes = zip(size, layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    beyond = [(n + 2 * p - d * (k - 1) - 1) % stride for n, k, stride, p, d in sizes]  # what no window reached
    how = layer.stride, layer.padding, beyond, layer.groups, layer.dilation
    # autocast gives gradients of 16 bits
    return F.conv_transpose2d(grad, weight.to(grad.dtype), None, *how)


class _Normalise(torch.autograd.Function):
    """The batch norm of a layer in evaluation, to the bit, and its gradient with respect to the input."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, layer: nn.BatchNorm2d) -> Tensor:
        return nn.BatchNorm2d.forward(layer, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = ctx.saved_tensors
        return grad * scale.to(grad.dtype)[:, None, None], None, None


def _alone(x: Tensor, *others: Tensor | None) -> bool:
    """Whether of these the batch of images alone wants a gradient."""
    wanted = torch.is_grad_enabled() and x.requires_grad and x.dim() == 4
    return wanted and not any(other is not None and other.requires_grad for other in others)


class FrozenConv2d(nn.Conv2d):
    """A convolution whose weights want no gradient: see :func:`freeze`."""

    def forth(self, x: Tensor) -> Tensor:
        """The convolution, without a gradient."""
        return nn.Conv2d._conv_forward(self, x, self.weight, self.bias)

    def back(self, grad: Tensor, size: torch.Size) -> Tensor:
        """Gradient with respect to an input of ``size`` (H, W), given that of the output."""
        return _gradient(self, self.weight, grad, size)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _alone(input, weight, bias):
            return super()._conv_forward(input, weight, bias)
        return _Convolve.apply(input, weight, bias, self)


class _BatchNorm2d(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.running_var is None or not _alone(x, self.weight, self.bias):
            return super().forward(x)
        scale = (self.running_var + self.eps).rsqrt()
        return _Normalise.apply(x, scale if self.weight is None else scale * self.weight, self)


def freeze(model: nn.Module) -> nn.Module:
    """Convolutions and batch norms pass gradients on to their input alone; weights want none any more.

    Outputs stay the same to the bit.

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
            module.__class__ = FrozenConv2d
        elif is_plain_norm(module):
            module.__class__ = _BatchNorm2d
    return model
