"""The forward pass and the input gradient of a folded residual network in fewer passes over memory.

A neuron adds the shortcut as it fires, its backward pass adds the gradients of both ways behind it, and convolutions
keep nothing. Under a mode that gives every step the same gradient (through the rate, or averaged over the steps) one
step alone goes back through the convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rsnn_zoo.models.fold import FoldedSum
from rsnn_zoo.models.frozen import FrozenConv2d
from rsnn_zoo.models.native import NativeConv2d
from rsnn_zoo.models.resnet import BasicBlock, ResNet
from rsnn_zoo.neurons.dynamics import Dynamics, backward, fire, fire_only, from_rows, is_channels_last, to_rows
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron
from rsnn_zoo.neurons.kernels import run, transforming, wide
from rsnn_zoo.neurons.modes import Firing, Relu, ThroughRate, current_mode, current_units
from rsnn_zoo.neurons.surrogates import SpikeDerivative

__all__ = ["chunks_together", "fuse"]

_CHUNKS, _PIXELS = 4, 256 * 32 * 32
"""Chunks of images that share what the call of a layer costs, and pixels times steps of them, at most: more gain little
and take memory."""


# --- kernels: see rsnn_zoo.neurons.kernels ------------------------------------------------------------------------


def _fire_sum(x: Tensor, shortcut: Tensor, alpha: Tensor, threshold: Tensor, neuron: Dynamics) -> tuple[Tensor, Tensor]:
    """:func:`fire` at the currents x + alpha * shortcut."""
    return fire(x + alpha * shortcut, threshold, neuron)


def _fire_sum_only(x: Tensor, shortcut: Tensor, alpha: Tensor, threshold: Tensor, neuron: Dynamics) -> Tensor:
    """Spikes of :func:`_fire_sum` alone."""
    return fire_only(x + alpha * shortcut, threshold, neuron)


def _back(
    excess: Tensor,
    grad: Tensor,
    threshold: Tensor,
    width: Tensor,
    neuron: Dynamics,
    derivative: SpikeDerivative,
) -> Tensor:
    """Gradient of the currents, (T, N) or, where that of each step is the same, (1, N); likewise that of the spikes."""
    grad = grad.expand(neuron.timesteps, -1)
    currents, _ = backward(grad, excess, threshold, width, neuron, derivative, with_threshold=False)
    return currents[:1] if derivative.averaged else currents


def _alpha_rows(alpha: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """A shortcut's weight as it multiplies rows of maps (B, C, H, W): as it is, or for one of each channel (1, N)."""
    if alpha.dim() == 0:
        return alpha
    layout = torch.channels_last if channels_last else torch.contiguous_format
    spread = alpha[:, None, None].expand(tuple(shape)).contiguous(memory_format=layout)
    return to_rows(spread, 1, channels_last)


def _back_sum(excess: Tensor, grad: Tensor, other: Tensor, alpha: Tensor, *rest: Any) -> Tensor:
    """:func:`_back` of the gradient grad + alpha * other."""
    return _back(excess, grad + alpha * other, *rest)


# --- one layer ----------------------------------------------------------------------------------------------------


@dataclass
class _Fired:
    """What a layer of neurons has to remember."""

    neuron: Dynamics
    derivative: SpikeDerivative | None
    """Of the spike; None where the backward pass is through the rate."""
    kept: tuple[Tensor, ...]
    """u - threshold, the threshold and the derivative's width; or the slope of the rate alone."""
    shape: tuple[int, ...]
    """Of the currents of one step, (B, C, H, W)."""
    channels_last: bool

    def back(self, grad: Tensor, other: Tensor | None, alpha: Tensor) -> Tensor:
        """Gradient of the currents, given that of the spikes as the sum grad + alpha * other; one step, or all."""
        steps = grad.shape[0] // self.shape[0]
        rows = to_rows(grad, steps, self.channels_last)
        others = None if other is None else to_rows(other, steps, self.channels_last)
        alpha = _alpha_rows(alpha, self.shape, self.channels_last)
        if self.derivative is None:
            rows = rows if others is None else rows + alpha * others
            result = rows * self.kept[0]
        else:
            excess, *rest = self.kept
            how = self.neuron, self.derivative
            if others is None:
                result = run(_back, (excess, rows, *rest), how, steps=self.neuron.timesteps)
            else:
                result = run(_back_sum, (excess, rows, others, alpha, *rest), how, steps=self.neuron.timesteps)
        return from_rows(result, (result.shape[0] * self.shape[0], *self.shape[1:]), self.channels_last)


def _spikes_only(
    layer: SpikingNeuron, x: Tensor, shortcut: Tensor | None = None, alpha: Tensor | None = None
) -> Tensor:
    """What a layer fires at the currents x, or x + alpha * shortcut, (T * B, ...); nothing is remembered."""
    neuron, channels_last = layer.dynamics, is_channels_last(x)
    images = x.shape[0] // neuron.rows
    tensors: tuple[Tensor, ...] = (to_rows(x, neuron.rows, channels_last),)
    if shortcut is not None and alpha is not None:
        weight = _alpha_rows(alpha, (images, *x.shape[1:]), channels_last)
        tensors = *tensors, to_rows(shortcut, neuron.rows, channels_last), weight
    threshold = layer.acting_threshold.to(wide(x.dtype))
    function = fire_only if shortcut is None else _fire_sum_only
    spikes = run(function, (*tensors, threshold), (neuron,), steps=neuron.timesteps)
    return from_rows(spikes, (neuron.timesteps * images, *x.shape[1:]), channels_last)


def _spikes(
    layer: SpikingNeuron, x: Tensor, shortcut: Tensor | None = None, alpha: Tensor | None = None
) -> tuple[Tensor, _Fired]:
    """What a layer fires at the currents x, or x + alpha * shortcut, (T * B, ...), and what it has to remember."""
    mode = current_mode() or layer.surrogate
    neuron, channels_last = layer.dynamics, is_channels_last(x)
    rows = to_rows(x, neuron.rows, channels_last)
    threshold = layer.acting_threshold.to(wide(x.dtype))
    tensors: tuple[Tensor, ...] = (rows, threshold)
    function = fire
    shape = (x.shape[0] // neuron.rows, *x.shape[1:])
    if shortcut is not None and alpha is not None:
        others = to_rows(shortcut, neuron.rows, channels_last)
        alpha = _alpha_rows(alpha, shape, channels_last)
        if isinstance(mode, ThroughRate):  # looks at the currents
            tensors = rows.add_(alpha * others), threshold
        else:
            function, tensors = _fire_sum, (rows, others, alpha, threshold)
    spikes, excess = run(function, tensors, (neuron,), steps=neuron.timesteps)
    firing = Firing(rows, excess, threshold, neuron.leak, shape, channels_last, current_units())
    if isinstance(mode, ThroughRate):
        derivative, kept = None, (mode.slope_of(firing),)
    else:
        derivative, kept = mode.spike_derivative(firing.units), (excess, threshold, mode.width_of(firing))
    spikes = from_rows(spikes, (neuron.timesteps * shape[0], *shape[1:]), channels_last)
    return spikes, _Fired(neuron, derivative, kept, shape, channels_last)


# --- all blocks ---------------------------------------------------------------------------------------------------


@dataclass
class _Passed:
    """What a block has to remember."""

    block: BasicBlock
    size: torch.Size
    """Of its input."""
    first: _Fired
    second: _Fired


class _Blocks(torch.autograd.Function):
    """Run a block from the currents of its first neurons to the spikes of its last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, network: FusedResNet) -> Tensor:
        x, ctx.stem = _spikes(network.act1, x)
        ctx.passed = []
        for block in network.blocks:
            size, shortcut = x.shape[2:], block.downsample(x)
            y, first = _spikes(block.act1, block.conv1(x))
            x, second = _spikes(block.act2, block.conv2(y), shortcut, block.sum.shortcut_weight)
            ctx.passed.append(_Passed(block, size, first, second))
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        steps = ctx.stem.neuron.timesteps
        if ctx.stem.derivative is None:  # linear, and at each step the same
            flat = to_rows(grad, steps, ctx.stem.channels_last).sum(0)
            grad = from_rows(flat, (grad.shape[0] // steps, *grad.shape[1:]), ctx.stem.channels_last)
        other: Tensor | None = None
        weight = ctx.stem.kept[0].new_ones(())
        for passed in reversed(ctx.passed):
            block: Any = passed.block
            current = passed.second.back(grad, other, weight)
            current_first = passed.first.back(block.conv2.back(current, passed.first.shape[2:]), None, weight)
            grad = block.conv1.back(current_first, passed.size)
            weight = block.sum.shortcut_weight
            other = current
            for conv in (module for module in block.downsample.modules() if isinstance(module, FrozenConv2d)):
                other = conv.back(current, passed.size)
        return ctx.stem.back(grad, other, weight), None


class FusedResNet(ResNet):
    """A folded and frozen ResNet whose blocks are one differentiable function: see :func:`fuse`."""

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to (T * B, 64, H / 4, W / 4)."""
        special = torch.is_autocast_enabled("cpu") or transforming() or torch.compiler.is_compiling()
        if isinstance(current_mode(), Relu) or special or self.grad_checkpointing:
            return super().forward_features(x)
        x = self.conv1(self.normalize(x))
        if torch.is_grad_enabled():
            return _Blocks.apply(x, self)
        x = _spikes_only(self.act1, x)
        for block in self.blocks:
            residual = block.conv2(_spikes_only(block.act1, block.conv1(x)))
            x = _spikes_only(block.act2, residual, block.downsample(x), block.sum.shortcut_weight)
        return x

    def over_time(self, logits: Tensor, per_step: bool) -> Tensor:
        """Logits of each step, or their mean, summed in one order: that of torch's mean depends on the batch."""
        steps = super().over_time(logits, per_step=True)
        return steps if per_step else sum(steps[1:], steps[0]) / len(steps)


def _fusible(model: nn.Module) -> bool:
    """Whether it is a folded, frozen ResNet of this zoo, spiking, of which nothing was changed or hooked."""
    if type(model) is not ResNet or model.timesteps is None:
        return False
    if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
        return False
    stages = (model.layer1, model.layer2, model.layer3)
    if any(type(stage) is not nn.Sequential for stage in stages):  # pruned, perhaps
        return False
    blocks = [block for stage in stages for block in stage]
    if not all(type(block) is BasicBlock and type(block.sum) is FoldedSum for block in blocks):
        return False
    norms = [model.bn1, *(norm for block in blocks for norm in (block.bn1, block.bn2))]
    acts = [model.act1, *(act for block in blocks for act in (block.act1, block.act2))]
    convs = [model.conv1, *(conv for block in blocks for conv in (block.conv1, block.conv2))]
    shortcuts = [module for block in blocks for module in block.downsample.modules()]
    expected = (FrozenConv2d, NativeConv2d, nn.Identity, nn.Sequential)
    return (
        all(type(norm) is nn.Identity for norm in norms)
        and all(type(act) is SpikingNeuron and act.timesteps == model.timesteps for act in acts)
        and all(type(conv) in (FrozenConv2d, NativeConv2d) for conv in convs)
        and all(type(module) in expected for module in shortcuts)
        and model.act1.repeated
        and not any(act.repeated for act in acts[1:])
        and not any(parameter.requires_grad for parameter in model.parameters())
    )


def fuse(model: nn.Module) -> nn.Module:
    """A folded and frozen ResNet whose gradient takes fewer passes over memory; other networks stay as they are.

    The outputs and gradients are the same but for rounding.

    Args:
        model: What :func:`rsnn_zoo.models.fold.fold` and :func:`rsnn_zoo.models.frozen.freeze` gave; changed in place.

    Returns:
        The model.

    Example:
        >>> fuse(freeze(fold(model)))(images.requires_grad_()).sum().backward()  # doctest: +SKIP
    """
    if _fusible(model):
        model.__class__ = FusedResNet
    return model


def chunks_together(model: nn.Module, chunk: int, images: Tensor) -> int:
    """How many chunks of images (B, C, H, W) a network takes at once: 1 to 4 of a fused one on a CPU, else 1.

    Each image's outputs and gradients are the same to the bit, since convolutions on a CPU sum in one order whatever
    the batch; other devices choose by its size.
    """
    if not isinstance(model, FusedResNet) or model.timesteps is None or images.device.type != "cpu":
        return 1
    return max(1, min(_CHUNKS, _PIXELS // (chunk * model.timesteps * math.prod(images.shape[2:]))))
