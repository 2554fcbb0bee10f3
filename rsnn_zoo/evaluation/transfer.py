"""Transfer: adversarial images made on one model, judged on another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from torch import Tensor, nn

from rsnn_zoo.attacks.base import Attack, Batch, State, Victim
from rsnn_zoo.attacks.victim import ModelVictim, default_chunk
from rsnn_zoo.hub.registry import create_model
from rsnn_zoo.hub.resolve import is_packaged, published_names
from rsnn_zoo.models import Network
from rsnn_zoo.neurons.modes import BackwardMode
from rsnn_zoo.report.evidence import EvidenceError
from rsnn_zoo.spec.names import ModelName, UnknownNameError

__all__ = ["Transfer", "packaged_only", "published", "unconverted"]

_PACKAGED_ONLY: ContextVar[bool] = ContextVar("packaged_only", default=False)


@contextmanager
def packaged_only(only: bool = True) -> Iterator[None]:
    """Load no source of transfer inside, but what came with the package.

    Args:
        only: Whether to, or leave things as they are.

    Raises:
        EvidenceError: Inside, where another is asked for.
    """
    before = _PACKAGED_ONLY.set(only or _PACKAGED_ONLY.get())
    try:
        yield
    finally:
        _PACKAGED_ONLY.reset(before)


def _source(name: str) -> Network:
    if _PACKAGED_ONLY.get() and not is_packaged(name, weights=True):
        raise EvidenceError(
            f"the attack would load {name[:100]!r}, which you have not named: allow it by allow_fetch (--allow-fetch)"
        )
    return create_model(name, pretrained=True)


@dataclass(frozen=True)
class _Proxy:
    """A victim whose gradients and logits are the source's, and whose verdicts are the target's."""

    source: Victim
    target: Victim

    @property
    def mode(self) -> BackwardMode | None:
        return self.source.mode

    @property
    def module(self) -> nn.Module:
        return self.source.module

    @property
    def faithful(self) -> bool:
        return False

    def under(self, mode: BackwardMode | None) -> _Proxy:
        return replace(self, source=self.source.under(mode))

    def gradient(
        self, x: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor], aim: Tensor, memory: State
    ) -> tuple[Tensor, Tensor, Tensor]:
        direction, logits, _ = self.source.gradient(x, labels, loss, aim, memory)
        return direction, logits, self.fallen(x, labels)

    def logits(self, x: Tensor) -> Tensor:
        return self.source.logits(x)

    def fallen(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.target.fallen(x, labels)

    def answers(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits(x), self.fallen(x, labels)


@dataclass(frozen=True)
class Transfer:
    """Runs an attack on a source model; every iterate counts that the victim misclassifies.

    A sample leaves when the victim falls, not when the source does. The source is differentiated under the victim's
    backward mode.

    Attributes:
        source: Any module from images in [0, 1] to logits over the victim's classes; copied, never touched.
        attack: What to run on it.
        label: What reports call the source.

    Example:
        >>> ann = rsnn_zoo.create_model("resnet20_digits_trades_ann", pretrained=True)  # doctest: +SKIP
        >>> fell, adversarial = Transfer(ann, pgd(20), "ann")(victim, batch)  # doctest: +SKIP
    """

    source: nn.Module
    attack: Attack
    label: str

    @property
    def name(self) -> str:
        """The attack's name as reports give it."""
        return f"transfer-{self.label}-{self.attack.name}"

    @property
    def least_classes(self) -> int:
        """The least number of classes that the attack on the source needs."""
        return getattr(self.attack, "least_classes", 2)

    def __call__(self, victim: Victim, batch: Batch) -> tuple[Tensor, Tensor]:
        """Which samples fell, (B,) bool, and their adversarial images (B, C, H, W)."""
        source = ModelVictim(copy.deepcopy(self.source).to(batch.images.device), default_chunk(batch.images))
        return self.attack(_Proxy(source.under(victim.mode), victim), batch)


def published(name: str, victim: nn.Module) -> nn.Module:
    """A model with weights, as a source of transfer.

    Args:
        name: As of :func:`rsnn_zoo.create_model`: a published name, ``"hf-hub:org/name"`` or ``"local-dir:path"``.
        victim: What it is to fool.

    Raises:
        LookupError: If nobody published that name.
        OSError: If its weights cannot be had.
        ValueError: If it is of other classes or channels than the victim.

    Example:
        >>> source = published("resnet20_digits_natural_ann", victim)  # doctest: +SKIP
    """
    source = _source(name)
    for what in ("num_classes", "in_chans"):
        mine, wanted = getattr(source, what, None), getattr(victim, what, None)
        if None not in (mine, wanted) and mine != wanted:
            raise ValueError(f"{name} has {what} {mine}, the model under attack {wanted}: transfer from another")
    return source


def unconverted(model: nn.Module) -> nn.Module | None:
    """The published network that an SNN was converted from; None where there is none.

    It goes by what the record of the SNN's training says of the ANN, its name and the checksum of its weights; where
    that says nothing, by the SNN's own name.

    Raises:
        HubError: If it is published and its weights cannot be had.

    Example:
        >>> unconverted(create_model("resnet20_digits_trades_t4", pretrained=True)).pretrained_name  # doctest: +SKIP
        'resnet20_digits_trades_ann'
    """
    record = getattr(model, "training_record", {})
    sha256, names = record.get("ann_sha256"), [record["ann"]] if "ann" in record else []
    if sha256 or not names:  # may be called otherwise there
        names.append(_ann_of(getattr(model, "pretrained_name", None) or ""))
    for name in names:
        if name in published_names():
            source = _source(name)
            if sha256 in (None, source.weights_sha256):
                return source
    return None


def _ann_of(name: str) -> str | None:
    """The ANN that an SNN of this name is converted from."""
    try:
        parsed = ModelName.parse(name)
    except UnknownNameError:  # a model from elsewhere
        return None
    return str(replace(parsed, timesteps=None)) if parsed.timesteps else None
