"""Lowering of a network to its :class:`~rsnn_zoo.exports.graph.SpikingGraph`, layer by layer."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from rsnn_zoo.exports.graph import Conv, ExportError, Fire, Sides, SpikingGraph, Value, checked_network
from rsnn_zoo.models import ForeignNetwork, Network
from rsnn_zoo.models.layers import Normalize, Scaled, StaticBatchNorm2d, WeightedSum
from rsnn_zoo.neurons.integrate_fire import MIN_THRESHOLD, SpikingNeuron

__all__ = ["spiking_graph"]


class _Body(nn.Module):
    """What a network computes at each step, without the checks and the mean over time."""

    def __init__(self, model: Network):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        model = self.model
        if isinstance(model, ForeignNetwork):
            return model.network(model.normalize(x))
        return model.get_classifier()(model.pool(model.forward_features(x)))


class _LayerTracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in _LAYERS or super().is_leaf_module(module, name)


@torch.no_grad()
def spiking_graph(model: nn.Module) -> SpikingGraph:
    """The graph of convolutions and neurons of a spiking network, in float64.

    Args:
        model: An SNN of this zoo, with its weights; it is copied, not touched.

    Raises:
        ExportError: If a layer has no such form; names it and the remedy.

    Example:
        >>> graph = spiking_graph(create_model("resnet20_digits_trades_t4", pretrained=True))  # doctest: +SKIP
    """
    model = checked_network(model, "NIR")
    if model.timesteps is None:
        raise ExportError(
            "an ANN has no spikes to export to NIR: convert it with rsnn_zoo.convert, or export it to onnx or torch"
        )
    body = _Body(model)
    try:
        traced = _LayerTracer().trace(body)
    except Exception as error:  # of the network's own code
        cause = str(error).split("\n")[0]
        raise ExportError(f"{model.architecture} cannot be followed layer by layer ({cause}): not exported") from error
    return _Lowering(body, model, (model.in_chans, model.img_size, model.img_size)).run(traced)


class _Lowering:
    """Goes through what ``torch.fx`` saw; holds the value of each of its nodes."""

    def __init__(self, body: nn.Module, model: Network, shape: tuple[int, int, int]):
        self.body, self.graph = body, SpikingGraph(shape, int(model.timesteps or 1))
        self.values: dict[fx.Node, Value] = {}

    def run(self, traced: fx.Graph) -> SpikingGraph:
        for node in traced.nodes:
            if node.op == "placeholder":
                self.values[node] = Value(("input",), self.graph.shape)
            elif node.op == "output":
                value = self.graph.settle("readout", self.values[node.args[0]])
                self.graph.output = value.terms
            else:
                self.values[node] = self._value(node)
        return self.graph

    def _value(self, node: fx.Node) -> Value:
        if node.op == "call_module":
            module = self.body.get_submodule(str(node.target))
            handler = _LAYERS.get(type(module))
            if handler is not None:
                return handler(self, node, module)
            what = f"{self.layer(node)}, a {type(module).__name__},"
        else:
            handler = _CALL_HANDLERS.get(node.target)
            if handler is not None:
                return handler(self, node)
            what = f"{node.name}, a call of {getattr(node.target, '__name__', node.target)},"
        raise ExportError(f"{what} has no form in NIR: {_REMEDIES.get(_target_name(node, self.body), _REMEDY)}")

    def fire(self, node: fx.Node, neuron: SpikingNeuron, gain: float, layer: str) -> Value:
        """Add neurons that see currents divided by their gain, and whose spikes stand for it."""
        value, name = self.input(node), self.name(node)
        if value.pool != (1, 1):
            value = self.graph.settle(f"{name}_pool", value)
        threshold = max(neuron.threshold.item(), MIN_THRESHOLD) * gain / value.scale
        how = neuron.reset, neuron.leak, neuron.initial
        self.graph.nodes[name] = Fire(value.terms, threshold, *how, value.shape, layer)
        return Value((name,), value.shape, gain, flat=value.flat)

    # --- what handlers ask ---

    def layer(self, node: fx.Node) -> str:
        """Name of the layer in the network."""
        return str(node.target).removeprefix("model.")

    def name(self, node: fx.Node) -> str:
        """The name of its node in the graph: no simulator takes a dot in it."""
        return self.layer(node).replace(".", "_") if node.op == "call_module" else node.name

    def input(self, node: fx.Node, position: int = 0) -> Value:
        """Value of an argument."""
        return self.values[node.args[position]]

    def alone(self, node: fx.Node, position: int = 0) -> bool:
        """Whether nobody else takes that argument, so that what gives it may be changed."""
        source = node.args[position]
        while source.op == "call_module" and _LAYERS.get(type(self.body.get_submodule(source.target))) is _passed_on:
            if len(source.users) > 1:
                return False
            source = source.args[0]
        return len(source.users) == 1


_REMEDY = "build the network from convolutions, batch norms, average pools, linear layers and sums"
_REMEDIES = dict.fromkeys(
    ("MaxPool2d", "AdaptiveMaxPool2d", "PooledCounts", "max_pool2d"),
    "max-pooling has none; build the network with nn.AvgPool2d, and train it so",
)


def _target_name(node: fx.Node, body: nn.Module) -> str:
    target = type(body.get_submodule(str(node.target))) if node.op == "call_module" else node.target
    return getattr(target, "__name__", str(target))


def _pair(value: Any) -> Sides:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


# --- layers ---------------------------------------------------------------------------------------------------------


def _passed_on(self: _Lowering, node: fx.Node, module: nn.Module | None = None) -> Value:
    return self.input(node)


def _normalize(self: _Lowering, node: fx.Node, module: Normalize) -> Value:
    factors = 1 / module.std
    return self.graph.diagonal(self.name(node), self.input(node), factors, -module.mean * factors)


def _conv(self: _Lowering, node: fx.Node, module: nn.Conv2d) -> Value:
    padding = module.padding
    if padding == "same":
        padding = [d * (k - 1) / 2 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    elif padding == "valid":
        padding = [0, 0]
    if module.padding_mode != "zeros" or any(p != int(p) for p in padding):
        raise ExportError(f"{self.layer(node)} pads with other than zeros on both sides alike: NIR has no such layer")
    weight = module.weight
    if module.groups > 1:  # not every simulator has groups
        weight = torch.cat(
            [F.pad(part, (0, 0, 0, 0, n * part.shape[1], (module.groups - 1 - n) * part.shape[1]))
             for n, part in enumerate(weight.chunk(module.groups))]
        )  # fmt: skip
    pads = (int(padding[0]), int(padding[1]))
    return self.graph.convolve(
        self.name(node), self.input(node), weight.detach(), module.bias, module.stride, pads, module.dilation
    )


def _linear(self: _Lowering, node: fx.Node, module: nn.Linear) -> Value:
    value = self.input(node)
    if not value.flat:
        raise ExportError(f"{self.layer(node)} is a linear layer of more than one dimension: it has no form in NIR")
    weight = module.weight.detach().reshape(-1, *value.shape)
    shaped = Value(value.terms, value.shape, value.scale, value.pool, value.source)
    made = self.graph.convolve(self.name(node), shaped, weight, module.bias)
    return Value(made.terms, made.shape, flat=True)


def _norm(self: _Lowering, node: fx.Node, module: nn.BatchNorm2d) -> Value:
    if module.running_var is None or module.running_mean is None:
        raise ExportError(f"{self.layer(node)} normalises by each batch: train it with running statistics")
    factors = (module.running_var + module.eps).rsqrt()
    factors = factors if module.weight is None else factors * module.weight
    shift = -module.running_mean * factors
    shift = shift if module.bias is None else shift + module.bias
    value = self.input(node)
    before = self.graph.nodes.get(value.terms[0]) if len(value.terms) == 1 else None
    if isinstance(before, Conv) and self.alone(node) and value.pool == (1, 1) and value.scale == 1:
        before.weight = before.weight * factors[:, None, None, None]
        before.bias = before.bias * factors + shift
        return value
    return self.graph.diagonal(self.name(node), value, factors, shift)


def _neuron(self: _Lowering, node: fx.Node, module: SpikingNeuron) -> Value:
    return self.fire(node, module, 1.0, self.layer(node))


def _scaled(self: _Lowering, node: fx.Node, module: Scaled) -> Value:
    return self.fire(node, module.neuron, module.gain.item(), f"{self.layer(node)}.neuron")


def _average(self: _Lowering, node: fx.Node, module: nn.AvgPool2d) -> Value:
    sides, value = _pair(module.kernel_size), self.input(node)
    plain = _pair(module.padding) == (0, 0) and not module.ceil_mode and module.divisor_override is None
    if not plain or _pair(module.stride) != sides:
        raise ExportError(f"{self.layer(node)} pools with overlap, padding or ceil_mode: it has no form in NIR")
    return _pooled(value, sides)


def _pooled(value: Value, sides: Sides) -> Value:
    shape = (value.shape[0], value.shape[1] // sides[0], value.shape[2] // sides[1])
    both = (value.pool[0] * sides[0], value.pool[1] * sides[1])
    return Value(value.terms, shape, value.scale, both, value.unpooled, value.flat)


def _global_average(self: _Lowering, node: fx.Node, module: nn.AdaptiveAvgPool2d | None = None) -> Value:
    size = node.args[1] if module is None else module.output_size
    if _pair(size) != (1, 1):
        raise ExportError(f"{self.name(node)} pools to more than one pixel: use an average pool of fixed size")
    value = self.input(node)
    return _pooled(value, value.shape[1:])


def _flatten(self: _Lowering, node: fx.Node, module: nn.Flatten | None = None) -> Value:
    start = node.args[1] if module is None and len(node.args) > 1 else 0
    start = start if module is None else module.start_dim
    if start != 1:
        raise ExportError(f"{self.name(node)} flattens from dimension {start}: only from 1 has a form in NIR")
    value = self.input(node)
    return Value(value.terms, value.shape, value.scale, value.pool, value.source, flat=True)


# --- sums -----------------------------------------------------------------------------------------------------------


def _weighted_sum(self: _Lowering, node: fx.Node, module: WeightedSum) -> Value:
    return _sum(self, node, (module.weight[0].detach(), module.weight[1].detach()))


def _plain_sum(self: _Lowering, node: fx.Node) -> Value:
    if node.kwargs or not all(isinstance(argument, fx.Node) for argument in node.args):
        raise ExportError(f"{node.name} adds something that is no layer's output: it has no form in NIR")
    return _sum(self, node, (torch.ones(()), torch.ones(())))


def _sum(self: _Lowering, node: fx.Node, weights: tuple[Tensor, Tensor]) -> Value:
    """w0 * shortcut + w1 * residual: w0, where one and positive, is left to the threshold of who takes the sum."""
    name = self.name(node)
    sides = [self.input(node, position) for position in (0, 1)]
    sides = [
        self.graph.settle(f"{name}_pool{n}", side) if side.pool != (1, 1) else side for n, side in enumerate(sides)
    ]
    own = [self.alone(node, position) and _is_conv(self.graph, side) for position, side in enumerate(sides)]
    kept = 0 if not own[0] else 1 if not own[1] else None  # the side that cannot be scaled in place
    by_channel = weights[0].dim() == 1
    common = 1.0 if kept is None or by_channel else weights[kept].item() * sides[kept].scale
    if common <= 0 or by_channel:
        kept, common = None, 1.0
    terms: tuple[str, ...] = ()
    for position in (1, 0):  # the long branch first
        side = sides[position]
        if position != kept:
            side = self.graph.rescaled(f"{name}_{position}", side, weights[position] / common, own[position])
        terms += side.terms
    return Value(terms, sides[0].shape, common, flat=sides[0].flat)


def _is_conv(graph: SpikingGraph, value: Value) -> bool:
    return len(value.terms) == 1 and isinstance(graph.nodes.get(value.terms[0]), Conv)


_LAYERS: dict[type[nn.Module], Callable[..., Value]] = {
    Normalize: _normalize,
    nn.Conv2d: _conv,
    nn.Linear: _linear,
    nn.BatchNorm2d: _norm,
    StaticBatchNorm2d: _norm,
    SpikingNeuron: _neuron,
    Scaled: _scaled,
    WeightedSum: _weighted_sum,
    nn.AvgPool2d: _average,
    nn.AdaptiveAvgPool2d: _global_average,
    nn.Flatten: _flatten,
    nn.Identity: _passed_on,
    nn.Dropout: _passed_on,
    nn.Dropout2d: _passed_on,
}

_CALL_HANDLERS: dict[Any, Callable[..., Value]] = {
    operator.add: _plain_sum,
    operator.iadd: _plain_sum,
    torch.add: _plain_sum,
    torch.flatten: _flatten,
    "flatten": _flatten,
    F.adaptive_avg_pool2d: _global_average,
}
