"""The gradient of a loss with respect to the images: what every gradient attack spends its time on.

Batch norms are folded into the convolutions before them, what stands before the first neuron is computed once, weights
get no gradient, residual networks run fused, on a CPU 3x3 convolutions are our own, the batch is cut into chunks whose
T steps stay in the cache, and convolutions may run in bfloat16.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rsnn_zoo._utils.renamed import renamed
from rsnn_zoo.attacks.foreign_spikes import adopt_surrogates
from rsnn_zoo.attacks.losses import LOSSES, Loss
from rsnn_zoo.models._base import Network
from rsnn_zoo.models.fold import fold
from rsnn_zoo.models.frozen import freeze
from rsnn_zoo.models.fused import chunks_together, fuse
from rsnn_zoo.models.native import go_native
from rsnn_zoo.neurons.attack_state import Memory, remembering
from rsnn_zoo.neurons.kernels import wide
from rsnn_zoo.neurons.modes import BackwardMode, backward_mode

__all__ = ["COMPUTE_DTYPES", "InputGradient", "PassGradient", "checked_logits", "fold", "input_gradient"]

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Precisions of convolutions and linear layers by name."""


def checked_logits(output: Tensor, images: Tensor) -> Tensor:
    """What a model gave for images (B, C, H, W), if these are logits (B, K); those of an integer type as float32.

    Raises:
        ValueError: If they are not.

    Example:
        >>> checked_logits(torch.eye(3, dtype=torch.long), torch.rand(3, 1, 8, 8)).dtype
        torch.float32
    """
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(images) or output.is_complex():
        is_tensor = isinstance(output, Tensor)
        given = f"{tuple(output.shape)} of {output.dtype}" if is_tensor else f"a {type(output).__name__}"
        raise ValueError(
            f"the model must give logits (B, K), one row an image; for {len(images)} images it gave {given}. "
            "Wrap it in a module that returns the logits alone, averaged over time steps where it gives some for each"
        )
    output = output.as_subclass(Tensor)  # of which verdicts know what it does
    return output if output.is_floating_point() else output.float()


def input_gradient(
    model: Callable[[Tensor], Tensor], images: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradient of a loss with respect to the images, and the logits, of any model as it stands.

    Args:
        model: Images (B, C, H, W) to logits (B, K); nothing of it is touched.
        images: (B, C, H, W).
        loss: Logits to the losses, summed here, so that samples do not weigh on each other.

    Returns:
        The gradient, shaped as the images, and the logits, both detached. The gradient is zero where no path leads from
        the logits back to the images: the model ignores them, rounds them or runs without gradients.

    Raises:
        ValueError: If the model gives no logits (B, K).
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = checked_logits(model(images.clone()), images)  # which may be changed in place
        total = loss(logits).sum()
        gradient = torch.autograd.grad(total, images, allow_unused=True)[0] if total.requires_grad else None
    return torch.zeros_like(images) if gradient is None else gradient, logits.detach()


class InputGradient:
    """The input gradient of one model under one backward mode, as fast as this machine gives it.

    Args:
        model: A network of this zoo, or any module from images in [0, 1] to logits. It is copied, not touched.
        mode: How to differentiate the spike; None for each neuron's own surrogate.
        precision: ``"float32"``, or ``"bfloat16"`` for the convolutions and linear layers; membranes stay in float32.
        chunk: Images that go through the network at once; on a CPU a multiple of it where the network is fused.
        folded: Work on the :func:`fold`-ed network. Without it (and in float32) the logits are those of the model,
            to the bit; of a network of this zoo, those of the model in ``channels_last``.
        pad: Fill the last chunk up with black images, so that each image meets the same algorithms: to the whole
            chunk, or of a folded network of this zoo, on a CPU, to a part of it at which the numbers are the same to
            the bit.
        draws: Forward and backward passes to average over, for a model that draws at random as it runs (expectation
            over randomness: Athalye et al., ICML 2018).

    Raises:
        ValueError: For an unknown precision, or a chunk or draws below 1.

    Example:
        >>> gradient, logits = InputGradient(model, Rate())(images, labels)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        mode: BackwardMode | None = None,
        precision: str = "float32",
        chunk: int = 32,
        folded: bool = True,
        pad: bool = False,
        draws: int = 1,
    ):
        if precision not in COMPUTE_DTYPES:
            raise ValueError(f"precision must be one of {', '.join(COMPUTE_DTYPES)}, got {precision!r}")
        for name, value in (("chunk", chunk), ("draws", draws)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.mode = mode
        self.chunk = chunk
        self.pad = pad
        self.draws = draws
        self.model = freeze(fold(model) if folded else copy.deepcopy(model).eval())
        self._parts: dict[Any, tuple[int, ...]] = {}
        self._tries_parts = folded and pad and precision == "float32" and isinstance(model, Network)
        self.adopted = adopt_surrogates(self.model)
        # oneDNN reorders every operand of another layout, there and back; but not every network bears it
        last = getattr(model, "channels_last", False)
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.model.to(memory_format=self.layout)
        if precision != "float32":
            _lower_precision(self.model, COMPUTE_DTYPES[precision])
        elif folded:
            fuse(go_native(self.model))

    def under(self, mode: BackwardMode | None) -> InputGradient:
        """The same under another mode, sharing the network."""
        other = copy.copy(self)
        other.mode = mode
        return other

    def __call__(
        self, images: Tensor, labels: Tensor, loss: str | Loss = "ce", memory: Memory | None = None
    ) -> tuple[Tensor, Tensor]:
        """Gradients (B, C, H, W) and logits (B, K), in float32, or in float64 for a float64 model.

        Args:
            images: (B, C, H, W) in [0, 1].
            labels: (B,), integers of any kind, or what else the loss takes, one row a sample.
            loss: A name of ``rsnn_zoo.attacks.losses.LOSSES``, or a function of logits (B, K) and labels (B,) to
                values (B,).
            memory: What the mode remembers of these samples between calls, updated in place: an empty dictionary at
                first. None to remember nothing.

        Raises:
            ValueError: For a memory of another number of samples, or a model that gives no logits (B, K).
        """
        function = LOSSES[loss] if isinstance(loss, str) else loss
        labels = labels if labels.is_floating_point() else labels.long()
        memory = {} if memory is None else memory
        if any(len(rows) != len(images) for rows in memory.values()):
            raise ValueError(f"the memory is not of {len(images)} samples: hand an empty one to a new batch")
        parts, sizes, first = [], self._sizes(images), 0
        for x, y in zip(self._chunks(images, sizes), self._chunks(labels, sizes), strict=True):
            draws = []
            for draw in range(self.draws):
                lent = remembering(memory, len(images), len(x), first=first, update=draw == 0)
                with backward_mode(self.mode), lent:
                    draws.append(input_gradient(self.model, x, lambda z, y=y: function(_widened(z), y)))
            parts.append([torch.stack(each).mean(0) for each in zip(*draws, strict=True)])
            first += len(x)
        gradients, logits = zip(*parts, strict=True)
        return torch.cat(gradients)[: len(images)], _widened(torch.cat(logits)[: len(images)])

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W), in float32, or in float64 for a float64 model.

        Raises:
            ValueError: If the model gives something else.
        """
        with backward_mode(self.mode):
            logits = [checked_logits(self.model(x.clone()), x) for x in self._chunks(images, self._sizes(images))]
        return _widened(torch.cat(logits)[: len(images)])

    def at_once(self, images: Tensor) -> int:
        """How many of images (B, C, H, W) go through the network as one: ``chunk``, or some of a fused network's."""
        return self.chunk * chunks_together(self.model, self.chunk, images)

    def unpadded(self) -> InputGradient:
        """The same without padding, sharing the network: the numbers may be rounded otherwise."""
        other = copy.copy(self)
        other.pad = False
        return other

    def _sizes(self, images: Tensor) -> list[int]:
        """How many images go through the network at a time, those of padding included."""
        at_once, rest = self.at_once(images), len(images) % self.chunk
        whole = len(images) - rest
        sizes = [min(at_once, whole - first) for first in range(0, whole, at_once)]
        if rest:
            sizes.append(next(size for size in self._part_sizes(images) if size >= rest) if self.pad else rest)
        return sizes or [0]

    def _part_sizes(self, images: Tensor) -> tuple[int, ...]:
        """Sizes of a last chunk, rising, at which an image's numbers are to the bit those of a full one: tried out."""
        if not self._tries_parts or images.device.type != "cpu":
            return (self.chunk,)
        key = self.mode, images.shape[1:], images.dtype
        if key not in self._parts:
            x = torch.rand(self.chunk, *images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images.dtype)
            bare, labels = self.unpadded(), torch.zeros(self.chunk, dtype=torch.long)

            def numbers(count: int) -> tuple[Tensor, ...]:
                return *bare(x[:count], labels[:count]), bare.logits(x[:count])

            full, parts = numbers(self.chunk), (self.chunk // part for part in (8, 4, 2) if self.chunk % part == 0)
            same = (
                part
                for part in parts
                if all(torch.equal(mine, its[:part]) for mine, its in zip(numbers(part), full, strict=True))
            )
            self._parts[key] = *same, self.chunk
        return self._parts[key]

    def _chunks(self, x: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        if short := sum(sizes) - len(x):
            x = torch.cat([x, x.new_zeros(short, *x.shape[1:])])
        return tuple(c.contiguous(memory_format=self.layout) if c.dim() == 4 else c for c in x.split(sizes))


class PassGradient:
    """The input gradient of a forward pass as it stands, the whole batch at once.

    Args:
        forward: Images (B, C, H, W) to logits (B, K).
        mode: How to differentiate the spike; None for each neuron's own surrogate.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], mode: BackwardMode | None = None):
        self.forward, self.mode = forward, mode

    def __call__(self, images: Tensor, labels: Tensor, loss: Loss, memory: Memory) -> tuple[Tensor, Tensor]:
        """Gradients (B, C, H, W) and logits (B, K): see :class:`InputGradient`."""
        with backward_mode(self.mode), remembering(memory, len(images), len(images)):
            return input_gradient(self.forward, images, lambda logits: loss(logits, labels))

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        with backward_mode(self.mode):
            return checked_logits(self.forward(images), images)


def _widened(x: Tensor) -> Tensor:
    return x.to(wide(x.dtype))


def _lower_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Convolutions and linear layers to 16 bits, in place; what is left (norms, thresholds) takes 16-bit inputs."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))


__getattr__ = renamed(__name__, PRECISIONS="COMPUTE_DTYPES")
