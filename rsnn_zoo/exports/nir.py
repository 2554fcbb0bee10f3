"""NIR files: written from a :class:`~rsnn_zoo.exports.graph.SpikingGraph`, and run by a reference interpreter.

Neurons are ``IF`` nodes with r = 1 and thresholds of the full shape. NIR says neither how a membrane is reset nor where
it starts: the metadata do, of the graph and of each neuron, and :func:`rsnn_zoo.load_nir` follows them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsnn_zoo.exports.graph import Conv, ExportError, Fire, SpikingGraph

if TYPE_CHECKING:
    import nir

__all__ = ["interpret", "neuron_names", "read_nir", "text", "to_nir"]

_GRAPH_FORMAT = "rsnn_zoo spiking network 1"


def _nir() -> Any:
    try:
        import nir
    except ImportError as error:
        raise ImportError("NIR files need the package nir: pip install 'rsnn_zoo[nir]'") from error
    return nir


def to_nir(graph: SpikingGraph, **about: str | int | float) -> nir.NIRGraph:
    """The NIR graph.

    Args:
        graph: Of convolutions and neurons without leak.
        **about: Goes into the metadata.

    Raises:
        ExportError: If neurons leak: what NIR's LIF does in a step depends on a step size that it does not hold.
    """
    nir = _nir()
    nodes: dict[str, Any] = {"input": nir.Input({"input": _array(graph.shape)})}
    edges: list[tuple[str, str]] = []
    for name, node in graph.nodes.items():
        nodes[name] = _nir_convolution(nir, node) if isinstance(node, Conv) else _neurons(nir, node)
        edges += [(source, name) for source in node.inputs]
    classes = graph.nodes[graph.output[0]].shape
    nodes["output"] = nir.Output({"output": _array(classes)})
    edges += [(source, "output") for source in graph.output]
    first = next((node for _, node in graph.neurons()), None)
    if first is None:
        raise ExportError("the network has no spiking neuron: export it to onnx or torch")
    metadata = {
        "format": _GRAPH_FORMAT,
        "timesteps": graph.timesteps,
        "reset": first.reset,
        "initial": first.initial,
        "leak": first.leak,
        "comparison": ">=",
        "input": "the image in [0, 1], shown at every step",
        "readout": "mean over time of the output",
        **about,
    }
    return nir.NIRGraph(nodes, edges, metadata=metadata)


def _array(shape: tuple[int, ...]) -> Any:
    return torch.tensor(shape).numpy()


def _nir_convolution(nir: Any, node: Conv) -> Any:
    return nir.Conv2d(
        input_shape=node.source[1:],
        weight=node.weight.contiguous().numpy(),
        bias=node.bias.numpy(),
        stride=node.stride,
        padding=node.padding,
        dilation=node.dilation,
        groups=1,
    )


def _neurons(nir: Any, node: Fire) -> Any:
    if node.leak != 1:
        raise ExportError(
            f"{node.layer} leaks ({node.leak:g}): what a step of NIR's LIF does depends on a step size that no file "
            "holds; only neurons with leak 1 are exported to NIR"
        )
    ones = torch.ones(node.shape, dtype=torch.float64)
    metadata = {"layer": node.layer, "reset": node.reset, "initial": node.initial}
    arrays = {"r": ones.numpy(), "v_threshold": (node.threshold * ones).numpy(), "v_reset": (0 * ones).numpy()}
    return nir.IF(**arrays, metadata=metadata)


def read_nir(path: str | os.PathLike[str]) -> nir.NIRGraph:
    """Reads a file that :func:`rsnn_zoo.export` wrote.

    Raises:
        FileNotFoundError: If there is none.
        ExportError: If it is another, or its metadata were lost.
    """
    nir = _nir()
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        graph = nir.read(path)
    except Exception as error:  # h5py and nir raise of many kinds
        raise ExportError(f"{path} is no NIR file, or damaged: {str(error)[:200]}; export it again") from error
    if text(graph.metadata.get("format")) != _GRAPH_FORMAT:
        raise ExportError(f"{path} was not exported by rsnn_zoo, or has lost its metadata: how to reset is not known")
    return graph


def text(value: Any) -> str:
    """Strings of HDF5 come as bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def neuron_names(graph: nir.NIRGraph) -> dict[str, str]:
    """Nodes of the neurons to the names of their layers in the network."""
    nir = _nir()
    return {name: text(node.metadata["layer"]) for name, node in graph.nodes.items() if isinstance(node, nir.IF)}


@torch.no_grad()
def interpret(graph: nir.NIRGraph, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Runs a NIR graph in float64, by the letter and on its own: the reference that exports are held to.

    Args:
        graph: What :func:`read_nir` gave.
        images: (B, C, H, W) in [0, 1].

    Returns:
        Logits (B, K) and, by node, the spikes of each neuron layer, (T, B, C, H, W) of bool.

    Raises:
        ExportError: If it holds a node of another kind than this package writes.
    """
    nir = _nir()
    timesteps = int(graph.metadata["timesteps"])
    inputs: dict[str, list[str]] = {name: [] for name in graph.nodes}
    for source, target in graph.edges:
        inputs[target].append(source)
    still = images.double().unsqueeze(0).expand(timesteps, *images.shape)
    runs: dict[type, Callable[[Any, Tensor], Tensor]] = {
        **dict.fromkeys((nir.Input, nir.Output), lambda node, x: x),
        nir.Conv2d: _run_convolution,
        nir.IF: _run_neurons,
    }
    values: dict[str, Tensor] = {}
    spikes: dict[str, Tensor] = {}
    for name in _in_order(inputs):
        node = graph.nodes[name]
        if (run := runs.get(type(node))) is None:
            raise ExportError(f"{name} is a {type(node).__name__}: rsnn_zoo writes no such node")
        arriving = [values[source] for source in inputs[name]] or [still]
        values[name] = run(node, sum(arriving[1:], arriving[0]))
        if isinstance(node, nir.IF):
            spikes[name] = values[name].bool()
    return values["output"].mean(0).flatten(1), spikes


def _in_order(inputs: Mapping[str, list[str]]) -> list[str]:
    from graphlib import TopologicalSorter

    return list(TopologicalSorter(inputs).static_order())


def _run_convolution(node: nir.Conv2d, x: Tensor) -> Tensor:
    steps = x.shape[:2]
    weight, bias = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    how = [tuple(int(side) for side in pair) for pair in (node.stride, node.padding, node.dilation)]
    if (x == x[:1]).all():  # the T steps of the first layers are equal
        return F.conv2d(x[0], weight, bias, *how, groups=int(node.groups)).expand(steps[0], -1, -1, -1, -1)
    return F.conv2d(x.flatten(0, 1), weight, bias, *how, groups=int(node.groups)).unflatten(0, steps)


def _run_neurons(node: nir.IF, x: Tensor) -> Tensor:
    threshold, soft = torch.from_numpy(node.v_threshold), text(node.metadata["reset"]) == "soft"
    v = float(node.metadata["initial"]) * threshold
    spikes = []
    for current in x:
        u = v + torch.from_numpy(node.r) * current
        fired = u >= threshold
        v = torch.where(fired, u - threshold if soft else torch.from_numpy(node.v_reset), u)
        spikes.append(fired)
    return torch.stack(spikes).double()
