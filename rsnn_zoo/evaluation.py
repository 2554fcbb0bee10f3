"""Robust accuracy by the worst case over an ensemble of attacks, sample by sample.

A sample is robust only if it stands under every member. *Fallen* means misclassified, at any iterate, by the exact
float32 network: spikes are thresholds, so a pass that differs by a rounding is a suspicion and not a verdict. What is
random about a sample is seeded by its index in the data set, and passes run in padded chunks of one fixed size, so the
verdicts do not depend on batch size, order, or on when an evaluation was killed and resumed.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from rsnn_zoo.attacks.base import Batch, State, check_eps
from rsnn_zoo.attacks.gradients import InputGradient
from rsnn_zoo.attacks.protocols import Member, protocol
from rsnn_zoo.data import ImageData, check_images, check_labels
from rsnn_zoo.files import load_json, replacing, to_json
from rsnn_zoo.neurons import BackwardMode, Relu, model_under
from rsnn_zoo.provenance import environment
from rsnn_zoo.weights import WeightsError, serialize

__all__ = ["EPSILONS", "Report", "Run", "evaluate", "wilson"]

_log = logging.getLogger(__name__)

EPSILONS = tuple(k / 255 for k in (2, 4, 8, 16, 32))
"""The radii of a published curve of robust accuracy."""

STANDS, MISCLASSIFIED = -1, -2
"""Verdicts beside the number of the member that felled the sample: robust; wrong without any attack."""


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


@dataclass(frozen=True)
class Run:
    """One protocol at one radius.

    Attributes:
        protocol: Name of the protocol.
        eps: Radius, in units of pixels in [0, 1].
        members: (attack, mode) of each member, in the order in which they ran.
        verdicts: For each sample the number of the member that felled it, -1 if it stands, -2 if it is misclassified
            without any attack.
        seconds: Wall time.
    """

    protocol: str
    eps: float
    members: tuple[tuple[str, str], ...]
    verdicts: tuple[int, ...]
    seconds: float

    @property
    def robust_accuracy(self) -> float:
        """Share of all samples that stand, in [0, 1]."""
        return self.verdicts.count(STANDS) / len(self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """The run as JSON, with what follows from the verdicts written out."""
        standing = len(self.verdicts) - self.verdicts.count(MISCLASSIFIED)
        attacks = []
        for number, (attack, mode) in enumerate(self.members):
            felled = self.verdicts.count(number)
            standing -= felled
            attacks.append({"attack": attack, "mode": mode, "felled": felled, "standing": standing})
        return {
            "protocol": self.protocol,
            "eps": self.eps,
            "robust_accuracy": self.robust_accuracy,
            "ci95": wilson(self.verdicts.count(STANDS), len(self.verdicts)),
            "attacks": attacks,
            "verdicts": " ".join(map(str, self.verdicts)),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Report:
    """What an evaluation found, and everything it takes to repeat it.

    Attributes:
        model: Name of the model.
        weights_sha256: Of the weights file that ``save_pretrained`` makes of the model; None where it cannot.
        dataset: Name of the data set.
        split: Name of the split.
        index: Index in the data set of each sample.
        correct: Whether each sample is classified correctly without any attack.
        runs: One for each radius.
        settings: Seed, precision of the gradients, chunk, batch size.
        environment: Versions and hardware.
        created: ISO 8601.
    """

    model: str
    weights_sha256: str | None
    dataset: str
    split: str
    index: tuple[int, ...]
    correct: tuple[bool, ...]
    runs: tuple[Run, ...]
    settings: dict[str, Any]
    environment: dict[str, Any]
    created: str
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def clean_accuracy(self) -> float:
        """Share classified correctly without any attack, in [0, 1]."""
        return sum(self.correct) / len(self.correct)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON: the evidence of a published entry."""
        index = list(self.index)
        return {
            "schema": 1,
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            "dataset": self.dataset,
            "split": self.split,
            "n": len(index),
            "index": "0..n-1" if index == list(range(len(index))) else index,
            "clean": {"accuracy": self.clean_accuracy, "ci95": wilson(sum(self.correct), len(index))},
            "runs": [one.to_json() for one in self.runs],
            "settings": self.settings,
            **self.extra,
            **self.environment,
            "created": self.created,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON under a temporary name and renames it."""
        with replacing(Path(path)) as temporary:
            temporary.write_bytes(to_json(self.to_json()))

    def table(self) -> str:
        """The report as text: accuracy by radius, and what each member felled."""
        n = len(self.index)
        lines = [f"{self.model} on {n} {self.dataset} {self.split} images", ""]
        lines += [f"  {'eps':>6}  {'attack':<20} {'accuracy':>9}   95 % interval"]
        rows = [("0", "none", self.clean_accuracy, wilson(sum(self.correct), n))]
        for one in self.runs:
            interval = wilson(one.verdicts.count(STANDS), n)
            rows.append((f"{255 * one.eps:.3g}/255", one.protocol, one.robust_accuracy, interval))
        for eps, attack, accuracy, (low, high) in rows:
            lines.append(f"  {eps:>6}  {attack:<20} {100 * accuracy:>7.1f} %   {100 * low:.1f} to {100 * high:.1f} %")
        for one in self.runs:
            felled = {f"{a}/{m}": one.verdicts.count(i) for i, (a, m) in enumerate(one.members)}
            top = sorted(((count, member) for member, count in felled.items() if count), reverse=True)
            counts = ", ".join(f"{member} {count}" for count, member in top) or "none"
            lines += ["", f"  felled at eps {255 * one.eps:.3g}/255: {counts}"]
        return "\n".join(lines)


class _Victim:
    """The model under attack, under one backward mode: exact verdicts, and gradients to follow."""

    def __init__(self, model: nn.Module, chunk: int, precision: str):
        self._exact = InputGradient(model, chunk=chunk, folded=False, pad=True)
        exact = precision == "float32"
        self._fast = self._exact if exact else InputGradient(model, precision=precision, chunk=chunk, pad=True)
        self.mode: BackwardMode | None = None

    def under(self, mode: BackwardMode | None) -> _Victim:
        """The same under another mode."""
        other = copy.copy(self)
        other.mode = mode
        return other

    @property
    def module(self) -> nn.Module:
        return self._exact.model if self.mode is None else model_under(self._exact.model, self.mode)

    def logits(self, x: Tensor) -> Tensor:
        return self._exact.logits(x)

    def fallen(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.logits(x).argmax(1) != labels

    def gradient(
        self, x: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor], aim: Tensor, memory: State
    ) -> tuple[Tensor, Tensor, Tensor]:
        direction, logits = self._fast.under(self.mode)(x, aim, loss)
        down = logits.argmax(1) != labels
        # a verdict where this pass is the exact network's own, else a suspicion
        if self._fast is not self._exact or isinstance(self.mode, Relu):
            suspects = down.nonzero().flatten()
            if len(suspects):
                down[suspects] = self.fallen(x[suspects], labels[suspects])
        return direction, logits, down


class _State:
    """Verdicts so far, on disk after every batch where a path is given."""

    def __init__(self, path: str | os.PathLike[str] | None, fingerprint: dict[str, Any]):
        self.path = None if path is None else Path(path)
        self.content: dict[str, Any] = {"fingerprint": fingerprint, "verdicts": {}, "seconds": {}}
        if self.path is None or not self.path.exists():
            return
        found = load_json(self.path) if self.path.stat().st_size <= 2**20 else json.loads(self.path.read_bytes())
        if not isinstance(found, dict) or found.get("fingerprint") != json.loads(json.dumps(fingerprint)):
            raise ValueError(
                f"{self.path} holds the state of another evaluation (model, data, attack, eps or settings differ): "
                "delete it, or name another file"
            )
        self.content = found
        _log.info("resuming from %s", self.path)

    def verdicts(self, eps: float) -> dict[str, int]:
        return self.content["verdicts"].setdefault(repr(eps), {})

    def seconds(self, eps: float) -> float:
        return self.content["seconds"].get(repr(eps), 0.0)

    def add(self, eps: float, verdicts: dict[str, int], seconds: float) -> None:
        self.verdicts(eps).update(verdicts)
        self.content["seconds"][repr(eps)] = self.seconds(eps) + seconds
        if self.path is not None:
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(self.content))


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _weights_sha256(model: nn.Module) -> str | None:
    try:
        return serialize(model, "")[1].sha256
    except (WeightsError, IndexError):  # a module that no entry can hold
        return None


def _default_chunk(images: Tensor) -> int:
    if images.is_cuda:
        return 256
    return min(64, max(16, 16 * 32 * 32 // (images.shape[-1] * images.shape[-2])))


def evaluate(
    model: nn.Module,
    data: ImageData | tuple[Tensor, Tensor],
    attack: str = "ensemble-pgd20",
    eps: float | Sequence[float] = 8 / 255,
    *,
    seed: int = 0,
    batch_size: int = 256,
    chunk: int | None = None,
    precision: str = "float32",
    state: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Report:
    """Robust accuracy under a protocol, by the worst case over its members for each sample.

    Args:
        model: A network of this zoo, or any module from images in [0, 1] to logits (B, K) with its normalisation
            inside. It is copied, never touched; the copy runs in evaluation mode, on the model's device, in float32.
        data: An :class:`ImageData`, or images (N, C, H, W) in [0, 1] and labels (N,).
        attack: A protocol: see :func:`rsnn_zoo.attacks.protocols.protocol`.
        eps: Radius of the L-infinity ball in units of pixels in [0, 1], or several, each run on its own.
        seed: Of the random starts.
        batch_size: Samples between two writes of the state; no influence on the verdicts.
        chunk: Samples that go through the network at once. The verdicts are those of this size, since a library may
            choose another algorithm for another one; the default depends on image size and device.
        precision: Of the gradients that attacks follow, ``"float32"`` or ``"bfloat16"`` (folded batch norms, faster);
            verdicts are always those of the exact float32 network.
        state: File that holds the verdicts so far: killed and called again, an evaluation resumes from it.
        progress: Show a progress bar with the robust accuracy so far.

    Returns:
        The report.

    Raises:
        ValueError: For bad images or labels, an unknown protocol, eps outside [0, 1], or a state of another evaluation.

    Example:
        >>> report = evaluate(model, load_dataset("digits"), "ensemble-pgd20", 8 / 255)  # doctest: +SKIP
        >>> report.runs[0].robust_accuracy  # doctest: +SKIP

    Source:
        Özdenizci & Legenstein, TMLR 2024, section 4.2, with any iterate counting.
    """
    epsilons = [check_eps(e) for e in (eps if isinstance(eps, Sequence) else [eps])]
    members = protocol(attack, model)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    parameter = next(model.parameters(), torch.zeros(()))
    if parameter.dtype != torch.float32:
        raise ValueError(f"verdicts are those of a float32 network, and this is {parameter.dtype}: use model.float()")
    if isinstance(data, ImageData):
        images, labels, index = data.pixels(), data.labels, data.index.tolist()
        dataset, split, data_sha256 = data.info.name, data.split, data.sha256
    else:
        images, labels = data
        index, dataset, split = list(range(len(labels))), "tensors", ""
        data_sha256 = hashlib.sha256(images.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
    check_images(images, getattr(model, "in_chans", None), getattr(model, "img_size", None))
    if len(labels) != len(images):
        raise ValueError(f"{len(images)} images come with {len(labels)} labels")
    images, labels = images.detach().to(parameter.device), labels.to(parameter.device)
    chunk = chunk or _default_chunk(images)
    victim = _Victim(model, chunk, precision)
    logits = victim.logits(images)
    check_labels(labels, logits.shape[1])
    correct = logits.argmax(1) == labels

    settings = {"seed": seed, "precision": precision, "chunk": chunk}
    fingerprint = {"model": _digest(model), "data": data_sha256, "index": index, "attack": attack, **settings}
    progress_state = _State(state, fingerprint)
    batches = range(0, len(images), batch_size)
    runs = []
    with tqdm(total=len(epsilons) * len(batches) * len(members), disable=not progress, unit="attack") as bar:
        for radius in epsilons:
            known = progress_state.verdicts(radius)
            for begin in batches:
                part = slice(begin, begin + batch_size)
                if all(str(i) in known for i in index[part]):
                    bar.update(len(members))
                    continue
                started = time.perf_counter()
                verdicts = _attack_batch(
                    victim, members, images[part], labels[part], index[part], correct[part], radius, seed, bar
                )
                found = dict(zip(map(str, index[part]), verdicts.tolist(), strict=True))
                progress_state.add(radius, found, time.perf_counter() - started)
                standing = sum(v == STANDS for v in known.values()) / len(known)
                bar.set_postfix_str(f"eps {255 * radius:.3g}/255: robust {100 * standing:.1f} % of {len(known)}")
            runs.append(
                Run(
                    attack,
                    radius,
                    tuple((member.attack.name, member.mode_name) for member in members),
                    tuple(known[str(i)] for i in index),
                    progress_state.seconds(radius),
                )
            )
    return Report(
        model=getattr(model, "pretrained_name", None) or getattr(model, "architecture", type(model).__name__),
        weights_sha256=_weights_sha256(model),
        dataset=dataset,
        split=split,
        index=tuple(index),
        correct=tuple(correct.tolist()),
        runs=tuple(runs),
        settings=settings,
        environment=environment(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


def _attack_batch(
    victim: _Victim,
    members: tuple[Member, ...],
    images: Tensor,
    labels: Tensor,
    index: list[int],
    correct: Tensor,
    eps: float,
    seed: int,
    bar: Any,
) -> Tensor:
    """The verdict of each sample; one that has fallen is not attacked again."""
    verdicts = torch.where(correct, STANDS, MISCLASSIFIED)
    for number, member in enumerate(members):
        left = (verdicts == STANDS).nonzero().flatten()
        if len(left):
            rows = tuple(index[i] for i in left.tolist())
            batch = Batch(images[left], labels[left], eps, rows, seed, str(member))
            fell, _ = member.attack(victim.under(member.mode), batch)
            verdicts[left[fell]] = number
        bar.update()
    return verdicts
