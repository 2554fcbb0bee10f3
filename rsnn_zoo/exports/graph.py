"""A spiking network as what every simulator and chip has: convolutions, integrate-and-fire neurons, and their edges.

:func:`spiking_graph` follows a network with ``torch.fx`` and brings it to that form in float64: batch norms, residual
weights and average pools go into convolutions, linear layers become convolutions as large as their map, and the
normalisation of the images becomes a 1x1 convolution of its own, since the zero padding of the first layer comes after
it. What has no such form is refused with the layer's name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from rsnn_zoo.models import ForeignNetwork, Network

__all__ = ["Conv", "ExportError", "Fire", "SpikingGraph", "Value", "checked_network"]

Sides = tuple[int, int]
Shape = tuple[int, int, int]


class ExportError(ValueError):
    """A network that has no form in the format, or a file that failed its check; says what and why."""


@dataclass
class Conv:
    """A convolution with zero padding of the sum of what its inputs give.

    Attributes:
        inputs: Names of the nodes whose outputs are summed.
        weight: (C_out, C_in, k, k), float64.
        bias: (C_out,), float64.
        stride: Of rows and columns.
        padding: Likewise.
        dilation: Likewise.
        shape: Of its output, (C_out, H, W).
        source: Shape of its input.
    """

    inputs: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    stride: Sides
    padding: Sides
    dilation: Sides
    shape: Shape
    source: Shape


@dataclass
class Fire:
    """Integrate-and-fire neurons: u = leak * v + x, a spike where u >= threshold, then hard or soft reset.

    Attributes:
        inputs: Names of the nodes whose outputs are summed.
        threshold: Of the whole layer, in units of the currents.
        reset: ``"hard"`` or ``"soft"``.
        leak: What remains of the membrane from step to step.
        initial: Membrane before the first step, as a part of the threshold.
        shape: Of its output, (C, H, W).
        layer: Name of the layer in the network.
    """

    inputs: tuple[str, ...]
    threshold: float
    reset: str
    leak: float
    initial: float
    shape: Shape
    layer: str


@dataclass(frozen=True)
class Value:
    """What flows between two layers while the graph is built: ``scale`` times a sum of nodes, then an average pool.

    Attributes:
        terms: Names of the nodes.
        shape: After the pool, (C, H, W).
        scale: Positive; goes into the threshold or the weight of who takes the value.
        pool: Sides of the average pool that is still to come, which goes into the next convolution.
        source: Shape before the pool.
        flat: Whether the network sees it as vectors.
    """

    terms: tuple[str, ...]
    shape: Shape
    scale: float = 1.0
    pool: Sides = (1, 1)
    source: Shape | None = None
    flat: bool = False

    @property
    def unpooled(self) -> Shape:
        """Shape before the pool."""
        return self.source or self.shape


@dataclass
class SpikingGraph:
    """Nodes in the order in which they can be computed, the input first.

    Attributes:
        shape: Of one image, (C, H, W).
        timesteps: T.
        nodes: By name.
        output: Names of the nodes whose sum is the current of the readout, the mean over time of which is the logits.
    """

    shape: Shape
    timesteps: int
    nodes: dict[str, Conv | Fire] = field(default_factory=dict)
    output: tuple[str, ...] = ()

    def neurons(self) -> Iterator[tuple[str, Fire]]:
        """The spiking layers by name."""
        return ((name, node) for name, node in self.nodes.items() if isinstance(node, Fire))

    # --- building ---

    def convolve(
        self,
        name: str,
        value: Value,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Sides = (1, 1),
        padding: Sides = (0, 0),
        dilation: Sides = (1, 1),
    ) -> Value:
        """Adds a convolution; the scale and the average pool of what it takes go into its weight."""
        if value.pool != (1, 1) and not self._composes(value, padding, dilation):
            value = self.settle(f"{name}_pool", value)
        (ph, pw), shape = value.pool, value.unpooled
        weight = value.scale * weight.repeat_interleave(ph, 2).repeat_interleave(pw, 3) / (ph * pw)
        stride, padding = (stride[0] * ph, stride[1] * pw), (padding[0] * ph, padding[1] * pw)
        size = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(shape[1:], weight.shape[2:], stride, padding, dilation, strict=True)
        ]
        out = (len(weight), size[0], size[1])
        bias = weight.new_zeros(len(weight)) if bias is None else bias.clone()
        self.nodes[name] = Conv(value.terms, weight, bias, stride, padding, dilation, out, shape)
        return Value((name,), out)

    def diagonal(self, name: str, value: Value, factors: Tensor, shift: Tensor | None = None) -> Value:
        """Adds a convolution that multiplies each channel by a factor, and shifts it."""
        return self.convolve(name, value, torch.diag(factors)[:, :, None, None], shift)

    def settle(self, name: str, value: Value) -> Value:
        """The same with neither scale nor pool left to come."""
        if value.pool == (1, 1) and value.scale == 1:
            return value
        channels, (ph, pw) = value.shape[0], value.pool
        ones = torch.eye(channels, dtype=torch.float64)[:, :, None, None].expand(-1, -1, ph, pw) / (ph * pw)
        whole = Value(value.terms, value.unpooled, value.scale)
        return replace(self.convolve(name, whole, ones, stride=value.pool), flat=value.flat)

    def rescaled(self, name: str, value: Value, factor: Tensor, alone: bool) -> Value:
        """A value times one factor, or one of each channel, no scale left: in its convolution where that serves it."""
        factors = factor.double().expand(value.shape[0])
        node = self.nodes.get(value.terms[0]) if len(value.terms) == 1 else None
        if alone and isinstance(node, Conv) and value.pool == (1, 1):
            whole = factors * value.scale
            node.weight, node.bias = node.weight * whole[:, None, None, None], node.bias * whole
            return replace(value, scale=1.0)
        return self.diagonal(name, value, factors)

    @staticmethod
    def _composes(value: Value, padding: Sides, dilation: Sides) -> bool:
        """Whether a convolution after the pool is one convolution: rows that the pool leaves over are no padding."""
        whole = all(n % p == 0 for n, p in zip(value.unpooled[1:], value.pool, strict=True))
        return dilation == (1, 1) and (whole or padding == (0, 0))


def checked_network(model: nn.Module, what: str) -> Network:
    """A copy of a network of this zoo in evaluation mode, in float64 and on the CPU.

    Raises:
        ExportError: If it is none.
    """
    if not isinstance(model, Network):
        raise ExportError(
            f"only networks of this zoo are exported to {what}, not a {type(model).__name__}: "
            "register yours with rsnn_zoo.register_architecture"
        )
    if isinstance(model, ForeignNetwork) and not model.stem_once:
        raise ExportError(f"{model.architecture} mixes images or steps before its first neuron: it is not exported")
    return copy.deepcopy(model).eval().cpu().double()
