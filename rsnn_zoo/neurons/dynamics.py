"""The loops of the neuron over T steps: forward, backward and tangent, on tensors in storage order.

Each is written once, in plain PyTorch, so that a compiler can make one kernel of it. What they all need to know of the
neuron stands in one :class:`Dynamics`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rsnn_zoo.neurons.kernels import wide
from rsnn_zoo.neurons.surrogates import SpikeDerivative

__all__ = ["Dynamics", "backward", "fire", "fire_only", "from_rows", "is_channels_last", "tangent", "to_rows"]


@dataclass(frozen=True)
class Dynamics:
    """Constants of a layer of neurons.

    Attributes:
        timesteps: T.
        leak: What remains of the membrane from step to step, in [0, 1].
        soft: The reset subtracts the threshold; else it sets the membrane to 0.
        initial: Membrane before the first step, as a part of the threshold, in [0, 1).
        repeated: The currents are those of one step, shown at every step.
    """

    timesteps: int
    leak: float = 1.0
    soft: bool = False
    initial: float = 0.0
    repeated: bool = False

    @property
    def rows(self) -> int:
        """Steps that the currents hold: T, or 1."""
        return 1 if self.repeated else self.timesteps


# --- layout ---------------------------------------------------------------------------------------------------------


def is_channels_last(x: Tensor) -> bool:
    """Whether channels come last in the memory of x; vmap cannot tell, and then they do not."""
    if x.dim() != 4 or x.is_contiguous() or torch._C._are_functorch_transforms_active():
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def to_rows(x: Tensor, rows: int, channels_last: bool) -> Tensor:
    """Returns x in storage order as (rows, N), without a copy where it is dense."""
    flat = x.permute(0, 2, 3, 1) if channels_last else x.contiguous()
    return flat.reshape(rows, -1)


def from_rows(flat: Tensor, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    """Returns the inverse of :func:`to_rows` for a tensor of ``shape``."""
    if not channels_last:
        return flat.reshape(shape)
    n, c, h, w = shape
    return flat.reshape(n, h, w, c).permute(0, 3, 1, 2)


# --- forward --------------------------------------------------------------------------------------------------------


def fire(x: Tensor, threshold: Tensor, neuron: Dynamics) -> tuple[Tensor, Tensor]:
    """Spikes and u - threshold of all steps, (T, N) each, from currents (T, N), or (1, N) shown at every step.

    u - threshold is kept rather than u: its sign is the spike, exactly, in any precision.
    """
    dtype = wide(x.dtype)
    spikes, excess = [], []
    v = neuron.initial * threshold if neuron.initial else None
    for t in range(neuron.timesteps):
        current = x[t if x.shape[0] > 1 else 0].to(dtype)
        u = current if v is None else (v if neuron.leak == 1.0 else neuron.leak * v) + current
        d = u - threshold
        fired = d >= 0
        v = torch.where(fired, d if neuron.soft else 0.0, u)
        spikes.append(torch.where(fired, 1.0, 0.0).to(x.dtype))  # four times faster than fired.to() in 16 bits
        excess.append(d.to(x.dtype))
    return torch.stack(spikes), torch.stack(excess)


def fire_only(x: Tensor, threshold: Tensor, neuron: Dynamics) -> Tensor:
    """Spikes of :func:`fire` alone, to the bit; eager, at small sizes, in a third of the calls."""
    if torch.compiler.is_compiling():
        return fire(x, threshold, neuron)[0]
    fired = []
    v = neuron.initial * threshold if neuron.initial else None
    for current in x.to(wide(x.dtype)).expand(neuron.timesteps, -1).unbind():
        u = current if v is None else (v if neuron.leak == 1.0 else neuron.leak * v) + current
        spikes = u >= threshold
        v = torch.where(spikes, u - threshold, u) if neuron.soft else u.masked_fill(spikes, 0.0)
        fired.append(spikes)
    return torch.stack(fired).to(x.dtype)


# --- derivatives ----------------------------------------------------------------------------------------------------


class _Spike(torch.autograd.Function):
    """1 where d >= 0, with the surrogate derivative: what derivatives of derivatives see of the reset."""

    generate_vmap_rule = True

    @staticmethod
    def forward(d: Tensor, width: Tensor, threshold: Tensor, derivative: SpikeDerivative) -> Tensor:
        return (d >= 0).to(d.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.derivative = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad * ctx.derivative.slope(*ctx.saved_tensors), None, None, None

    @staticmethod
    def jvp(ctx: Any, d: Tensor, *_: Any) -> Tensor:
        return d * ctx.derivative.slope(*ctx.saved_tensors)


def _width_at(t: int, width: Tensor) -> Tensor:
    """The width at step t, of a scalar, (1, N) or (T, N)."""
    return width if width.dim() == 0 else width[t if width.shape[0] > 1 else 0]


def _select(
    silent: Tensor | float,
    fired: Tensor | float,
    at: tuple[Tensor, Tensor, Tensor],
    derivative: SpikeDerivative | None,
) -> Tensor:
    """``fired`` where d >= 0, else ``silent``, at (d, width, threshold); with a derivative of it, if that is given."""
    if derivative is None:
        return torch.where(at[0] >= 0, fired, silent)
    spike = _Spike.apply(*at, derivative)
    return spike * fired + (1 - spike) * silent


def backward(
    grad: Tensor,
    excess: Tensor,
    threshold: Tensor,
    width: Tensor,
    neuron: Dynamics,
    derivative: SpikeDerivative,
    with_threshold: bool,
    grad_excess: Tensor | None = None,
    again: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Gradients with respect to the currents, (T, N) or (1, N), and to the threshold.

    The chain rule through the recursion of :func:`fire`, from the last step to the first, reset included, with
    :class:`rsnn_zoo.neurons.surrogates.SpikeDerivative` in place of the spike's.

    Args:
        grad: Of the spikes, (T, N).
        excess: What :func:`fire` returned, (T, N).
        threshold: A scalar.
        width: Of the derivative: a scalar, (1, N) or (T, N).
        neuron: Constants.
        derivative: Of the spike.
        with_threshold: The threshold wants a gradient.
        grad_excess: Of ``excess``, (T, N), where it was used: by a derivative that is differentiated.
        again: The result will be differentiated, reset included.
    """
    dtype = wide(grad.dtype)
    grads: list[Tensor] = []
    total: Tensor | None = None  # over the steps
    threshold_sum: Tensor | None = None
    carry: Tensor | None = None
    for t in range(neuron.timesteps - 1, -1, -1):
        d = excess[t].to(dtype)
        at = d, _width_at(t, width), threshold
        g = grad[t].to(dtype)
        if carry is not None:
            g = g - (threshold if neuron.soft else d + threshold) * carry
        lost = through = g * derivative.slope(*at)
        if grad_excess is not None:
            lost = through = through + grad_excess[t].to(dtype)
        du = through
        if carry is not None and neuron.soft:
            du = carry + through
            lost = through + _select(0.0, carry, at, derivative if again else None)
        elif carry is not None:
            du = _select(carry, 0.0, at, derivative if again else None) + through
        if neuron.repeated or derivative.averaged:
            total = du if total is None else total + du
        else:
            grads.append(du.to(grad.dtype))
        if with_threshold:
            threshold_sum = lost if threshold_sum is None else threshold_sum + lost
        if not derivative.averaged:
            carry = du if neuron.leak == 1.0 else neuron.leak * du
    if neuron.initial and threshold_sum is not None and carry is not None:
        threshold_sum = threshold_sum - neuron.initial * carry  # v_0 is a part of the threshold
    if total is None:
        currents = torch.stack(grads[::-1])
    elif neuron.repeated:
        currents = total.to(grad.dtype).unsqueeze(0)
    else:
        currents = torch.stack([(total / neuron.timesteps).to(grad.dtype)] * neuron.timesteps)
    return currents, None if threshold_sum is None else -threshold_sum.sum()


def tangent(
    excess: Tensor,
    threshold: Tensor,
    width: Tensor,
    of_x: Tensor,
    of_threshold: Tensor,
    neuron: Dynamics,
    derivative: SpikeDerivative,
) -> tuple[Tensor, Tensor]:
    """Tangents of the spikes and of u - threshold, (T, N) each: the linear map of which :func:`backward` is transposed.

    Args:
        excess: What :func:`fire` returned, (T, N).
        threshold: A scalar.
        width: Of the derivative: a scalar, (1, N) or (T, N).
        of_x: Tangent of the currents, (T, N) or (1, N).
        of_threshold: Tangent of the threshold, a scalar.
        neuron: Constants.
        derivative: Of the spike.
    """
    dtype = wide(excess.dtype)
    of_x = of_x.to(dtype)
    if derivative.averaged:
        of_x = of_x.mean(0, keepdim=True)
    of_v = neuron.initial * of_threshold if neuron.initial else torch.zeros_like(of_threshold)
    spikes, excesses = [], []
    for t in range(neuron.timesteps):
        d = excess[t].to(dtype)
        of_u = of_x[t if of_x.shape[0] > 1 else 0]
        if not derivative.averaged:
            of_u = neuron.leak * of_v + of_u
        of_d = of_u - of_threshold
        at = d, _width_at(t, width), threshold
        of_spike = derivative.slope(*at) * of_d
        fired = _Spike.apply(*at, derivative)
        if neuron.soft:
            of_v = of_u - threshold * of_spike - fired * of_threshold
        else:
            of_v = of_u - fired * of_u - (d + threshold) * of_spike
        spikes.append(of_spike.to(excess.dtype))
        excesses.append(of_d.to(excess.dtype))
    return torch.stack(spikes), torch.stack(excesses)
