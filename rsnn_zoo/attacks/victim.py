"""The model under attack: exact verdicts, and gradients to follow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rsnn_zoo._utils.defaults import no_autocast, plain_defaults
from rsnn_zoo.attacks.base import State
from rsnn_zoo.attacks.gradients import InputGradient
from rsnn_zoo.attacks.heard import Heard
from rsnn_zoo.attacks.losses import Loss
from rsnn_zoo.models._base import Network
from rsnn_zoo.neurons.integrate_fire import BackwardMode, Relu, model_under

__all__ = ["FOLDED", "Agreement", "ModelVictim", "default_chunk", "exact_arithmetic", "passes_of"]

VERDICT = 8
"""How many times as many passes as a gradient a verdict about a random model takes. An attack of a hundred iterates has
a hundred chances that the mean of a few passes is wrong by luck; that of eight times as many strays a third as far."""


FOLDED = "folded"
"""Precision of gradients: float32 on the folded network, whose word that an iterate stands is mostly taken."""

AUDITED_ONE_IN = 16
"""One iterate in so many that stand by the folded network is shown to the exact one all the same."""

CLOSE = 0.02
"""Where the folded network's margin is below this part of the spread of its logits, the exact one is asked."""


@dataclass
class Agreement:
    """How often the exact network contradicts the folded one about iterates that stand by the latter.

    Attributes:
        sampled: Iterates that were drawn and shown to the exact network.
        fell: Those of them that have fallen by it.
    """

    sampled: int = 0
    fell: int = 0


def passes_of(draws: int) -> int:
    """Passes that a verdict takes where gradients are averaged over ``draws``."""
    return draws * VERDICT if draws > 1 else 1


def default_chunk(images: Tensor) -> int:
    """How many of images (B, C, H, W) to send through a network at once: what stays in the caches of a CPU."""
    if images.is_cuda:
        return 256
    return min(64, max(16, 16 * 32 * 32 // (images.shape[-1] * images.shape[-2])))


def _exact_settings() -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any], Any]]:
    """How to read each setting of torch that bears on the exactness of float32, how to write it, and what is exact."""
    backends = torch.backends

    def attribute(owner: Any, name: str, exact: Any) -> tuple[Callable[[], Any], Callable[[Any], Any], Any]:
        return partial(getattr, owner, name), partial(setattr, owner, name), exact

    for name, exact in {"enabled": True, "benchmark": False, "deterministic": True, "allow_tf32": False}.items():
        yield attribute(backends.cudnn, name, exact)
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
    if hasattr(backends, "fp32_precision"):  # since torch 2.9 there are these too; the older two overwrite them
        for owner in (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul):
            yield attribute(owner, "fp32_precision", "ieee")


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Convolutions and products in full float32, by deterministic algorithms, and tensors that may have gradients.

    CUDA's convolutions by themselves round to 10 bits, as it comes; products too, also on a CPU, where the caller has
    allowed it. The caller may have an autocast, the inference mode, or another default dtype or device in force
    besides. Afterwards all is as before.
    """
    found = []
    for read, write, exact in _exact_settings():
        with suppress(RuntimeError):  # torch refuses to tell the older ones where newer ones differ; these then reign
            found.append((write, exact, read()))
    try:
        for write, exact, _ in found:
            write(exact)
        with ExitStack() as shut_out:
            shut_out.enter_context(plain_defaults())
            shut_out.enter_context(no_autocast())
            if torch.is_inference_mode_enabled():
                shut_out.enter_context(torch.inference_mode(False))
            yield
    finally:
        for write, _, before in found:
            write(before)


class ModelVictim:
    """A model as a :class:`rsnn_zoo.attacks.base.Victim`: under its own surrogates until :meth:`under` says another.

    Args:
        model: A network of this zoo, or any module from images in [0, 1] to logits. It is copied, not touched.
        chunk: Images that go through the network at once; the last chunk is padded, so each meets the same algorithms.
        precision: Of the gradients, ``"float32"``, ``"folded"`` (of ``answers`` too) or ``"bfloat16"``; verdicts are
            the exact float32 network's. ``"folded"`` asks it about iterates that the folded network misclassifies or
            nearly so, and about one in ``AUDITED_ONE_IN`` of the others, drawn by their pixels; what it then finds is
            counted in ``agreement``. Models that are random keep to the exact network.
        draws: Passes over which logits and gradients are averaged, for a random model. What these misclassify is
            a suspect: verdicts are those of new passes, ``VERDICT`` times as many.

    Example:
        >>> fell, adversarial = pgd(20)(ModelVictim(model, 64), batch)  # doctest: +SKIP
    """

    def __init__(self, model: nn.Module, chunk: int, precision: str = "float32", draws: int = 1):
        self._exact = InputGradient(model, chunk=chunk, folded=False, pad=True, draws=draws)
        self._folded = precision == FOLDED and draws == 1
        exact = precision in ("float32", FOLDED) and not self._folded
        precision = "float32" if self._folded else precision
        self._fast = self._exact if exact else InputGradient(model, None, precision, chunk=chunk, pad=True, draws=draws)
        self._own = isinstance(model, Network)  # which takes batches of any size
        self.agreement, self.heard = Agreement(), Heard()
        self.chunk, self.draws = chunk, draws
        self.mode: BackwardMode | None = None

    def under(self, mode: BackwardMode | None) -> ModelVictim:
        """The same under another mode."""
        other = copy.copy(self)
        other.mode = mode
        return other

    @property
    def module(self) -> nn.Module:
        """The exact network under the mode, for attack libraries."""
        module = self._exact.model if self.mode is None else model_under(self._exact.model, self.mode)
        return module if self.draws == 1 else _Averaged(module, self.draws)

    @property
    def faithful(self) -> bool:
        """Whether its logits are those that verdicts go by: the ReLU stand-in's say nothing of the spiking network."""
        return not isinstance(self.mode, Relu)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the exact network."""
        return self._mean(x, self.draws)

    def _mean(self, x: Tensor, passes: int) -> Tensor:
        logits = self._exact.logits(x)
        for _ in range(1, passes):
            logits = logits + self._exact.logits(x)
        logits = logits / passes
        self.heard.note("verdict", x, logits)
        return logits

    def fallen(self, x: Tensor, labels: Tensor) -> Tensor:
        """Which images the exact network misclassifies, (B,) bool; logits that are no numbers are of no class."""
        return _wrong(self._mean(x, passes_of(self.draws)), labels)

    def answers(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and which images have fallen: see :class:`rsnn_zoo.attacks.base.Victim`."""
        if self._folded and self.faithful:
            logits = self._fast.under(self.mode).logits(x)
            return logits, self._confirmed(x, labels, logits)
        logits = self.logits(x)
        down = _wrong(logits, labels) | (not self.faithful)
        if down.any():
            down[down.clone()] = self.fallen(x[down], labels[down])
        return logits, down

    def gradient(
        self, x: Tensor, labels: Tensor, loss: Loss, aim: Tensor, memory: State
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One gradient pass: see :class:`rsnn_zoo.attacks.base.Victim`. What is no number in the gradient is 0."""
        direction, logits = self._fast.under(self.mode)(x, aim, loss, memory)
        direction = direction.nan_to_num(0.0, 0.0, 0.0)
        if not self.faithful:
            return direction, logits, self.fallen(x, labels)
        if self._folded:
            return direction, logits, self._confirmed(x, labels, logits)
        if self._fast is not self._exact:  # those of 16 bits are right at many an iterate that the exact ones miss
            logits = self.logits(x)
        else:
            self.heard.note(f"gradient {self.mode}", x, logits)
        down = _wrong(logits, labels)
        # for gradients, or without its own spikes, a library may have another kernel, which rounds otherwise
        if self._exact.adopted or self.draws > 1:  # a suspicion, no verdict
            suspects = down.nonzero().flatten()
            if len(suspects):
                down[suspects] = self.fallen(x[suspects], labels[suspects])
        return direction, logits, down

    def _confirmed(self, x: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """Which iterates have fallen by the exact network, as far as it is asked: see ``precision``."""
        asked = _wrong(logits, labels) | _close(logits)
        drawn = _is_audited(x) & ~asked
        down = torch.zeros_like(asked)
        at, sampled = asked.nonzero().flatten(), drawn.nonzero().flatten()
        room = -len(at) % self.chunk if self._own else len(sampled)
        if len(sampled) > room:  # in no padded chunk of their own, which would take longer than the gradient
            some = sampled[room:]
            suspects = some[_wrong(self._exact.unpadded().logits(x[some]), labels[some])]
            sampled = torch.cat([sampled[:room], suspects])
        at = torch.cat([at, sampled])
        if len(at):
            down[at] = self.fallen(x[at], labels[at])
        self.agreement.sampled += int(drawn.sum())
        self.agreement.fell += int((drawn & down).sum())
        return down


def _close(logits: Tensor) -> Tensor:
    """Where the two highest logits differ by little, or no comparison can tell."""
    top = logits.topk(min(2, logits.shape[1]), 1).values
    return ~(top[:, 0] - top[:, -1] > CLOSE * (top[:, 0] - logits.amin(1)))


def _is_audited(x: Tensor) -> Tensor:
    """One in ``AUDITED_ONE_IN`` images (B, C, H, W), by their pixels alone: the same in any batch."""
    bits = x.detach().float().contiguous().view(torch.int32).flatten(1).sum(1, dtype=torch.int64)
    return (bits * 2654435761 >> 16) % AUDITED_ONE_IN == 0


class _Averaged(nn.Module):
    """A random module whose logits are means over draws."""

    def __init__(self, module: nn.Module, draws: int):
        super().__init__()
        self.module, self.draws = module, draws
        self.training = module.training

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.module(x) for _ in range(self.draws)]).mean(0)


def _wrong(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(1) != labels.long()) | logits.isnan().any(1)
