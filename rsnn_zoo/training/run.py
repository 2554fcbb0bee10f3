"""A training run in progress: its steps, epochs, validation and folder. :func:`rsnn_zoo.training.train.train` runs it.

All that is random about a step follows from the seed, the epoch and the number of the batch. So a checkpoint needs no
generator, and a run that is killed and started again ends with the weights of one that was not: on a CPU to the bit.
"""

from __future__ import annotations

import hashlib
import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rsnn_zoo._utils.progress import bar as progress_bar
from rsnn_zoo._utils.provenance import digest, environment, peak_memory
from rsnn_zoo.attacks.inner import ATTACKS, start_noise
from rsnn_zoo.attacks.victim import exact_arithmetic
from rsnn_zoo.data.augment import Augment
from rsnn_zoo.data.images import ImageData
from rsnn_zoo.models.distributed import Ranks
from rsnn_zoo.training.checkpoints import RunFolder
from rsnn_zoo.training.recipe import DEFAULTS, Stage
from rsnn_zoo.training.updates import MEASURED, Updates

__all__ = ["DivergedError", "RunResult", "TrainingInterrupted", "TrainingRun"]

_log = logging.getLogger(__name__)


class DivergedError(FloatingPointError):
    """The loss is no number any more; says where."""


class TrainingInterrupted(RuntimeError):
    """Ctrl-C or SIGTERM: the run is saved; says how to go on."""


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        epoch: The selected epoch, from 1.
        accuracy: Its accuracy on the validation images, in [0, 1].
        robust_accuracy: Its accuracy under the validation attack; None where the recipe has none.
        seconds: Time spent, over all sessions.
        images_per_second: Training images, without validation, of the last epoch.
        peak_memory: In bytes: see ``provenance.peak_memory``.
        history: One record an epoch, as in ``log.jsonl``.
        record: What ``config.json`` keeps of the run, as JSON: settings, environment, data, result.
    """

    epoch: int
    accuracy: float
    robust_accuracy: float | None
    seconds: float
    images_per_second: float
    peak_memory: int
    history: list[dict[str, Any]]
    record: dict[str, Any]


_ORDER, _STEP, _DROPOUT, _VALIDATION = range(4)  # what is drawn


def _seed(*numbers: int) -> int:
    """One well-mixed seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class TrainingRun:
    """A run in progress."""

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        validation: ImageData,
        stage: Stage,
        seed: int,
        device: torch.device | str | None,
        teacher: nn.Module | None = None,
    ):
        self.device = torch.device(device or next(model.parameters()).device)
        bears = getattr(model, "channels_last", False)  # a network from elsewhere may view its feature maps
        self.layout = torch.channels_last if stage.channels_last and bears else torch.contiguous_format
        self.model = model.to(self.device, memory_format=self.layout)
        self.stage, self.seed = stage, seed
        self.data = data.to(self.device)
        self.validation = validation.select(min(stage.validation_images or len(validation), len(validation)))
        self.validation = self.validation.to(self.device)
        self.batches = len(data) // stage.batch_size
        if not self.batches:
            raise ValueError(f"{len(data)} training images do not fill a batch of {stage.batch_size}: lower batch_size")
        self.ranks = Ranks.current()
        if self.ranks.main:
            for phrase in stage.unreached():
                _log.warning("%s", phrase)
        self.network = hashlib.sha256(repr(model).encode()).hexdigest()
        self.updates = Updates(self.model, stage, self.ranks, teacher)
        self.teacher = digest(teacher) if self.updates.teacher and teacher is not None else None
        self.augment = Augment(stage.augmentation)
        self.generator = torch.Generator(self.device)

        self.epoch = self.batch = 0  # both are done
        self.sums = [0.0] * len(MEASURED)  # over this epoch's batches
        self.seconds = self.training_seconds = 0.0  # of the run; of this epoch, without validation
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}

    # --- a step ---

    def order(self) -> Tensor:
        """The images of this epoch's batches, (batches, B)."""
        self.generator.manual_seed(_seed(_ORDER, self.seed, self.epoch))
        order = torch.randperm(len(self.data), generator=self.generator, device=self.device)
        return order[: self.batches * self.stage.batch_size].view(self.batches, -1)

    def step(self, order: Tensor) -> None:
        """One batch.

        Args:
            order: What :meth:`order` gave, (batches, B).

        Raises:
            DivergedError: If the loss is no number; says where and what to do.
        """
        self.generator.manual_seed(_seed(_STEP, self.seed, self.epoch, self.batch))
        drawn = _seed(_DROPOUT, self.seed, self.epoch, self.batch, self.ranks.rank)
        torch.default_generator.manual_seed(drawn)  # not torch.manual_seed, which seeds every GPU there is
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(drawn)
        indices = order[self.batch]
        images = self.augment(self.data.images[indices], self.generator).float() / self.data.info.levels
        images = images.contiguous(memory_format=self.layout)
        done, share = self.epoch + self.batch / self.batches, 1 / self.batches
        try:
            measured = self.updates(images, self.data.labels[indices], self.generator, done, share)
        except FloatingPointError as error:
            raise DivergedError(
                f"{error} in epoch {self.epoch + 1}, batch {self.batch + 1} of {self.batches}: lower lr, add warmup or "
                "clip, or set precision to float32, and start anew in another folder"
            ) from None
        self.sums = [total + value for total, value in zip(self.sums, measured, strict=True)]
        self.batch += 1

    def means(self) -> dict[str, float]:
        """What was measured in this epoch so far."""
        objective = self.updates.objective_at(self.epoch)
        seen = dict(zip(MEASURED, (True, objective.clean, objective.inner is not None), strict=True))
        return {key: total / self.batch for key, total in zip(MEASURED, self.sums, strict=True) if seen[key]}

    # --- an epoch ---

    def loop(
        self, received: list[signal.Signals], progress: bool, on_epoch: Callable[[dict[str, Any]], None] | None
    ) -> None:
        """Run all that is left of the run."""
        size = self.stage.batch_size
        with progress_bar(
            total=self.stage.epochs * self.batches * size,
            initial=(self.epoch * self.batches + self.batch) * size,
            unit="image",
            unit_scale=True,
            disable=not (progress and self.ranks.main),
        ) as bar:
            while self.epoch < self.stage.epochs:
                self.model.train()
                order = self.order()
                while self.batch < self.batches:
                    start = time.perf_counter()
                    self.step(order)
                    self.training_seconds += time.perf_counter() - start
                    self.show(bar)
                    if time.monotonic() - self.saved >= self.interval:
                        self.save()
                    self.check(received)
                self.end_epoch()
                self.save(must=self.epoch == self.stage.epochs)
                if on_epoch is not None and self.ranks.main:
                    on_epoch(self.history[-1])
                self.check(received)

    def show(self, bar: tqdm) -> None:
        """What was measured in training, and the last validation."""
        bar.set_description(f"epoch {self.epoch + 1}/{self.stage.epochs}", refresh=False)
        last = self.history[-1] if self.history else {}
        shown = self.means() | {key: last.get(key) for key in ("validation", "validation_robust")}
        bar.set_postfix({key: f"{value:.3f}" for key, value in shown.items() if value is not None}, refresh=False)
        bar.update(self.stage.batch_size)

    def check(self, received: list[signal.Signals]) -> None:
        """Stops, saved, where a signal has come to any process.

        Raises:
            TrainingInterrupted: If one has; says how to go on.
        """
        if self.ranks.sum([len(received)], self.device)[0] and self.epoch < self.stage.epochs:
            self.save(must=True)
            raise TrainingInterrupted(
                f"stopped by {received[0].name if received else 'another process'} after {self.epoch} epochs and "
                f"{self.batch} batches, saved in {self.folder}: run the same command again to go on"
            )

    def end_epoch(self) -> None:
        """Validates, selects and records."""
        record: dict[str, Any] = {"epoch": self.epoch + 1, "lr": self.updates.lr}
        record |= {f"train_{key}": value for key, value in self.means().items()}
        start = time.perf_counter()
        if (self.epoch + 1) % self.stage.validate_every == 0 or self.epoch + 1 == self.stage.epochs:
            record["validation"], record["validation_robust"] = self.validate()
            self.select(record)
        self.seconds += self.training_seconds + time.perf_counter() - start
        images = self.batches * self.stage.batch_size
        record["images_per_second"] = round(images / self.training_seconds, 1)
        record["seconds"] = round(self.seconds, 1)
        record["peak_memory"] = peak_memory(self.device)
        self.history.append(record)
        self.epoch, self.batch, self.training_seconds = self.epoch + 1, 0, 0.0
        self.sums = [0.0] * len(MEASURED)

    def select(self, record: Mapping[str, Any]) -> None:
        """Keeps these weights if none before were better."""
        score = [record["validation_robust"] or 0.0, record["validation"]]
        if not self.best or score >= self.best["score"]:
            self.best = {"score": score, "epoch": record["epoch"], "state": _copied_state(self.updates.result)}

    @exact_arithmetic()
    def validate(self) -> tuple[float, float | None]:
        """Accuracy on the validation images, and under the short attack, by the exact float32 network."""
        stage, model = self.stage, self.updates.result.eval()
        attack = ATTACKS["pgd"](stage.validation_steps, 2.5, "uniform") if stage.validation_steps else None
        right = standing = 0
        batches = torch.arange(len(self.validation), device=self.device).split(stage.batch_size)
        for number in range(self.ranks.rank, len(batches), self.ranks.size):
            images = self.validation.pixels(batches[number]).contiguous(memory_format=self.layout)
            labels = self.validation.labels[batches[number]]
            with torch.no_grad():
                stands = model(images).argmax(1) == labels
                right += stands.sum().item()
                if attack:
                    self.generator.manual_seed(_seed(_VALIDATION, self.seed, number))  # the same in every epoch
                    noise = start_noise(attack, images, self.generator)
                    options = {"attack": attack, "eps": stage.validation_eps, "noise": noise}
                    attacked = self.updates.attack(model, images, labels, **options)
                    standing += (stands & (model(attacked).argmax(1) == labels)).sum().item()
        right, standing = self.ranks.sum([right, standing], self.device)
        n = len(self.validation)
        return right / n, standing / n if attack else None

    # --- the folder ---

    def open(self, folder: Path, about: Mapping[str, Any], interval: float) -> None:
        """Makes the folder, or takes up the run that it holds."""
        settings = {"stage": asdict(self.stage), "seed": self.seed, "network_sha256": self.network, **about}
        for name, part in (("train", self.data), ("validation", self.validation)):
            settings[f"{name}_images"], settings[f"{name}_sha256"] = len(part), part.sha256
        if self.teacher:
            settings["teacher_sha256"] = self.teacher
        surroundings = environment(self.device) | {"processes": self.ranks.size}
        defaults = DEFAULTS | {"network_sha256": self.network}
        self.folder = RunFolder(folder, settings, surroundings, defaults=defaults, writes=self.ranks.main)
        self.interval, self.saved = interval, time.monotonic()
        if (state := self.folder.open()) is not None:
            for key, part in self.parts().items():
                part.load_state_dict(state[key])
            for key in _REMEMBERED:
                setattr(self, key, state[key])
            self.folder.go_on(state, finished=self.epoch == self.stage.epochs)
            _log.info("going on after %d epochs and %d batches", self.epoch, self.batch)

    def parts(self) -> dict[str, Any]:
        """What has a state of its own."""
        found = {"model": self.model, "optimizer": self.updates.optimizer, "average": self.updates.average}
        found["staircases"] = self.updates.staircases
        return {key: part for key, part in found.items() if part is not None}

    def save(self, must: bool = False) -> None:
        """Writes a checkpoint and the log; a failure is fatal only where it ``must``."""
        state = {key: getattr(self, key) for key in _REMEMBERED}
        for key, part in self.parts().items():
            state[key] = _copied_state(part) if isinstance(part, nn.Module) else part.state_dict()
        try:
            self.folder.save(state)
        except OSError as error:
            if must:
                raise
            _log.warning("the run could not be saved, trying again later: %s", error)
        self.saved = time.monotonic()

    def close(self) -> RunResult:
        """Gives the network its best weights, and says what came of it."""
        self.model.load_state_dict(self.best["state"])
        self.model.eval()
        robust, accuracy = self.best["score"]
        result = {
            "epoch": self.best["epoch"],
            "accuracy": accuracy,
            "robust_accuracy": robust if self.stage.validation_steps else None,
            "seconds": round(self.seconds, 1),
            "images_per_second": self.history[-1]["images_per_second"],
            "peak_memory": max(record["peak_memory"] for record in self.history),
        }
        return RunResult(**result, history=self.history, record=self.folder.write_record(result))


_REMEMBERED = ("epoch", "batch", "sums", "seconds", "training_seconds", "history", "best")


def _copied_state(module: nn.Module) -> dict[str, Tensor]:
    """The state, each tensor in memory of its own: those of a loaded network are views of one file."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}
