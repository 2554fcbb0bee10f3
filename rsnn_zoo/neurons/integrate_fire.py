"""The spiking neuron: integrate-and-fire over T steps as one differentiable function.

Time and batch travel merged, time-major, as ``(T * B, ...)``, so that every other layer is an ordinary PyTorch layer.
Seen in storage order as ``(T, N)``, every spiking layer is one and the same kernel. Its two loops are written once, in
plain PyTorch: ``torch.compile`` makes a single C++ or Triton kernel of each where a compiler is found.

How the backward pass differentiates the spike is a value, not a flag on modules: see :mod:`rsnn_zoo.neurons.modes`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rsnn_zoo.neurons.kernels import run, wide
from rsnn_zoo.neurons.modes import (
    DERIVATIVES,
    BackwardMode,
    Firing,
    ModeView,
    Rate,
    Relu,
    Surrogate,
    ThroughRate,
    ThroughTime,
    backward_mode,
    current_mode,
    model_under,
)

__all__ = [
    "MIN_THRESHOLD",
    "BackwardMode",
    "ModeView",
    "Rate",
    "Relu",
    "SpikingNeuron",
    "Surrogate",
    "backward_mode",
    "check_timesteps",
    "current_mode",
    "integrate_and_fire",
    "model_under",
    "wide",
]

MIN_THRESHOLD = 0.03
"""No threshold acts below this value (published research code)."""

RESETS = ("hard", "soft")


# --- the two loops --------------------------------------------------------------------------------------------------


def _fire(
    x: Tensor, threshold: Tensor, timesteps: int, leak: float, soft: bool, initial: float
) -> tuple[Tensor, Tensor]:
    """Spikes and u - threshold of all steps, (T, N) each, from currents (T, N), or (1, N) shown at every step.

    u - threshold is kept rather than u: its sign is the spike, exactly, in any precision.
    """
    dtype = wide(x.dtype)
    spikes, excess = [], []
    v = initial * threshold if initial else None
    for t in range(timesteps):
        current = x[t if x.shape[0] > 1 else 0].to(dtype)
        u = current if v is None else (v if leak == 1.0 else leak * v) + current
        d = u - threshold
        fired = d >= 0
        v = torch.where(fired, d if soft else 0.0, u)
        spikes.append(torch.where(fired, 1.0, 0.0).to(x.dtype))  # four times faster than fired.to() in 16 bits
        excess.append(d.to(x.dtype))
    return torch.stack(spikes), torch.stack(excess)


def _fire_only(x: Tensor, threshold: Tensor, timesteps: int, leak: float, soft: bool, initial: float) -> Tensor:
    return _fire(x, threshold, timesteps, leak, soft, initial)[0]


def _backward(
    grad: Tensor,
    excess: Tensor,
    threshold: Tensor,
    width: Tensor,
    kind: str,
    timesteps: int,
    leak: float,
    soft: bool,
    initial: float,
    repeated: bool,
    averaged: bool,
    with_threshold: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients with respect to the currents, (T, N) or (1, N), and to the threshold.

    The chain rule through the recursion of :func:`_fire`, from the last step to the first, reset included, with
    ``DERIVATIVES[kind]`` of u - threshold in place of the spike's derivative. ``width`` is a scalar, (1, N) or (T, N).
    ``averaged``: from step to step nothing is carried back, and each step's current gets the mean over the steps.
    """
    dtype = wide(grad.dtype)
    grads: list[Tensor] = []
    total: Tensor | None = None  # over the steps
    threshold_sum: Tensor | None = None
    carry: Tensor | None = None
    for t in range(timesteps - 1, -1, -1):
        d = excess[t].to(dtype)
        slope = DERIVATIVES[kind](d, width if width.dim() == 0 else width[t if width.shape[0] > 1 else 0])
        g = grad[t].to(dtype)
        if carry is None:
            through = g * slope
            du = through
            lost = through
        elif soft:
            through = (g - threshold * carry) * slope
            du = carry + through
            lost = through + torch.where(d >= 0, carry, 0.0)
        else:
            through = (g - carry * (d + threshold)) * slope
            du = torch.where(d >= 0, 0.0, carry) + through
            lost = through
        if repeated or averaged:
            total = du if total is None else total + du
        else:
            grads.append(du.to(grad.dtype))
        if with_threshold:
            threshold_sum = lost if threshold_sum is None else threshold_sum + lost
        if not averaged:
            carry = du if leak == 1.0 else leak * du
    if initial and threshold_sum is not None and carry is not None:
        threshold_sum = threshold_sum - initial * carry  # v_0 is a part of the threshold
    if total is None:
        currents = torch.stack(grads[::-1])
    elif repeated:
        currents = total.to(grad.dtype).unsqueeze(0)
    else:
        currents = torch.stack([(total / timesteps).to(grad.dtype)] * timesteps)
    return currents, None if threshold_sum is None else -threshold_sum.sum()


# --- layout ---------------------------------------------------------------------------------------------------------


def _rows(x: Tensor, rows: int) -> tuple[Tensor, bool]:
    """Returns x in storage order as (rows, N), without a copy where it is dense, and whether channels come last."""
    channels_last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    flat = x.permute(0, 2, 3, 1) if channels_last else x.contiguous()
    return flat.reshape(rows, -1), channels_last


def _like(flat: Tensor, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    """The inverse of :func:`_rows` for a tensor of ``shape``."""
    if not channels_last:
        return flat.reshape(shape)
    n, c, h, w = shape
    return flat.reshape(n, h, w, c).permute(0, 3, 1, 2)


class _IntegrateAndFire(torch.autograd.Function):
    """All T steps forward, keeping u - threshold alone, and one loop backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        threshold: Tensor,
        timesteps: int,
        leak: float,
        soft: bool,
        initial: float,
        repeated: bool,
        mode: ThroughTime | ThroughRate,
    ) -> Tensor:
        rows, ctx.channels_last = _rows(x, 1 if repeated else timesteps)
        compared = threshold.to(wide(x.dtype))
        spikes, excess = run(_fire, (rows, compared), (timesteps, leak, soft, initial), steps=timesteps)
        batch = x.shape[0] if repeated else x.shape[0] // timesteps
        firing = Firing(rows, excess, compared, leak, (batch, *x.shape[1:]), ctx.channels_last)
        if isinstance(mode, ThroughRate):
            ctx.save_for_backward(mode.slope_of(firing))
        else:
            ctx.save_for_backward(excess, compared, mode.width_of(firing))
        ctx.settings = (timesteps, leak, soft, initial, repeated)
        ctx.mode, ctx.shape, ctx.threshold_dtype = mode, x.shape, threshold.dtype
        return _like(spikes, (timesteps * batch, *x.shape[1:]), ctx.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        timesteps, leak, soft, initial, repeated = ctx.settings
        if ctx.channels_last:
            grad = grad.permute(0, 2, 3, 1)
        grad = grad.reshape(timesteps, -1)
        grad_threshold = None
        if isinstance(ctx.mode, ThroughRate):
            (slope,) = ctx.saved_tensors
            grad_x = (grad.sum(0, keepdim=True) if repeated else grad) * slope
        else:
            excess, threshold, width = ctx.saved_tensors
            static = (
                ctx.mode.kind,
                timesteps,
                leak,
                soft,
                initial,
                repeated,
                ctx.mode.averaged,
                ctx.needs_input_grad[1],
            )
            grad_x, grad_threshold = run(_backward, (grad, excess, threshold, width), static, steps=timesteps)
            if grad_threshold is not None:
                grad_threshold = grad_threshold.to(ctx.threshold_dtype)
        return _like(grad_x, ctx.shape, ctx.channels_last), grad_threshold, None, None, None, None, None, None


def check_timesteps(timesteps: int) -> int:
    """Returns ``timesteps`` if it is an integer of at least 1.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is below 1.
    """
    if isinstance(timesteps, bool) or not isinstance(timesteps, int):
        raise TypeError(f"timesteps must be an integer, got {timesteps!r}")
    if timesteps < 1:
        raise ValueError(f"timesteps must be at least 1, got {timesteps}")
    return timesteps


def integrate_and_fire(
    x: Tensor,
    threshold: Tensor,
    timesteps: int,
    *,
    leak: float = 1.0,
    reset: str = "hard",
    initial: float = 0.0,
    repeated: bool = False,
    mode: ThroughTime | ThroughRate | None = None,
) -> Tensor:
    """Spikes of a layer of integrate-and-fire neurons over T steps.

    u_t = leak * v_{t-1} + x_t, s_t = 1 where u_t >= threshold, then v_t = (1 - s_t) u_t (hard reset) or
    v_t = u_t - threshold * s_t (soft). v_0 = initial * threshold, and nothing survives the call. The reset is not
    detached.

    Args:
        x: Currents, (T * B, ...) time-major, or (B, ...) with ``repeated``; any floating dtype and layout.
        threshold: A scalar tensor, positive.
        timesteps: T.
        leak: What remains of the membrane from step to step, in [0, 1].
        reset: ``"hard"`` or ``"soft"``.
        initial: Membrane before the first step, as a part of the threshold, in [0, 1).
        repeated: ``x`` holds one step, shown at every step.
        mode: How to differentiate the spike; ``Surrogate("pcw", 1.0)`` by default. Under :class:`Rate` and the like the
            threshold gets no gradient.

    Returns:
        Spikes, (T * B, ...), zeros and ones in the dtype and layout of ``x``.

    Raises:
        ValueError: If the first dimension of ``x`` is no multiple of T, or for an unknown reset.

    Example:
        >>> integrate_and_fire(torch.tensor([[0.6]]), torch.tensor(1.0), 4, repeated=True).flatten()
        tensor([0., 1., 0., 1.])

    Source:
        Özdenizci & Legenstein, TMLR 2024, section 2. Initial membranes: Bu et al., "Optimized
        Potential Initialization for Low-latency Spiking Neural Networks", AAAI 2022.
    """
    if reset not in RESETS:
        raise ValueError(f"reset must be 'hard' or 'soft', got {reset!r}")
    if not repeated and x.shape[0] % timesteps:
        raise ValueError(
            f"the first dimension, {x.shape[0]}, is no multiple of timesteps={timesteps}: "
            "pass currents as (timesteps * batch, ...), time-major"
        )
    soft, leak, initial = reset == "soft", float(leak), float(initial)
    if torch.is_grad_enabled() and (x.requires_grad or threshold.requires_grad):
        return _IntegrateAndFire.apply(x, threshold, timesteps, leak, soft, initial, repeated, mode or Surrogate())
    rows, channels_last = _rows(x, 1 if repeated else timesteps)
    spikes = run(_fire_only, (rows, threshold.to(wide(x.dtype))), (timesteps, leak, soft, initial), steps=timesteps)
    return _like(spikes, ((timesteps if repeated else 1) * x.shape[0], *x.shape[1:]), channels_last)


class SpikingNeuron(nn.Module):
    """A layer of integrate-and-fire neurons with one trainable threshold, in place of a ReLU.

    Args:
        timesteps: T, at least 1; may be changed later.
        threshold: Firing threshold; never acts below 0.03.
        leak: What remains of the membrane from step to step, in [0, 1]; 1 does not leak.
        reset: ``"hard"`` (to 0) or ``"soft"`` (by subtraction).
        surrogate: How training differentiates the spike, unless :func:`backward_mode` says otherwise.
        repeated: The layer is given one step, (B, ...), and shows it at every step: the first layer of a directly
            coded network.
        initial: Membrane before the first step, as a part of the threshold, in [0, 1): with 0.5, T steps round to the
            nearest number of spikes, where with 0 they round down.

    Shape:
        Input (T * B, ...), or (B, ...) where ``repeated``; output (T * B, ...), zeros and ones. Under
        :class:`Relu` the output has the shape of the input.

    Example:
        >>> SpikingNeuron(timesteps=4)(torch.randn(4 * 2, 16, 8, 8)).shape
        torch.Size([8, 16, 8, 8])
    """

    def __init__(
        self,
        timesteps: int,
        threshold: float = 1.0,
        leak: float = 1.0,
        reset: str = "hard",
        surrogate: Surrogate | None = None,
        repeated: bool = False,
        initial: float = 0.0,
    ):
        super().__init__()
        if reset not in RESETS:
            raise ValueError(f"reset must be 'hard' or 'soft', got {reset!r}")
        if not 0.0 <= leak <= 1.0:
            raise ValueError(f"leak must lie in [0, 1], got {leak}")
        if not 0.0 <= initial < 1.0:
            raise ValueError(f"initial must lie in [0, 1), got {initial}")
        self.timesteps = check_timesteps(timesteps)
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))
        self.leak = float(leak)
        self.reset = reset
        self.surrogate = surrogate or Surrogate()
        self.repeated = repeated
        self.initial = float(initial)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of all steps: see the class."""
        mode = current_mode() or self.surrogate
        if isinstance(mode, Relu):
            return torch.relu(x)
        return integrate_and_fire(
            x,
            self.threshold.clamp(min=MIN_THRESHOLD),
            self.timesteps,
            leak=self.leak,
            reset=self.reset,
            initial=self.initial,
            repeated=self.repeated,
            mode=mode,
        )

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        initial = f", initial={self.initial:g}" if self.initial else ""
        how = f"leak={self.leak:g}, reset={self.reset!r}{initial}"
        return f"timesteps={self.timesteps}, {how}, surrogate={self.surrogate}"
