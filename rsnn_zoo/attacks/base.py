"""What an attack is: handed a victim and a batch of samples, it says which of them fell, and shows the images.

Every attack works on each sample by itself: what is random about a sample is drawn from a generator of its own, and all
that an attack remembers has one row a sample. So a sample meets the same fate in any batch, in any order.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rsnn_zoo.attacks.losses import LOSSES, Loss
from rsnn_zoo.data.images import check_images, check_labels
from rsnn_zoo.neurons.integrate_fire import BackwardMode

__all__ = ["Attack", "Batch", "GradientAttack", "State", "Victim", "check_eps", "kept", "per_image", "project"]

State = dict[str, Tensor]
"""What an attack remembers between its steps, by name; each tensor has one row a sample. ``"x"``: the iterates."""


def kept(state: State, keep: Tensor) -> State:
    """The state of the samples that are kept, (B,) bool."""
    return {key: rows[keep] for key, rows in state.items()}


def check_eps(eps: float) -> float:
    """Returns eps as a float if it is a number (a tensor or array of no dimensions counts as one) in [0, 1].

    Raises:
        TypeError: If it is no number, such as ``"8/255"``.
        ValueError: If it lies outside: pixels lie in [0, 1], so the usual eps is 8 / 255.

    Example:
        >>> check_eps(torch.tensor(0.5))
        0.5
    """
    if isinstance(eps, Tensor | np.ndarray) and not eps.ndim:
        eps = eps.item()
    if isinstance(eps, bool) or not isinstance(eps, Real):
        raise TypeError(
            "eps must be one number, in units of pixels in [0, 1] (e.g. 8 / 255), got the "
            f"{type(eps).__name__} {eps!r:.60}"
        )
    if not 0 <= eps <= 1:
        raise ValueError(f"eps must lie in [0, 1], in units of pixels in [0, 1] (e.g. 8 / 255), got {eps}")
    return float(eps)


def project(x: Tensor, images: Tensor, eps: float) -> Tensor:
    """The nearest point of the L-infinity ball around ``images`` and of [0, 1]; all (B, C, H, W)."""
    return torch.clamp(torch.min(torch.max(x, images - eps), images + eps), 0.0, 1.0)


def per_image(values: Tensor) -> Tensor:
    """Values (B,), one a sample, in the form (B, 1, 1, 1) that goes with images."""
    return values[:, None, None, None]


@dataclass(frozen=True)
class Batch:
    """Samples to attack.

    Attributes:
        images: (B, C, H, W) in [0, 1].
        labels: (B,), integers of any kind; kept as int64.
        eps: Radius of the L-infinity ball, in units of pixels in [0, 1].
        index: Of each sample in its data set.
        seed: Of all that is drawn.
        stream: What else tells draws apart: the member of the ensemble.

    Raises:
        TypeError: For images or labels that are no tensors of the right kind.
        ValueError: For images that are not (B, C, H, W) in [0, 1], labels or an index of another number, or an eps
            outside [0, 1].
    """

    images: Tensor
    labels: Tensor
    eps: float
    index: tuple[int, ...]
    seed: int = 0
    stream: str = ""

    def __post_init__(self) -> None:
        """Refuses what no attack can work on, before any work."""
        if len(self.images):
            check_images(self.images)
        check_labels(self.labels)
        object.__setattr__(self, "labels", self.labels.long())
        object.__setattr__(self, "eps", check_eps(self.eps))
        if not len(self.images) == len(self.labels) == len(self.index):
            raise ValueError(
                f"{len(self.images)} images, {len(self.labels)} labels and {len(self.index)} indices: must be one each"
            )

    def generators(self) -> list[torch.Generator]:
        """One for each sample, seeded by seed, index and stream alone; on the CPU, so alike on any device."""
        return [_generator(f"{self.seed}/{index}/{self.stream}") for index in self.index]

    def noise(self) -> Tensor:
        """(B, C, H, W), uniform in [-1, 1); the same at every call."""
        shape = self.images.shape[1:]
        draws = [2 * torch.rand(*shape, generator=generator) - 1 for generator in self.generators()]
        return torch.stack(draws).to(self.images)

    def rows(self, at: Tensor) -> Batch:
        """The samples at these places, (n,)."""
        index = tuple(self.index[i] for i in at.tolist())
        return replace(self, images=self.images[at], labels=self.labels[at], index=index)

    def __len__(self) -> int:
        return len(self.labels)


def _generator(key: str) -> torch.Generator:
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Victim(Protocol):
    """The model under attack, under one backward mode.

    Attributes:
        mode: The backward mode; None for each neuron's own surrogate.
    """

    mode: BackwardMode | None

    @property
    def module(self) -> nn.Module:
        """The exact float32 network as an ``nn.Module`` under the mode, in evaluation mode, for attack libraries."""

    @property
    def faithful(self) -> bool:
        """Whether the logits of ``module`` are those that verdicts go by."""

    def under(self, mode: BackwardMode | None) -> Victim:
        """The same under another mode; None for each neuron's own surrogate."""

    def gradient(
        self, x: Tensor, labels: Tensor, loss: Loss, aim: Tensor, memory: State
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One gradient pass.

        Args:
            x: Iterates (B, C, H, W).
            labels: (B,).
            loss: Logits (B, K) and ``aim`` to what the attack raises, (B,).
            aim: What the loss needs besides the logits, one row a sample; often the labels.
            memory: What the backward mode remembers of each sample between passes; empty at first, updated in place.

        Returns:
            The gradient (B, C, H, W), the logits (B, K), and which iterates have fallen by the exact network (B,). The
            logits are the exact network's but for rounding, and of another network under a mode that differentiates
            another.
        """

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, K) of the exact network."""

    def fallen(self, x: Tensor, labels: Tensor) -> Tensor:
        """Which images the exact network misclassifies, (B,) bool."""

    def answers(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What a search without gradients asks: logits and verdicts.

        Args:
            x: Images (B, C, H, W).
            labels: (B,).

        Returns:
            The logits (B, K), the exact network's but for rounding, and which images have fallen by the exact one (B,).
        """


class Attack(Protocol):
    """Searches the ball around each image for one that the victim misclassifies."""

    @property
    def name(self) -> str:
        """The attack's name as reports give it."""

    def __call__(self, victim: Victim, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which samples fell, (B,) bool, and their adversarial images (B, C, H, W) (for others the last tried)."""


@dataclass(frozen=True)
class GradientAttack(ABC):
    """An attack that follows gradients: subclasses say where it starts and how it steps.

    Every iterate counts, and a sample that falls leaves the batch at once.

    Attributes:
        name: As reports have it.
        steps: Gradient passes, at least 1.
    """

    name: str
    steps: int

    def __post_init__(self) -> None:
        """Refuses an attack without steps."""
        if self.steps < 1:
            raise ValueError(f"{type(self).__name__} needs at least 1 step, got {self.steps}")

    @abstractmethod
    def first(self, victim: Victim, batch: Batch) -> State:
        """The iterates to begin with, under ``"x"``, and what else is to be remembered of each sample."""

    @abstractmethod
    def step(self, k: int, state: State, gradient: Tensor, logits: Tensor, images: Tensor, eps: float) -> State:
        """The state after step k (from 0), given the gradient and the logits at its ``"x"``."""

    def loss(self, logits: Tensor, aim: Tensor) -> Tensor:
        """What it raises, (B,): of logits (B, K) and ``state["aim"]``, or the labels where there is none."""
        return LOSSES["ce"](logits, aim)

    def gradient(self, victim: Victim, state: State, labels: Tensor, memory: State) -> tuple[Tensor, Tensor, Tensor]:
        """One gradient pass at ``state["x"]``: see :meth:`Victim.gradient`."""
        return victim.gradient(state["x"], labels, self.loss, state.get("aim", labels), memory)

    def __call__(self, victim: Victim, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which samples fell, (B,) bool, and their adversarial images (B, C, H, W) (for others the last iterate)."""
        fell, adversarial, _ = self.search(victim, batch)
        return fell, adversarial

    def search(self, victim: Victim, batch: Batch) -> tuple[Tensor, Tensor, State]:
        """What a call returns, and the last state of the samples that stand."""
        state = self.first(victim, batch)
        adversarial = state["x"].clone()
        fell = torch.zeros(len(batch), dtype=torch.bool, device=adversarial.device)
        left, clean, labels, memory = torch.arange(len(batch), device=fell.device), batch.images, batch.labels, State()
        for k in range(self.steps):
            gradient, logits, down = self.gradient(victim, state, labels, memory)
            if down.any():
                fell[left[down]], adversarial[left[down]] = True, state["x"][down]
                left, clean, labels, gradient, logits = _rows((left, clean, labels, gradient, logits), ~down)
                state, memory = kept(state, ~down), kept(memory, ~down)
            if not len(left):
                return fell, adversarial, state
            state = self.step(k, state, gradient, logits, clean, batch.eps)
        down = victim.fallen(state["x"], labels)
        adversarial[left], fell[left] = state["x"], down
        return fell, adversarial, kept(state, ~down)


def _rows(tensors: Sequence[Tensor], keep: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor[keep] for tensor in tensors)
