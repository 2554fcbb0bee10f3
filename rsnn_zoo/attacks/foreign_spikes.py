"""Networks of other SNN libraries under this zoo's surrogate modes.

SpikingJelly's neurons call their spike ``surrogate_function``, snnTorch's ``spike_grad``: a function of u = membrane -
threshold with a Heaviside forward and the library's own derivative backward. Nothing of these libraries is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rsnn_zoo.neurons.modes import Surrogate, current_mode, current_units
from rsnn_zoo.spec.units import RELATIVE

__all__ = ["adopt_surrogates", "follows_surrogates"]

Spike = Callable[[Tensor], Tensor]

_NAMES = {"surrogate_function": "v_threshold", "spike_grad": "threshold"}
"""What the libraries call a neuron's spike, and its threshold."""

_WITHOUT_GRADIENT = {"ComplementaryLIFNode", "OTTTLIFNode", "SLTTLIFNode"}
"""Neurons of SpikingJelly that in evaluation mode put a plain Heaviside in place of their surrogate_function."""

_PROBE = (-8.0, -1.0, -0.5, -1e-3, 1e-3, 0.5, 1.0, 8.0)


class _Fire(torch.autograd.Function):
    """The spike as its library computes it, with the derivative of a mode."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, unit: Tensor, own: Spike, mode: Surrogate) -> Tensor:
        ctx.save_for_backward(u, unit)
        ctx.mode = mode
        return own(u)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        u, unit = ctx.saved_tensors
        return (grad * ctx.mode.derivative(u / unit) / unit).to(u.dtype), None, None, None


class _SpikeUnder:
    """A spike with the derivative of a mode, or its own in units of the threshold; else it is the library's own."""

    def __init__(self, own: Spike, mode: Surrogate | None, threshold: Any = None):
        self.own, self.mode, self.threshold = own, mode, threshold

    def __call__(self, u: Tensor) -> Tensor:
        threshold = 1.0 if self.threshold is None else self.threshold
        unit = threshold.detach().to(u) if isinstance(threshold, Tensor) else u.new_tensor(threshold)
        unit = torch.where(unit > 0, unit, 1.0)
        return self.own(u / unit) if self.mode is None else _Fire.apply(u, unit, self.own, self.mode)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "own":  # copying and unpickling ask before there is an own
            raise AttributeError(name)
        return getattr(self.own, name)


class _FollowMode:
    """Gives every spike the derivative of the mode that a forward pass begins under.

    Without such a mode each neuron has its own spike, its derivative in units of the threshold; where that is 1, or no
    gradient is wanted, object for object: a library may have a faster kernel for it.
    Where gradients are wanted the neurons, and nothing else, are in training mode: in evaluation mode those of
    SpikingJelly up to 0.0.0.0.14 fire by a kernel that has none.
    """

    def __init__(self, spikes: list[tuple[nn.Module, str, Spike]]):
        self.spikes = spikes

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        mode, relative = current_mode(), current_units() == RELATIVE
        for neuron, name, own in self.spikes:
            vars(neuron)["training"] = torch.is_grad_enabled()
            threshold = getattr(neuron, _NAMES[name], None) if relative else None
            surrogate = mode if isinstance(mode, Surrogate) else None
            scaled = surrogate or (torch.is_grad_enabled() and not _is_one(threshold))
            # before a registered submodule of that name, which stays: it moves with the network
            vars(neuron)[name] = _SpikeUnder(own, surrogate, threshold) if scaled else own


def _is_one(threshold: Any) -> bool:
    """Whether a threshold, if there is one, is 1 throughout."""
    return threshold is None or bool((torch.as_tensor(threshold) == 1).all())


def _is_heaviside(spike: Any, device: torch.device) -> bool:
    """Whether it maps each u to 0 below the threshold and to 1 above; not so graded, random and smoothed spikes."""
    if not callable(spike):
        return False
    u = torch.tensor(_PROBE, device=device)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            fired = spike(u)
    except Exception:  # whatever it takes, it is no function of u alone
        return False
    return isinstance(fired, Tensor) and fired.shape == u.shape and bool((fired == (u > 0)).all())


def _spike_functions(module: nn.Module) -> Iterator[tuple[nn.Module, str, Spike]]:
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    for neuron in module.modules():
        if isinstance(neuron, torch.jit.ScriptModule) or _WITHOUT_GRADIENT & {c.__name__ for c in type(neuron).__mro__}:
            continue
        for name in _NAMES:
            spike = getattr(neuron, name, None)
            own = spike.own if isinstance(spike, _SpikeUnder) else spike
            if _is_heaviside(own, device):
                yield neuron, name, own


def follows_surrogates(module: nn.Module) -> bool:
    """Whether :func:`adopt_surrogates` would find a spike in a network; nothing of it is changed.

    Args:
        module: Of any library.

    Example:
        >>> from spikingjelly.activation_based import neuron  # doctest: +SKIP
        >>> follows_surrogates(neuron.IFNode())  # doctest: +SKIP
        True
    """
    return any(True for _ in _spike_functions(module))


def adopt_surrogates(module: nn.Module) -> int:
    """Let the spikes of another library's neurons follow the backward mode, where that is a ``Surrogate``.

    Under a :class:`rsnn_zoo.neurons.modes.Surrogate` the forward pass stays as it is, and the backward pass takes
    h'(u) of the mode in place of the library's derivative, in units of the neuron's ``v_threshold`` or ``threshold``
    (of 1 where it has none, or one that is not positive). Under any other mode, and without one, the derivative is the
    library's, in the same units, so that no scale of a layer changes a gradient; not so with ``units="absolute"``. The
    mode is looked up as the forward pass of ``module`` begins, so call ``module`` itself and not a part of it.

    A spike is found where a module has, as ``surrogate_function`` (SpikingJelly) or ``spike_grad`` (snnTorch), a
    function that is 0 below the threshold and 1 above. Left alone are graded and smoothed spikes, scripted modules, and
    the neurons of SpikingJelly that have no gradient in evaluation mode (CLIF, OTTT and SLTT).

    Args:
        module: Changed in place: hand over a copy. One that has been adopted may be again.

    Returns:
        How many spikes follow the mode: 0 for a network of this zoo, whose neurons do so by themselves.

    Example:
        >>> copied = copy.deepcopy(model)  # doctest: +SKIP
        >>> adopt_surrogates(copied)  # doctest: +SKIP
        9
        >>> with backward_mode(Surrogate("pcw", 0.5)):  # doctest: +SKIP
        ...     loss = copied(images).sum()
    """
    spikes = list(_spike_functions(module))
    if spikes and not any(isinstance(hook, _FollowMode) for hook in module._forward_pre_hooks.values()):
        module.register_forward_pre_hook(_FollowMode(spikes))
    return len(spikes)
