"""Surgery on networks from elsewhere: their activations are found, told apart and replaced.

A network is watched while it runs, operator by operator, since its modules do not say what it calls as a function.
"""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from rsnn_zoo.neurons.modes import backward_mode

__all__ = [
    "POOLS",
    "average_pool",
    "check_rows",
    "find_activations",
    "hooked",
    "mark_stem",
    "replace",
    "split_shared",
    "undisturbed",
]

_log = logging.getLogger(__name__)

# aten operators that bend their input, and so are activations that a spiking network does not have.
_NONLINEAR = frozenset(
    {
        "relu",
        "clamp",
        "clamp_min",
        "threshold",
        "hardtanh",
        "leaky_relu",
        "elu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "sigmoid",
        "tanh",
        "hardsigmoid",
        "hardswish",
        "softplus",
        "log_sigmoid_forward",
        "_softmax",
        "_log_softmax",
        "_prelu_kernel",
        "glu",
        "hardshrink",
        "softshrink",
        "maximum",
        "minimum",
        "abs",
        "rrelu_with_noise",
        "exp",
        "erf",
        "sin",
        "cos",
        "_safe_softmax",
        "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
    }
)
_POINTWISE = frozenset(
    {"where", "pow", "sqrt", "rsqrt", "log", "log1p", "log2", "sign", "heaviside", "gt", "ge", "lt", "le"}
)
"""The same where they are called on a batch: norms of weights use them too."""
_MAX_POOLS = {"max_pool2d_with_indices", "adaptive_max_pool2d", "mkldnn_max_pool2d"}
POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)


@contextmanager
def hooked(modules: Iterator[nn.Module] | list[nn.Module], pre: Any = None, post: Any = None) -> Iterator[None]:
    """Forward hooks on all of these modules, while it lasts."""
    with ExitStack() as stack:
        for module in modules:
            if pre is not None:
                stack.callback(module.register_forward_pre_hook(pre).remove)
            if post is not None:
                stack.callback(module.register_forward_hook(post, always_call=True).remove)
        yield


class _Recorder(TorchDispatchMode):
    """Runs a network and notes which module each non-linear operator was called in."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.names = {module: name or "the network itself" for name, module in network.named_modules()}
        self.stack: list[nn.Module] = [network]
        self.calls: list[tuple[nn.Module, str]] = []
        self.size = 0  # of the batch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = func.overloadpacket.__name__.removesuffix("_")  # in place or not
        attends = operator.startswith("_scaled_dot_product_")  # of many kinds, by device
        pointwise = operator in _POINTWISE and any(map(self.is_batch, args))
        if attends or pointwise or operator in _NONLINEAR or operator in _MAX_POOLS:
            self.calls.append((self.stack[-1], operator))
        return func(*args, **(kwargs or {}))

    def is_batch(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.ndim > 1 and len(x) == self.size

    def record(self, network: nn.Module, x: Tensor) -> Any:
        """What the network gives; its calls are noted."""

        def enter(module: nn.Module, _: Any) -> None:
            self.stack.append(module)

        def leave(module: nn.Module, *_: Any) -> None:
            self.stack.pop()

        self.size = len(x)
        with torch.no_grad(), hooked(list(self.names), enter, leave), self:
            return network(x)


def find_activations(network: nn.Module, x: Tensor, max_pool: str) -> Counter[str]:
    """How often each ReLU module is called; any other operator that is known to bend its input is refused."""
    _check_in_place(network, x)
    recorder = _Recorder(network)
    uses: Counter[str] = Counter()
    output = recorder.record(network, x)
    for module, operator in recorder.calls:
        name, kind = recorder.names[module], type(module).__name__
        if isinstance(module, nn.ReLU):
            if not _is_relu(module, x):
                raise ValueError(f"{name} ({kind}) computes something else than the nn.ReLU that it is a kind of")
            uses[name] += 1
        elif operator in _MAX_POOLS:
            if max_pool == "average" and not isinstance(module, POOLS):
                raise ValueError(f"{name} ({kind}) calls max pooling as a function: make it an nn.MaxPool2d module")
        elif operator == "relu":
            raise ValueError(
                f"{name} ({kind}) calls {operator} as a function, where no neuron can be put: "
                "give it an nn.ReLU module (one for each use) and convert again"
            )
        elif operator in ("clamp_min", "clamp", "threshold"):
            raise ValueError(
                f"{name} ({kind}) calls {operator} as a function, where no neuron can be put: where it is a ReLU, give "
                "it an nn.ReLU module (one for each use) and convert again (F.normalize calls it too: leave that out)"
            )
        elif operator in ("_softmax", "_log_softmax"):
            raise ValueError(
                f"{name} ({kind}) applies {operator.strip('_')}, which integrate-and-fire neurons do not approximate: "
                "where it makes probabilities of the logits, return the logits, which training and attacks expect; "
                "elsewhere replace it by nn.ReLU, and train again"
            )
        else:
            raise ValueError(
                f"{name} ({kind}) applies {operator.strip('_')}, which integrate-and-fire neurons do not approximate: "
                "replace it by nn.ReLU, train again, and convert that network"
            )
    if not isinstance(output, Tensor) or output.ndim != 2:
        given = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ValueError(
            f"the network gives no logits (B, K), but something {given}: wrap it in a module that returns the logits "
            "alone, and convert that"
        )
    if not uses:
        raise ValueError("the network has no ReLU module, so there is nothing to convert into spiking neurons")
    return uses


def _is_relu(module: nn.ReLU, x: Tensor) -> bool:
    probe = torch.linspace(-2, 2, 9).to(x).reshape(1, 1, 3, 3)
    return type(module) is nn.ReLU or torch.equal(module(probe.clone()), probe.relu())


@torch.no_grad()
def _check_in_place(network: nn.Module, x: Tensor) -> None:
    """Refuses networks that mean the output of an in-place ReLU where they use its input again."""
    relus = [module for module in network.modules() if isinstance(module, nn.ReLU) and module.inplace]

    def output() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return network(x.clone())

    if not relus or not isinstance(before := output(), Tensor):
        return
    try:
        for relu in relus:
            relu.inplace = False
        same = torch.allclose(output(), before, rtol=1e-4, atol=1e-5)
    finally:
        for relu in relus:
            relu.inplace = True
    if not same:
        raise ValueError(
            "an nn.ReLU(inplace=True) changes a tensor that the network uses again, which a neuron does not: let the "
            "network use the ReLU's result in both places, with inplace=False, and convert again"
        )


class _Tracer(fx.Tracer):
    """Goes into the modules that hold a shared ReLU, and leaves all others as they are."""

    def __init__(self, shared: set[nn.Module]):
        super().__init__()
        self.shared = shared

    def is_leaf_module(self, module: nn.Module, _: str) -> bool:
        return isinstance(module, nn.ReLU) or self.shared.isdisjoint(module.modules())


def _traced(network: nn.Module, shared: set[nn.Module]) -> fx.GraphModule:
    tracer = _Tracer(shared)
    graph = tracer.trace(network)
    return fx.GraphModule(tracer.root, graph)


def split_shared(network: nn.Module, uses: Counter[str]) -> nn.Module:
    """A network in which each use of a ReLU is a module of its own, through torch.fx."""
    shared = {name for name, count in uses.items() if count > 1}
    if not shared:
        return network
    relus = {network.get_submodule(name) for name in shared}
    try:
        graph_module = _traced(network, relus)
    except Exception as error:
        raise ValueError(
            f"{', '.join(sorted(shared))}: used in several places, and torch.fx cannot trace the network to split it "
            f"({error}): give each use an nn.ReLU of its own"
        ) from error
    if _training_code(network, relus) != graph_module.code:
        _log.warning(
            "%s: used in several places, so the network is traced; what it does in training alone without a module "
            "for it (F.dropout, stochastic depth) gets lost: give each use an nn.ReLU of its own",
            ", ".join(sorted(shared)),
        )
    modules = dict(graph_module.named_modules(remove_duplicate=False))  # one module may bear several names
    seen: Counter[nn.Module] = Counter()
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and isinstance(relu := modules[node.target], nn.ReLU):
            seen[relu] += 1
            if seen[relu] > 1:
                node.target = f"{node.target}_use{seen[relu]}"
                graph_module.add_submodule(node.target, nn.ReLU())
    graph_module.recompile()
    return graph_module


def _training_code(network: nn.Module, shared: set[nn.Module]) -> str | None:
    """What torch.fx makes of a network in training mode; None where it cannot."""
    before = [(module, module.training) for module in network.modules()]
    try:
        return _traced(network.train(), shared).code
    except Exception:
        return None
    finally:
        for module, training in before:
            module.training = training


def replace(network: nn.Module, kind: type | tuple[type, ...], new: Any) -> None:
    """Puts ``new(module)`` in place of every submodule of a kind, the same one under each of its names."""
    replaced: dict[nn.Module, nn.Module] = {}
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, kind):
            if module not in replaced:
                replaced[module] = new(module)
            network.set_submodule(name, replaced[module])


def average_pool(pool: nn.MaxPool2d | nn.AdaptiveMaxPool2d) -> nn.Module:
    """The average pooling over the same windows."""
    if isinstance(pool, nn.AdaptiveMaxPool2d):
        return nn.AdaptiveAvgPool2d(pool.output_size)
    if pool.dilation not in (1, (1, 1)):
        raise ValueError(f"a max pooling with dilation {pool.dilation} has no average pooling to become")
    return nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, count_include_pad=False)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without gradients, and whatever backward mode or autocast the caller has in force."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(backward_mode(None))
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def _at(snn: nn.Module, timesteps: int) -> Iterator[None]:
    before, snn.timesteps = snn.timesteps, timesteps
    try:
        yield
    finally:
        snn.timesteps = before


def _two(x: Tensor) -> Tensor:
    return (x if len(x) > 1 else x.repeat(2, 1, 1, 1))[:2]


@undisturbed()
def mark_stem(snn: nn.Module, x: Tensor) -> None:
    """Marks the neurons that see the same current at every step, by trial runs over 2 images and 3 steps.

    Those are shown 2 rows, and the same ones whatever other neurons fire.
    """
    neurons = [neuron for _, neuron in snn.neurons()]

    def mark(neuron: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        neuron.repeated = inputs[0].shape[0] == 2

    def currents(seed: int) -> list[Tensor]:
        """Those of the marked neurons, where all fire at random."""
        draws, found = torch.Generator().manual_seed(seed), list[Tensor]()

        def fire(neuron: nn.Module, inputs: tuple[Tensor, ...], spikes: Tensor) -> Tensor:
            if neuron.repeated:
                found.append(inputs[0].clone())
            return torch.rand(spikes.shape, generator=draws).to(spikes)

        with hooked(neurons, post=fire):
            snn(x)
        return found

    x = _two(x)
    with _at(snn, 3):
        try:
            with hooked(neurons, pre=mark):
                snn(x)
            if all(map(torch.equal, currents(0), currents(1))):
                return
        except (RuntimeError, ValueError):  # a path around the first neuron meets one through it
            if not hasattr(snn, "stem_once"):
                raise
    snn.stem_once = False
    for neuron in neurons:
        neuron.repeated = False


@undisturbed()
def check_rows(snn: nn.Module, x: Tensor) -> None:
    """Refuses a network that takes its rows for something else than images, step after step.

    It would mix steps or images without any error, such as where it takes the number of images from its input, or puts
    patches first. So two images are shown for three steps, for two, and each alone: all has to be the same. That is
    seen in float64, where no rounding flips a spike; what does not run in it is not checked.

    Raises:
        ValueError: If something differs; names the first neuron that is shown something else.
    """
    snn, x = copy.deepcopy(snn).double(), _two(x).double()
    try:
        several = _watched(snn, x, 3)
    except RuntimeError:
        return
    cause = ""
    try:
        parts = [(_watched(snn, x, 2), slice(2), slice(2))]
        parts += [(_watched(snn, x[i : i + 1], 3), slice(3), slice(i, i + 1)) for i in range(2)]
    except (RuntimeError, ValueError) as error:
        parts, cause = [], f" ({error})"
    differing = [key for key in several if not all(_same(several[key], part.get(key), *at) for part, *at in parts)]
    if cause or "" in differing:
        named = differing[0] if differing and not cause else ""
        raise ValueError(
            f"{f'{named} is shown' if named else 'the network makes'} something else of two images over three steps "
            f"than of fewer images or steps{cause}: its first dimension has to be that of the images all along, which "
            "are T times as many after the first neuron. Take no sizes from the input (x.flatten(1), x.mean((2, 3))), "
            "and keep patches or tokens behind the images"
        )


def _watched(snn: nn.Module, x: Tensor, timesteps: int) -> dict[str, Tensor]:
    """Currents of the neurons by name, in the order of the pass, and under ``""`` the logits; (T or 1, B, N) each."""
    found: dict[str, Tensor] = {}
    names = {neuron: name for name, neuron in snn.neurons()}

    def note(neuron: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        steps = 1 if neuron.repeated else timesteps
        if inputs[0].numel() % (steps * len(x)) == 0:
            found.setdefault(names[neuron], inputs[0].reshape(steps, len(x), -1))

    with _at(snn, timesteps), hooked(list(names), pre=note):
        logits = snn(x, per_step=True)
    return {**found, "": logits}


def _same(whole: Tensor, part: Tensor | None, steps: slice, images: slice) -> bool:
    expected = whole[steps, images]
    return part is not None and expected.shape == part.shape and torch.allclose(expected, part, rtol=1e-6, atol=1e-9)
