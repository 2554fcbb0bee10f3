"""Surgery on networks from elsewhere: their activations are made modules, one for each use, and replaced."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from rsnn_zoo.models.rows import check_rows, hooked, in_mode, mark_stem, undisturbed
from rsnn_zoo.models.watch import POOLS, ClippedReLU, Uses, find_activations

__all__ = [
    "POOLS",
    "average_pool",
    "check_rows",
    "find_activations",
    "hooked",
    "mark_stem",
    "prepared",
    "replace",
    "split_shared",
    "undisturbed",
]

_log = logging.getLogger(__name__)


# --- kinds of ReLU --------------------------------------------------------------------------------------------------


def _relu_of(module: nn.Module) -> nn.Module:
    """The ReLU, clipped or not, that an activation is; itself where it is none."""
    same = (isinstance(module, nn.LeakyReLU) and module.negative_slope == 0) or (
        isinstance(module, nn.Threshold) and module.threshold == module.value == 0
    )
    if same:
        return nn.ReLU()
    if isinstance(module, nn.Hardtanh) and module.min_val == 0 < module.max_val:
        return ClippedReLU(module.max_val)
    return module


def _bounds(node: fx.Node) -> tuple[Any, Any]:
    """(min, max) of a call of clamp or hardtanh."""
    named = dict(node.kwargs)
    low, high = (*node.args[1:3], None, None)[:2]
    return named.get("min", named.get("min_val", low)), named.get("max", named.get("max_val", high))


def _clipped(node: fx.Node) -> nn.Module | None:
    low, high = _bounds(node)
    if low == 0 and high is None:
        return nn.ReLU()
    return ClippedReLU(high) if low == 0 and isinstance(high, int | float) and high > 0 else None


_RELU_CALLS: dict[Any, Callable[[fx.Node], nn.Module | None]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), lambda node: nn.ReLU()),
    F.relu6: lambda node: ClippedReLU(6.0),
    **dict.fromkeys((F.hardtanh, F.hardtanh_, torch.clamp, torch.clip, torch.clamp_min), _clipped),
    **dict.fromkeys(("clamp", "clamp_", "clip", "clamp_min", "clamp_min_"), _clipped),
}
"""Calls that are a ReLU, with what it is; None of what turns out to be none."""


def _pool(kind: type[nn.Module], named: str) -> Callable[[fx.Node], nn.Module | None]:
    """Makes a module of a call whose arguments behind the input go by these names, in this order."""

    def make(node: fx.Node) -> nn.Module | None:
        given = dict(zip(("input", *named.split()), node.args, strict=False)) | dict(node.kwargs)
        del given["input"]
        return None if any(isinstance(value, fx.Node) for value in given.values()) else kind(**given)

    return make


_POOL_CALLS: dict[Any, Callable[[fx.Node], nn.Module | None]] = {
    **dict.fromkeys(
        (F.max_pool2d, torch.max_pool2d),
        _pool(nn.MaxPool2d, "kernel_size stride padding dilation ceil_mode return_indices"),
    ),
    F.adaptive_max_pool2d: _pool(nn.AdaptiveMaxPool2d, "output_size return_indices"),
}
"""Calls that are max pooling, likewise."""


# --- tracing --------------------------------------------------------------------------------------------------------


class _OpeningTracer(fx.Tracer):
    """Goes into the modules that hold one of some modules, and leaves all others as they are."""

    def __init__(self, opened: Collection[nn.Module] = ()):  # nothing, where torch unpickles what was traced
        super().__init__()
        self.opened = set(opened)

    def is_leaf_module(self, module: nn.Module, _: str) -> bool:
        return isinstance(module, nn.ReLU) or self.opened.isdisjoint(module.modules())


def _traced(network: nn.Module, opened: set[nn.Module]) -> fx.GraphModule:
    tracer = _OpeningTracer(opened)
    graph = tracer.trace(network)
    return fx.GraphModule(tracer.root, graph)


def prepared(network: nn.Module, x: Tensor, max_pool: str, split: bool = True) -> nn.Module:
    """A network whose activations are ReLU modules, each with one use, by whatever name they went.

    Args:
        network: In evaluation mode; its modules may be changed.
        x: Two images, as it takes them.
        max_pool: ``"spikes"`` if max pooling is to stay as it is.
        split: Whether uses of one module are to be split.

    Raises:
        ValueError: For anything else that is known to bend its input; names the layer and the remedy.
    """
    replace(network, (nn.LeakyReLU, nn.Threshold, nn.Hardtanh), _relu_of)
    uses = find_activations(network, x, max_pool)
    if not split:
        return network
    network = split_shared(network, uses)
    left = find_activations(network, x, max_pool) if uses.functions or uses.pools else Uses()
    if left.functions:
        raise ValueError(
            f"{', '.join(sorted(name or 'the network itself' for name in uses.functions))} calls relu, clamp or "
            "threshold as a function, where no neuron can be put, since it is no ReLU or torch.fx does not show it: "
            "where it is a ReLU, give it an nn.ReLU module (one for each use) and convert again"
        )
    if left.pools:
        raise ValueError(
            f"{', '.join(sorted(name or 'the network itself' for name in uses.pools))} calls max pooling as a function "
            "that torch.fx does not show: make it an nn.MaxPool2d module, or pass max_pool='spikes'"
        )
    return network


def split_shared(network: nn.Module, uses: Uses) -> nn.Module:
    """A network in which each use of a ReLU, and of max pooling, is a module of its own, through torch.fx.

    Raises:
        ValueError: If it cannot be traced.
    """
    shared = {name for name, count in uses.modules.items() if count > 1}
    concerned = shared | uses.functions | uses.pools
    opened = {network.get_submodule(name) for name in concerned}
    if not opened:
        return network
    named = ", ".join(sorted(name or "the network itself" for name in concerned))
    called = [what for what, where in (("a ReLU", uses.functions), ("max pooling", uses.pools)) if where]
    what = f"calls {' and '.join(called)} as a function" if called else "used in several places"
    remedy = f"give each use an nn.ReLU{' or nn.MaxPool2d' if uses.pools else ''} of its own"
    try:
        graph_module = _traced(network, opened)
    except Exception as error:
        raise ValueError(
            f"{named}: {what}, and torch.fx cannot trace the network to split it ({error}): {remedy}"
        ) from error
    if _training_code(network, opened) != graph_module.code:
        _log.warning(
            "%s: %s, so the network is traced; what it does in training alone without a module "
            "for it (F.dropout, stochastic depth) gets lost: %s",
            *(named, what, remedy),
        )
    _split(graph_module)
    if uses.functions:
        _make_modules(graph_module, _RELU_CALLS, "functional_relu")
    if uses.pools:
        _make_modules(graph_module, _POOL_CALLS, "functional_pool")
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def _split(graph_module: fx.GraphModule) -> None:
    modules = dict(graph_module.named_modules(remove_duplicate=False))  # one module may bear several names
    seen: Counter[nn.Module] = Counter()
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and isinstance(relu := modules[node.target], nn.ReLU):
            seen[relu] += 1
            if seen[relu] > 1:
                node.target = f"{node.target}_use{seen[relu]}"
                graph_module.add_submodule(node.target, _copy(relu))


def _copy(relu: nn.ReLU) -> nn.ReLU:
    return ClippedReLU(relu.limit) if isinstance(relu, ClippedReLU) else nn.ReLU()


def _make_modules(graph_module: fx.GraphModule, calls: dict[Any, Callable], named: str) -> None:
    """Puts a module in place of each of some calls."""
    number = 0
    for node in list(graph_module.graph.nodes):
        if node.op not in ("call_function", "call_method") or (make := calls.get(node.target)) is None:
            continue
        if (module := make(node)) is None:
            continue
        number += 1
        graph_module.add_submodule(name := f"{named}{number}", module)
        with graph_module.graph.inserting_after(node):
            new = graph_module.graph.call_module(name, (node.args[0] if node.args else node.kwargs["input"],))
        node.replace_all_uses_with(new)
        graph_module.graph.erase_node(node)


def _training_code(network: nn.Module, opened: set[nn.Module]) -> str | None:
    """What torch.fx makes of a network in training mode; None where it cannot."""
    try:
        with in_mode(network, training=True):
            return _traced(network, opened).code
    except Exception:
        return None


def replace(network: nn.Module, kind: type | tuple[type, ...], new: Any) -> None:
    """Puts ``new(module)`` in place of every submodule of a kind, the same one under each of its names."""
    replaced: dict[nn.Module, nn.Module] = {}
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, kind):
            if module not in replaced:
                replaced[module] = new(module)
            network.set_submodule(name, replaced[module])


def average_pool(pool: nn.MaxPool2d | nn.AdaptiveMaxPool2d) -> nn.Module:
    """The average pooling over the same windows.

    Raises:
        ValueError: For a max pooling with dilation.
    """
    if isinstance(pool, nn.AdaptiveMaxPool2d):
        return nn.AdaptiveAvgPool2d(pool.output_size)
    if pool.dilation not in (1, (1, 1)):
        raise ValueError(f"a max pooling with dilation {pool.dilation} has no average pooling to become")
    return nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, count_include_pad=False)
