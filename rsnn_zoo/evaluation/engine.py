"""The engine of an evaluation: samples, and jobs that judge them, shared among processes and kept in a state."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsnn_zoo.attacks.adaptive import PILOT, Adaptive
from rsnn_zoo.attacks.base import Batch
from rsnn_zoo.attacks.victim import ModelVictim
from rsnn_zoo.data.images import ImageData, check_images, check_labels
from rsnn_zoo.evaluation.examples import Examples
from rsnn_zoo.evaluation.inputs import Data, labelled
from rsnn_zoo.evaluation.ledger import Ledger
from rsnn_zoo.evaluation.protocols import Member
from rsnn_zoo.report.report import MISCLASSIFIED, STANDS, Run, in_255

__all__ = ["FELL", "Engine", "Samples"]

SAVE_WITHIN = 30.0
"""Seconds after which the verdicts of a batch should be on disk: so much is lost where an evaluation is killed."""

FELL = 0
"""Verdict about a sample under one member, beside ``STANDS``."""

Judge = Callable[[Tensor], tuple[list[int], Tensor | None]]
"""Positions of samples to their verdicts and, where they are kept, the images that these are about."""


@dataclass(frozen=True)
class Samples:
    """What is attacked, on the device of the model."""

    images: Tensor
    labels: Tensor
    index: list[int]
    dataset: str
    split: str
    sha256: str
    mean: Sequence[float]
    std: Sequence[float]

    def each(self) -> dict[int, str]:
        """SHA-256 of the image and label of each sample, by its index."""
        images, labels = self.images.cpu().contiguous().numpy(), self.labels.tolist()
        return {
            sample: hashlib.sha256(image.tobytes() + str(label).encode()).hexdigest()
            for sample, image, label in zip(self.index, images, labels, strict=True)
        }

    @staticmethod
    def of(data: Data, model: nn.Module, device: torch.device) -> Samples:
        """Make samples of ``data``, checked.

        Raises:
            TypeError: If they are no tensors of the right kind.
            ValueError: If images and labels fit neither each other nor the model.
        """
        data = labelled(data)
        images, labels = (data.pixels(), data.labels) if isinstance(data, ImageData) else data
        check_images(images, getattr(model, "in_chans", None), getattr(model, "img_size", None))
        check_labels(labels)
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images come with {len(labels)} labels")
        images, labels = (part.clone() if part.is_inference() else part for part in (images, labels))
        here = images.detach().to(device, torch.float32), labels.to(device, torch.int64)
        if isinstance(data, ImageData):
            info = data.info
            return Samples(*here, data.index.tolist(), info.name, data.split, data.sha256, info.mean, info.std)
        sha256 = hashlib.sha256()
        for part in here:
            sha256.update(part.cpu().contiguous().numpy().tobytes())
        std, mean = torch.std_mean(here[0], (0, 2, 3), correction=0)
        statistics = mean.tolist(), std.clamp(min=1e-3).tolist()
        return Samples(*here, list(range(len(labels))), "tensors", "", sha256.hexdigest(), *statistics)


@dataclass
class Engine:
    """Runs jobs: each a judgement of some samples, shared among the processes and kept in the state."""

    samples: Samples
    victim: ModelVictim
    ledger: Ledger
    bar: Any
    seed: int
    batch_size: int
    keep: bool
    """Whether adversarial images are to be kept."""
    taught: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By member, what it has learned before."""

    def __post_init__(self) -> None:
        self.place = {sample: position for position, sample in enumerate(self.samples.index)}
        self.accuracy = 1.0  # without attack: attacked are those that are classified correctly
        self.jobs: dict[tuple[str, float], str] = {}  # by member and radius

    def expect(self, samples: int, members: Sequence[Member]) -> None:
        """Adds to the bar what so many samples will meet, in gradient passes."""
        self.bar.total = (self.bar.total or 0) + samples * sum(member.cost for member in members)

    def judge(
        self, job: str, positions: Sequence[int], judge: Judge, show: Callable[[int, int, int], None] | None = None
    ) -> tuple[dict[int, int], float]:
        """Verdicts by sample of those at ``positions``, and the seconds that the job has taken all processes.

        Args:
            job: What they are kept under.
            positions: Of the samples.
            judge: Decides about a batch.
            show: Told of each batch: its size, and how many are known so far, and stand.
        """
        wanted = [self.samples.index[i] for i in positions]
        before = self.ledger.begin(job)
        known = {sample: before[sample] for sample in wanted if sample in before}
        share = list(self.ledger.share([sample for sample in wanted if sample not in known]))
        size = min(self.batch_size, self.victim.chunk)  # which grows as far as that is quick
        while share:
            batch, share = share[:size], share[size:]
            started = time.perf_counter()
            verdicts, images = judge(torch.tensor([self.place[sample] for sample in batch]))
            kept = [
                None if images is None or verdict < 0 else images[i].cpu().numpy().tobytes()
                for i, verdict in enumerate(verdicts)
            ]
            took = time.perf_counter() - started
            self.ledger.add(job, list(zip(batch, verdicts, kept, strict=True)), took)
            if took < SAVE_WITHIN / 2:
                size = min(2 * size, self.batch_size)
            known.update(zip(batch, verdicts, strict=True))
            if show:
                show(len(batch), len(known), sum(verdict == STANDS for verdict in known.values()))
        merged, seconds = self.ledger.merged(job)
        return {sample: merged[sample] for sample in wanted}, seconds

    def clean(self) -> list[int]:
        """Judge each sample STANDS or MISCLASSIFIED, without any attack."""

        def judge(at: Tensor) -> tuple[list[int], None]:
            at = at.to(self.samples.labels.device)
            down = self.victim.fallen(self.samples.images[at], self.samples.labels[at])
            return torch.where(down, MISCLASSIFIED, STANDS).tolist(), None

        verdicts, _ = self.judge("clean", range(len(self.samples.index)), judge)
        found = [verdicts[sample] for sample in self.samples.index]
        self.accuracy = found.count(STANDS) / len(found)
        return found

    def attack(
        self, name: str, eps: float, members: Sequence[Member], positions: Sequence[int]
    ) -> tuple[dict[int, int], float]:
        """Verdicts by sample of the worst case over the members, and the seconds that these took all processes.

        One that has fallen is not attacked again. Each member is a job of its own, so who met it at this eps in another
        protocol does not meet it again.
        """
        verdicts = {self.samples.index[i]: STANDS for i in positions}
        left, seconds, before = list(positions), 0.0, self.bar.n
        costs = [member.cost for member in members]
        for number, member in enumerate(members):
            if not left:
                break

            def judge(at: Tensor, member: Member = member) -> tuple[list[int], Tensor | None]:
                at = at.to(self.samples.labels.device)
                index = tuple(self.samples.index[i] for i in at.tolist())
                images, labels = self.samples.images[at], self.samples.labels[at]
                batch = Batch(images, labels, eps, index, self.seed, str(member))
                fell, found = member.attack(self.victim.under(member.mode), batch)
                return torch.where(fell, FELL, STANDS).tolist(), found if self.keep else None

            def show(size: int, known: int, stand: int, member: Member = member, left: int = len(left)) -> None:
                robust = self.accuracy * left * stand / known / len(positions)
                so_far = "" if name.startswith("check ") else f": robust {100 * robust:.1f} %, {member}"
                self.bar.set_postfix_str(f"{name} {in_255(eps)}{so_far}", refresh=False)
                self.bar.update(size * self.ledger.ranks.size * member.cost)

            job = self.jobs[str(member), eps] = f"{member.job} {in_255(eps)}|{eps!r}"
            found, took = self.judge(job, left, judge, show)
            seconds += took
            verdicts |= {sample: number for sample, verdict in found.items() if verdict == FELL}
            left = [i for i in left if found[self.samples.index[i]] == STANDS]
            self.bar.n = before + len(positions) * sum(costs) - len(left) * sum(costs[number + 1 :])
            self.bar.refresh()
        return verdicts, seconds

    def learned(self, member: Member, eps: float, positions: Sequence[int]) -> tuple[Member, float]:
        """The same, and the seconds that it took to learn.

        What an adaptive ensemble wants to know beforehand it has learned on the first of these samples.
        """
        attack = member.attack
        if not isinstance(attack, Adaptive):
            return member, 0.0
        if known := self.taught.get(str(member)):
            return replace(member, attack=attack.taught(known)), 0.0
        pilot = self._pilot(eps, positions)
        known, seconds = self.ledger.made(
            f"{member} {in_255(eps)}|{eps!r} {pilot.index}", lambda: attack.learned(self.victim, pilot).to_json()
        )
        return replace(member, attack=attack.taught(known)), seconds

    def _pilot(self, eps: float, positions: Sequence[int]) -> Batch:
        """The first of these samples by index: the same for any order, batch size and number of processes."""
        first = sorted(positions, key=self.samples.index.__getitem__)[:PILOT]
        at = torch.tensor(first, dtype=torch.long, device=self.samples.labels.device)
        index = tuple(self.samples.index[i] for i in first)
        return Batch(self.samples.images[at], self.samples.labels[at], eps, index, self.seed, "pilot")

    def examples(self, runs: Sequence[Run]) -> Examples:
        """What fell in these runs."""
        rows = []
        for number, run in enumerate(runs):
            verdicts = list(zip(self.samples.index, run.verdicts, strict=True))
            for fell in sorted({verdict for _, verdict in verdicts if verdict >= 0}):
                images = self.ledger.images(self.jobs["/".join(run.members[fell]), run.eps])
                rows += [(number, sample, fell, images[sample]) for sample, verdict in verdicts if verdict == fell]
        rows.sort(key=lambda row: (row[0], self.place[row[1]]))
        at = torch.tensor([self.place[sample] for _, sample, _, _ in rows], dtype=torch.long)
        numbers = torch.tensor([row[:3] for row in rows], dtype=torch.long).reshape(-1, 3)
        clean, labels = self.samples.images.cpu()[at], self.samples.labels.cpu()[at]
        pixels = np.frombuffer(b"".join(row[3] for row in rows), np.float32).copy()
        return Examples(
            torch.from_numpy(pixels).reshape(clean.shape), clean, labels, numbers[:, 1], numbers[:, 0], numbers[:, 2]
        )
