"""Networks of other libraries from our NIR files, with the reset, the comparison and the initial membrane of ours.

None of these libraries' own importers reads a soft reset or an initial membrane; ``nirtorch`` with the node maps below
does. Each says how that library's neuron is made to be ours.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rsnn_zoo.exports.graph import ExportError
from rsnn_zoo.exports.nir import read_nir, text

if TYPE_CHECKING:
    import nir

__all__ = ["SIMULATORS", "Simulated", "installed_simulators", "load_nir"]


@dataclass(frozen=True)
class _Neurons:
    """What a node of our files says: a threshold, a reset and an initial membrane for the whole layer."""

    threshold: float
    soft: bool
    initial: Tensor

    @classmethod
    def of(cls, node: nir.IF, dtype: torch.dtype) -> _Neurons:
        threshold = torch.from_numpy(node.v_threshold)
        initial = float(node.metadata["initial"]) * threshold
        return cls(threshold.flatten()[0].item(), text(node.metadata["reset"]) == "soft", initial.to(dtype))


class _Step(nn.Module):
    """A neuron of another library, called with the current of one step, whose state :meth:`start` sets.

    Attributes:
        neuron: The library's own module.
    """

    def __init__(self, neuron: nn.Module, initial: Tensor):
        super().__init__()
        self.neuron = neuron
        self.register_buffer("initial", initial)

    def start(self, batch: int) -> None:
        """Puts the membranes where they are before the first step."""
        raise NotImplementedError

    def _first(self, batch: int) -> Tensor:
        return self.initial.expand(batch, *self.initial.shape).clone()


class _SpikingJelly(_Step):
    """``v_reset=None`` is a soft reset; spikes where v - threshold >= 0, as ours."""

    def __init__(self, how: _Neurons):
        from spikingjelly.activation_based.neuron import IFNode

        super().__init__(IFNode(how.threshold, v_reset=None if how.soft else 0.0), how.initial)

    def start(self, batch: int) -> None:
        self.neuron.reset()
        self.neuron.v = self._first(batch)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(x)


def _at_least(excess: Tensor) -> Tensor:
    return (excess >= 0).to(excess.dtype)


class _SnnTorch(_Step):
    """Leaky with beta = 1; its own spike is at > threshold, so the comparison is handed to it."""

    def __init__(self, how: _Neurons):
        import snntorch

        reset = "subtract" if how.soft else "zero"
        neuron = snntorch.Leaky(beta=1.0, threshold=how.threshold, reset_mechanism=reset, reset_delay=True)
        neuron.spike_grad = _at_least
        # it holds the threshold in float32, which moves it by up to a half of 2^-24
        neuron.threshold = torch.tensor(how.threshold, dtype=how.initial.dtype)
        super().__init__(neuron, how.initial)

    def start(self, batch: int) -> None:
        self.membrane = self._first(batch)

    def forward(self, x: Tensor) -> Tensor:
        spikes, self.membrane = self.neuron(x, self.membrane)
        return spikes


def _subtract(spikes: Tensor, state: dict[str, Tensor], threshold: Tensor) -> dict[str, Tensor]:
    """A reset that Sinabs calls; its own would subtract a threshold that float32 spikes round to float32."""
    membrane = state["v_mem"]
    return {**state, "v_mem": membrane - spikes.to(membrane.dtype) * threshold}


class _Sinabs(_Step):
    """``SingleSpike`` at >= threshold; by default it would fire many times a step. No lower bound of the membrane."""

    def __init__(self, how: _Neurons):
        from sinabs.activation import MembraneReset, SingleSpike
        from sinabs.layers import IAF

        neuron = IAF(
            spike_threshold=torch.tensor(how.threshold, dtype=how.initial.dtype),
            spike_fn=SingleSpike,
            reset_fn=_subtract if how.soft else MembraneReset(),
            min_v_mem=None,
        )
        super().__init__(neuron, how.initial)

    def start(self, batch: int) -> None:
        self.neuron.v_mem = self._first(batch)

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(x.unsqueeze(1)).squeeze(1).to(x.dtype)


class _Norse(_Step):
    """IAF with a hard reset, at > threshold: the largest number below ours stands for it."""

    def __init__(self, how: _Neurons):
        from norse.torch import IAFCell
        from norse.torch.functional.iaf import IAFParameters

        if how.soft:
            raise ExportError(
                "Norse's integrate-and-fire neuron resets to a value and never by subtraction: a network of soft "
                "reset does not run there; take spikingjelly, snntorch or sinabs"
            )
        below = torch.nextafter(torch.tensor(how.threshold, dtype=how.initial.dtype), torch.tensor(0.0).to(how.initial))
        super().__init__(IAFCell(IAFParameters(v_th=below, v_reset=torch.zeros((), dtype=below.dtype))), how.initial)

    def start(self, batch: int) -> None:
        from norse.torch.functional.iaf import IAFFeedForwardState

        self.state = IAFFeedForwardState(self._first(batch))

    def forward(self, x: Tensor) -> Tensor:
        spikes, self.state = self.neuron(x, self.state)
        return spikes


SIMULATORS: dict[str, Callable[[_Neurons], _Step]] = {
    "spikingjelly": _SpikingJelly,
    "snntorch": _SnnTorch,
    "sinabs": _Sinabs,
    "norse": _Norse,
}
"""Libraries whose neuron can be ours, by the name of their package."""


def installed_simulators() -> list[str]:
    """The names in :data:`SIMULATORS` that are installed here, none where nirtorch is not."""
    return [name for name in SIMULATORS if find_spec(name)] if find_spec("nirtorch") else []


class Simulated(nn.Module):
    """A network of another library: images (B, C, H, W) in [0, 1] to logits (B, K), the mean over time.

    Attributes:
        network: What nirtorch made: one step of ``(x, state)``; its layers have the names of the NIR nodes.
        timesteps: T.
    """

    def __init__(self, network: nn.Module, timesteps: int):
        super().__init__()
        self.network, self.timesteps = network, timesteps

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        for module in self.network.modules():
            if isinstance(module, _Step):
                module.start(len(images))
        total = torch.zeros((), dtype=images.dtype, device=images.device)
        for _ in range(self.timesteps):
            total = total + self.network(images)[0].flatten(1)
        return total / self.timesteps


def load_nir(
    path: str | os.PathLike[str], simulator: str = "spikingjelly", dtype: torch.dtype = torch.float32
) -> Simulated:
    """A network of SpikingJelly, snnTorch, Sinabs or Norse, from a NIR file that :func:`rsnn_zoo.export` wrote.

    Args:
        path: The file.
        simulator: A name of ``SIMULATORS``; it and ``nirtorch`` must be installed.
        dtype: Of weights and membranes. In float64 all spikes are ours; in float32 some in a million are not.

    Raises:
        FileNotFoundError: If there is no such file.
        ExportError: If it is not ours, or that library cannot run it: says why.
        ImportError: If the library is not installed.

    Example:
        >>> load_nir("resnet20.nir", "sinabs")(images)  # doctest: +SKIP
    """
    if simulator not in SIMULATORS:
        raise ExportError(f"unknown simulator {simulator!r}: there are {', '.join(SIMULATORS)}")
    try:
        import nir
        import nirtorch

        __import__(simulator)
    except ImportError as error:
        raise ImportError(f"load_nir needs {error.name}: pip install nir nirtorch {simulator}") from error
    graph = read_nir(path)
    nodes = {
        nir.IF: lambda node: SIMULATORS[simulator](_Neurons.of(node, dtype)),
        nir.Conv2d: lambda node: _torch_convolution(node, dtype),
    }
    network = nirtorch.nir_to_torch(graph, nodes, dtype=dtype)
    return Simulated(network, int(graph.metadata["timesteps"])).requires_grad_(False).eval()


def _torch_convolution(node: nir.Conv2d, dtype: torch.dtype) -> nn.Conv2d:
    weight = torch.from_numpy(node.weight).to(dtype)
    how: dict[str, Any] = {
        name: tuple(int(side) for side in getattr(node, name)) for name in ("stride", "padding", "dilation")
    }
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), dtype=dtype, **how)
    with torch.no_grad():
        conv.weight.copy_(weight)
        conv.bias.copy_(torch.from_numpy(node.bias))
    return conv
