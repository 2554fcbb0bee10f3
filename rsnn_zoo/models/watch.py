"""Networks from elsewhere, watched while they run, operator by operator: what bends their data, and where.

Their modules do not say what they call as a function.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rsnn_zoo.models.rows import hooked

__all__ = ["POOLS", "ClippedReLU", "Uses", "find_activations"]

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
        "logsumexp",
        "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
    }
)
_POINTWISE = frozenset(
    {"where", "pow", "sqrt", "rsqrt", "log", "log1p", "log2", "sign", "heaviside", "gt", "ge", "lt", "le"}
)
"""The same where they are called on a batch: norms of weights use them too."""
_OF_EACH_STEP = frozenset({"native_layer_norm", "native_group_norm", "_fused_rms_norm", "native_batch_norm"})
"""Operators that normalise by statistics of what they are shown: of single steps, where spikes come in."""
_RANKED = frozenset(
    {"std", "std_mean", "var", "var_mean", "linalg_vector_norm", "norm", "topk", "sort", "median", "kthvalue", "amin"}
)
_ROUNDED = frozenset({"round", "floor", "ceil", "trunc", "fmod", "remainder"})
"""Operators that bend activations, though not the weights or images that some networks use them on."""
_POOLING = {"max_pool2d_with_indices", "adaptive_max_pool2d", "mkldnn_max_pool2d"}
_MAX_POOLS = _POOLING | {"amax"}
_RATES_LACK = {"product", "quotient"}
"""What is no function of one rate, though a ReLU's own module may compute it."""
_MAXIMA = {"amax", "max"}
_PRODUCTS = {
    "mul",
    "addcmul",
    "bmm",
    "mm",
    "addmm",
    "baddbmm",
    "convolution",
    "dot",
    "mv",
    "_trilinear",
    "linalg_cross",
    "_cdist_forward",
}
POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)


class ClippedReLU(nn.ReLU):
    """min(max(x, 0), limit), as a kind of ReLU: a spiking layer, which gives a spike a step at most, is clipped too.

    Args:
        limit: The largest output, positive.
    """

    def __init__(self, limit: float):
        super().__init__()
        self.limit = float(limit)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x.clamp(0.0, self.limit)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"limit={self.limit:g}"


@dataclass
class Uses:
    """Where a network has its ReLUs.

    Attributes:
        modules: How often each ReLU module is called, by name.
        functions: Names of the modules that call one as a function; ``""`` is the network itself.
        pools: Likewise of those that call max pooling, where its spikes are not to be pooled step by step.
    """

    modules: Counter[str] = field(default_factory=Counter)
    functions: set[str] = field(default_factory=set)
    pools: set[str] = field(default_factory=set)


class _Recorder(TorchDispatchMode):
    """Runs a network and notes which module each non-linear operator was called in."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.names = {module: name or "the network itself" for name, module in network.named_modules()}
        self.stack: list[nn.Module] = [network]
        self.calls: list[tuple[nn.Module, str]] = []
        self.size = 0  # of the batch
        self.bent: dict[int, Tensor] = {}  # what hangs on an activation; kept, so that no other gets its id

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operator = func.overloadpacket.__name__.removesuffix("_")  # in place or not
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        bent = [x for x in given if id(x) in self.bent]
        if operator in _PRODUCTS and len(bent) > 1:
            self.calls.append((self.stack[-1], "product"))
        elif operator == "div" and len(given) > 1 and id(given[1]) in self.bent:
            self.calls.append((self.stack[-1], "quotient"))
        elif operator in _OF_EACH_STEP and bent and _by_own_statistics(operator, args):
            self.calls.append((self.stack[-1], "statistics"))
        elif operator in _RANKED | _ROUNDED and any(map(self.is_batch, bent)):
            self.calls.append((self.stack[-1], operator))
        attends = operator.startswith("_scaled_dot_product_")  # of many kinds, by device
        if torch.Tag.nondeterministic_seeded in func.tags and not attends and operator not in _NONLINEAR:
            self.calls.append((self.stack[-1], "random"))
        pointwise = operator in _POINTWISE and any(map(self.is_batch, args))
        if attends or pointwise or operator in _NONLINEAR or operator in _POOLING:
            self.calls.append((self.stack[-1], operator))
        elif operator in _MAXIMA and given and given[0].ndim > 2:
            self.calls.append((self.stack[-1], "amax"))
        output = func(*args, **(kwargs or {}))
        if bent or operator in _NONLINEAR:
            self.bent |= {id(x): x for x in tree_leaves(output) if isinstance(x, Tensor)}
        return output

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


def _by_own_statistics(operator: str, args: Any) -> bool:
    """Whether a norm takes the statistics of its input: a batch norm has those of the training set in evaluation."""
    return operator != "native_batch_norm" or bool(args[5])


_FUNCTIONS = {"relu", "hardtanh", "clamp", "clamp_min", "threshold"}
"""Operators that may be a ReLU called as a function, which torch.fx can put a module in place of."""

_MESSAGES = {
    "random": "draws random numbers in evaluation, as F.dropout(x, p, True) does, so no two answers are alike: pass "
    "training=self.training, or take the noise out, and convert again",
    "product": "multiplies activations by activations, and the product of two rates is not the rate of a product: take "
    "the gate or the product out, or convert what comes before it",
    "quotient": "divides by activations, or by a clamped norm as F.normalize does, and no rate is that of a quotient: "
    "leave the division out, or convert what comes before it",
    "statistics": "normalises by the statistics of each image, which those of single steps of spikes are not: use "
    "nn.BatchNorm2d, with running statistics, and train again",
    "amax": "takes a maximum over space as a function, and the largest spike of each step is not the largest rate: "
    "make it an nn.AdaptiveMaxPool2d(1) module",
    **dict.fromkeys(
        _RANKED | _ROUNDED,
        "applies {} to activations, which no rate of spikes follows: leave it out, or convert what comes before it",
    ),
    **dict.fromkeys(
        ("linalg_vector_norm", "norm"),
        "takes a norm of activations, as F.normalize does, which no rate of spikes follows: leave it out, or convert "
        "what comes before it",
    ),
    **dict.fromkeys(
        ("_softmax", "_log_softmax"),
        "applies {}, which integrate-and-fire neurons do not approximate: where it makes probabilities of the logits, "
        "return the logits, which training and attacks expect; elsewhere replace it by nn.ReLU, and train again",
    ),
}
"""Why an operator is refused, and what to do; ``{}`` is its name."""

_OTHERWISE = (
    "applies {}, which integrate-and-fire neurons do not approximate: replace it by nn.ReLU, train again, and convert "
    "that network"
)


def find_activations(network: nn.Module, x: Tensor, max_pool: str) -> Uses:
    """Where the network has its ReLUs; any other operator that is known to bend its input is refused."""
    _check_in_place(network, x)
    recorder = _Recorder(network)
    uses = Uses()
    output = recorder.record(network, x)
    for module, operator in recorder.calls:
        name, kind = recorder.names[module], type(module).__name__
        if isinstance(module, nn.ReLU) and operator not in _RATES_LACK:
            if not _is_relu(module, x):
                raise ValueError(f"{name} ({kind}) computes something else than the nn.ReLU that it is a kind of")
            uses.modules[name] += 1
        elif operator in _MAX_POOLS and (max_pool == "spikes" or isinstance(module, POOLS)):
            continue  # pooled as it is, or replaced as a module
        elif operator in _POOLING:
            uses.pools.add("" if module is network else name)
        elif operator in _FUNCTIONS and not isinstance(module, nn.Hardtanh | nn.Threshold):
            uses.functions.add("" if module is network else name)
        else:
            message = _MESSAGES.get(operator, _OTHERWISE).format(operator.strip("_"))
            raise ValueError(f"{name} ({kind}) {message}")
    if not isinstance(output, Tensor) or output.ndim != 2:
        given = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ValueError(
            f"the network gives no logits (B, K), but something {given}: wrap it in a module that returns the logits "
            "alone, and convert that"
        )
    if len(output) != len(x):
        raise ValueError(
            f"the network gives {len(output)} rows of logits for {len(x)} images: it must take any number of them, and "
            "logits (B, K) have a row for each"
        )
    if not uses.modules and not uses.functions:
        raise ValueError("the network has no ReLU module, so there is nothing to convert into spiking neurons")
    return uses


def _is_relu(module: nn.ReLU, x: Tensor) -> bool:
    probe = torch.linspace(-2, 2, 9).to(x).reshape(1, 1, 3, 3)
    return type(module) in (nn.ReLU, ClippedReLU) or torch.equal(module(probe.clone()), probe.relu())


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
