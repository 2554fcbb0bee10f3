"""The spiking neuron: integrate-and-fire over T steps as one differentiable function.

Time and batch travel merged, time-major, as ``(T * B, ...)``, so that every other layer is an ordinary PyTorch layer.
Seen in storage order as ``(T, N)``, every spiking layer is one and the same kernel. Its loops are written once, in
plain PyTorch (:mod:`rsnn_zoo.neurons.dynamics`): ``torch.compile`` makes a single C++ or Triton kernel of each where a
compiler is found. ``torch.func`` (grad, vmap, jvp and what is made of them) and derivatives of derivatives go through
the same formulas, eager: everywhere the spike has its surrogate derivative.

How the backward pass differentiates the spike is a value, not a flag on modules: see :mod:`rsnn_zoo.neurons.modes`.
"""

from __future__ import annotations

from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters

from rsnn_zoo._utils.integers import checked_integer
from rsnn_zoo.neurons.dynamics import Dynamics, backward, fire, fire_only, from_rows, is_channels_last, tangent, to_rows
from rsnn_zoo.neurons.kernels import run, transforming, wide
from rsnn_zoo.neurons.modes import (
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
    current_units,
    model_under,
)
from rsnn_zoo.spec.config import RESETS
from rsnn_zoo.spec.units import RELATIVE

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


# --- autograd -------------------------------------------------------------------------------------------------------


class _IntegrateAndFire(torch.autograd.Function):
    """Autograd function of all T steps forward, which keeps u - threshold alone, and of one loop backward.

    Returns the spikes and what the backward pass needs: u - threshold and the derivative's width, or the slope of the
    rate. u - threshold can be differentiated like the spikes, so that derivatives of derivatives are right.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        threshold: Tensor,
        neuron: Dynamics,
        mode: ThroughTime | ThroughRate,
        units: str,
        channels_last: bool,
    ) -> tuple[Tensor, ...]:
        rows = to_rows(x, neuron.rows, channels_last)
        compared = threshold.to(wide(x.dtype))
        spikes, excess = run(fire, (rows, compared), (neuron,), steps=neuron.timesteps)
        batch = x.shape[0] // neuron.rows
        firing = Firing(rows, excess, compared, neuron.leak, (batch, *x.shape[1:]), channels_last, units)
        spikes = from_rows(spikes, (neuron.timesteps * batch, *x.shape[1:]), channels_last)
        if isinstance(mode, ThroughRate):
            return spikes, mode.slope_of(firing)
        return spikes, excess, mode.width_of(firing)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, threshold, ctx.neuron, ctx.mode, ctx.units, ctx.channels_last = inputs
        ctx.shape = x.shape
        ctx.mark_non_differentiable(output[-1])  # the width or the slope: taken as given
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:], threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        neuron, mode = ctx.neuron, ctx.mode
        if grad is not None:
            grad = to_rows(grad, neuron.timesteps, ctx.channels_last)
        if isinstance(mode, ThroughRate):
            slope, _ = ctx.saved_tensors
            of_x = None if grad is None else (grad.sum(0, keepdim=True) if neuron.repeated else grad) * slope
            of_threshold = None
        else:
            excess, width, threshold = ctx.saved_tensors
            compared = threshold.to(wide(excess.dtype))
            of_excess = grads[0]
            grad = torch.zeros_like(excess) if grad is None else grad
            static = neuron, mode.spike_derivative(ctx.units), ctx.needs_input_grad[1]
            if of_excess is not None or torch.is_grad_enabled() or transforming():
                of_x, of_threshold = backward(grad, excess, compared, width, *static, of_excess, again=True)
            else:
                tensors = grad, excess, compared, width
                of_x, of_threshold = run(backward, tensors, static, steps=neuron.timesteps)
            of_threshold = None if of_threshold is None else of_threshold.to(threshold.dtype)
        of_x = None if of_x is None else from_rows(of_x, ctx.shape, ctx.channels_last)
        return of_x, of_threshold, None, None, None, None


class _WithTangent(_IntegrateAndFire):
    """The same with forward-mode differentiation, which ``torch.compile`` would leave its program for."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _IntegrateAndFire.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*output[1:], inputs[1])

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor | None, of_threshold: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        neuron, mode = ctx.neuron, ctx.mode
        kept, threshold = ctx.saved_tensors[:-1], ctx.saved_tensors[-1]
        of_x = threshold.new_zeros(ctx.shape, dtype=kept[0].dtype) if of_x is None else of_x
        rows = to_rows(of_x, neuron.rows, ctx.channels_last)
        shape = (ctx.shape[0] * neuron.timesteps // neuron.rows, *ctx.shape[1:])
        if isinstance(mode, ThroughRate):
            of_spikes = (rows * kept[0]).expand(neuron.timesteps, -1)
            return from_rows(of_spikes, shape, ctx.channels_last), None
        compared = threshold.to(wide(kept[0].dtype))
        of_threshold = torch.zeros_like(compared) if of_threshold is None else of_threshold.to(compared.dtype)
        derivative = mode.spike_derivative(ctx.units)
        of_spikes, of_excess = tangent(kept[0], compared, kept[1], rows, of_threshold, neuron, derivative)
        return from_rows(of_spikes, shape, ctx.channels_last), of_excess, None


def _check_transforms() -> None:
    """Refuses the one composition of transforms that PyTorch gets wrong for every custom function: it answers 0."""
    stack = retrieve_all_functorch_interpreters() if torch._C._are_functorch_transforms_active() else []
    if sum(interpreter.key() == TransformType.Jvp for interpreter in stack) > 1:
        raise NotImplementedError(
            "forward-mode derivatives of forward-mode derivatives (jvp of jvp, jacfwd of jacfwd) of spiking neurons "
            "would silently be 0 in PyTorch: take one in reverse mode, as torch.func.hessian does"
        )


def check_timesteps(timesteps: SupportsIndex) -> int:
    """Returns ``timesteps`` as an int if it is an integer, NumPy's too, of at least 1.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is below 1.
    """
    return checked_integer("timesteps", timesteps, 1)


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
            threshold gets no gradient. Widths are in units of the threshold, unless
            :func:`rsnn_zoo.neurons.modes.surrogate_units` says otherwise.

    Returns:
        Spikes, (T * B, ...), zeros and ones in the dtype and layout of ``x``.

    Raises:
        ValueError: If the first dimension of ``x`` is no multiple of T, for several thresholds or an unknown reset.
        NotImplementedError: For forward-mode derivatives of forward-mode derivatives.

    Example:
        >>> integrate_and_fire(torch.tensor([[0.6]]), torch.tensor(1.0), 4, repeated=True).flatten()
        tensor([0., 1., 0., 1.])

    Source:
        Özdenizci & Legenstein, TMLR 2024, section 2. Initial membranes: Bu et al., "Optimized
        Potential Initialization for Low-latency Spiking Neural Networks", AAAI 2022.
    """
    if reset not in RESETS:
        raise ValueError(f"reset must be 'hard' or 'soft', got {reset!r}")
    if threshold.dim() and threshold.numel() != 1:
        raise ValueError(f"a layer has one threshold, not {tuple(threshold.shape)}: scale its channels before it")
    if not repeated and x.shape[0] % timesteps:
        raise ValueError(
            f"the first dimension, {x.shape[0]}, is no multiple of timesteps={timesteps}: "
            "pass currents as (timesteps * batch, ...), time-major"
        )
    neuron = Dynamics(timesteps, float(leak), reset == "soft", float(initial), repeated)
    wanted = torch.is_grad_enabled() and (x.requires_grad or threshold.requires_grad)
    channels_last = is_channels_last(x)
    transformed = not torch.compiler.is_compiling() and transforming()
    if transformed:
        _check_transforms()
    if wanted or transformed:
        function = _WithTangent if transformed else _IntegrateAndFire
        return function.apply(x, threshold, neuron, mode or Surrogate(), current_units(), channels_last)[0]
    tensors = to_rows(x, neuron.rows, channels_last), threshold.to(wide(x.dtype))
    spikes = run(fire_only, tensors, (neuron,), steps=timesteps)
    shape = (timesteps * x.shape[0] // neuron.rows, *x.shape[1:])
    return from_rows(spikes, shape, channels_last)


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

    @property
    def dynamics(self) -> Dynamics:
        """The constants that its loops over the steps run with."""
        return Dynamics(self.timesteps, self.leak, self.reset == "soft", self.initial, self.repeated)

    @property
    def acting_threshold(self) -> Tensor:
        """The threshold that spikes are compared with, a scalar, never below ``MIN_THRESHOLD``."""
        return self.threshold.clamp(min=MIN_THRESHOLD)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of all steps: see the class."""
        mode = current_mode() or self.surrogate
        threshold = self.acting_threshold
        if isinstance(mode, Relu):
            return torch.relu(x / threshold if current_units() == RELATIVE else x)
        return integrate_and_fire(
            x,
            threshold,
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
