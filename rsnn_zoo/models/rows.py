"""What a spiking network from elsewhere takes its rows for: steps of images, all along."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rsnn_zoo._utils.defaults import no_autocast
from rsnn_zoo.neurons.modes import backward_mode

__all__ = ["check_rows", "hooked", "in_mode", "mark_stem", "undisturbed", "with_timesteps"]


@contextmanager
def hooked(modules: Iterable[nn.Module], pre: Any = None, post: Any = None) -> Iterator[None]:
    """Forward hooks on all of these modules, while it lasts."""
    with ExitStack() as stack:
        for module in modules:
            if pre is not None:
                stack.callback(module.register_forward_pre_hook(pre).remove)
            if post is not None:
                stack.callback(module.register_forward_hook(post, always_call=True).remove)
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Without gradients, and whatever backward mode or autocast the caller has in force."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(backward_mode(None))
        stack.enter_context(no_autocast())
        yield


@contextmanager
def with_timesteps(snn: nn.Module, timesteps: int) -> Iterator[None]:
    """An SNN of so many steps, while it lasts."""
    before, snn.timesteps = snn.timesteps, timesteps
    try:
        yield
    finally:
        snn.timesteps = before


@contextmanager
def in_mode(network: nn.Module, training: bool) -> Iterator[None]:
    """A network in training or evaluation mode; afterwards each module is in the one that it was in."""
    before = [(module, module.training) for module in network.modules()]
    network.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


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
        """Record the currents of the marked neurons, where all fire at random."""
        draws, found = torch.Generator().manual_seed(seed), list[Tensor]()

        def fire(neuron: nn.Module, inputs: tuple[Tensor, ...], spikes: Tensor) -> Tensor:
            if neuron.repeated:
                found.append(inputs[0].clone())
            return torch.rand(spikes.shape, generator=draws).to(spikes)

        with hooked(neurons, post=fire):
            snn(x)
        return found

    x = _two(x)
    with with_timesteps(snn, 3):
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
    differing = [key for key in several if not all(_agrees(several[key], part.get(key), *at) for part, *at in parts)]
    if cause or "" in differing:
        named = differing[0] if differing and not cause else ""
        raise ValueError(
            f"{f'{named} is shown' if named else 'the network makes'} something else of two images over three steps "
            f"than of fewer images or steps{cause}: its first dimension has to be that of the images all along, which "
            "are T times as many after the first neuron. Take no sizes from the input (x.flatten(1), x.mean((2, 3))), "
            "nothing over images (no x.mean(0)), and keep patches or tokens behind the images"
        )


def _watched(snn: nn.Module, x: Tensor, timesteps: int) -> dict[str, Tensor]:
    """Currents of the neurons by name, in the order of the pass, and under ``""`` the logits; (T or 1, B, N) each."""
    found: dict[str, Tensor] = {}
    names = {neuron: name for name, neuron in snn.neurons()}

    def note(neuron: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        steps = 1 if neuron.repeated else timesteps
        if inputs[0].numel() % (steps * len(x)) == 0:
            found.setdefault(names[neuron], inputs[0].reshape(steps, len(x), -1))

    with with_timesteps(snn, timesteps), hooked(list(names), pre=note):
        logits = snn(x, per_step=True)
    return {**found, "": logits}


def _agrees(whole: Tensor, part: Tensor | None, steps: slice, images: slice) -> bool:
    expected = whole[steps, images]
    return part is not None and expected.shape == part.shape and torch.allclose(expected, part, rtol=1e-6, atol=1e-9)
