"""The training loop, one for ANNs and SNNs: fast, recorded, never lost.

All that is random about a step follows from the seed, the epoch and the number of the batch. So a checkpoint needs no
generator, and a run that is killed and started again ends with the weights of one that was not: on a CPU to the bit.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from rsnn_zoo.attacks.gradients import PRECISIONS
from rsnn_zoo.attacks.inner import ATTACKS, perturb, start_noise
from rsnn_zoo.checkpoints import load_checkpoint, save_checkpoint
from rsnn_zoo.data import Augment, ImageData
from rsnn_zoo.files import replacing, to_json
from rsnn_zoo.neurons import MIN_THRESHOLD, SpikingNeuron
from rsnn_zoo.objectives import get_objective
from rsnn_zoo.provenance import environment, peak_memory
from rsnn_zoo.recipe import Stage

__all__ = ["DivergedError", "Estimate", "OtherRunError", "RunResult", "TrainingInterrupted", "estimate", "train"]

_log = logging.getLogger(__name__)

CHUNK = 16
"""Images at once through a spiking network on a CPU, in attacks: so a layer's T steps stay in the cache."""


class DivergedError(FloatingPointError):
    """The loss is no number any more; says where."""


class TrainingInterrupted(RuntimeError):
    """Ctrl-C or SIGTERM: the run is saved; says how to go on."""


class OtherRunError(ValueError):
    """The folder holds a run with other settings."""


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


@dataclass(frozen=True)
class Estimate:
    """What a run would take: seconds of a step, an epoch with its validation and all epochs, and bytes of memory."""

    seconds_a_step: float
    seconds_an_epoch: float
    seconds: float
    peak_memory: int


def train(
    model: nn.Module,
    data: ImageData,
    validation: ImageData,
    stage: Stage,
    folder: str | Path,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    about: Mapping[str, Any] | None = None,
    interval: float = 300.0,
    progress: bool = True,
) -> RunResult:
    """Trains a network, in place, or goes on with the run that the folder holds.

    The weights of the epoch with the best robust accuracy on the validation images are kept (the latest of equals);
    at the end the network has them, in evaluation mode. The folder gets ``checkpoint.pt`` and the one before,
    ``log.jsonl`` with one record an epoch, and ``run.json`` with all that the run depends on, and its result.

    Args:
        model: ANN or SNN, from images (B, C, H, W) in [0, 1] to logits (B, K).
        data: Training images.
        validation: Validation images, which select the epoch.
        stage: Every number of the run.
        folder: Where the run is kept; made if absent.
        seed: Draws the order, the augmentation and the attacks' starts. The initial weights are the caller's.
        device: Where to train; that of the model by default.
        about: What else the run depends on, as JSON: recorded, and compared when the run is taken up again.
        interval: Seconds between two checkpoints within an epoch.
        progress: Show a progress bar.

    Raises:
        OtherRunError: If the folder holds a run with other settings.
        CheckpointError: If it holds checkpoints that cannot be read.
        DivergedError: If the loss is no number any more.
        TrainingInterrupted: After Ctrl-C or SIGTERM, when the run has been saved.
        ValueError: If the training images do not fill one batch.
        OSError: If the folder cannot be written.

    Example:
        >>> train(model, data, validation, load_recipe("digits", "trades").ann, "runs/mine")  # doctest: +SKIP
    """
    run = _Run(model, data, validation, stage, seed, device)
    run.open(Path(folder), about or {}, interval)
    with torch.random.fork_rng(), _signals() as received:
        run.loop(received, progress)
    return run.close()


def estimate(
    model: nn.Module,
    data: ImageData,
    validation: ImageData,
    stage: Stage,
    *,
    device: torch.device | str | None = None,
    steps: int = 3,
) -> Estimate:
    """Measures a few steps and one batch of validation on a copy of the network; writes nothing.

    Args:
        model: As for :func:`train`.
        data: As for :func:`train`.
        validation: As for :func:`train`.
        stage: As for :func:`train`.
        device: As for :func:`train`.
        steps: How many steps to time, after one that warms up.
    """
    few = validation.select(min(stage.batch_size, len(validation)))
    run = _Run(copy.deepcopy(model), data, few, replace(stage, validation_images=0), 0, device)
    run.model.train()
    with torch.random.fork_rng():
        order = run.order()
        run.step(order)
        start = time.perf_counter()
        for _ in range(steps):
            run.step(order)
        a_step = (time.perf_counter() - start) / steps
        start = time.perf_counter()
        run.validate()
        batches = math.ceil((stage.validation_images or len(validation)) / len(few))
        a_validation = (time.perf_counter() - start) * batches
    validations = math.ceil(stage.epochs / stage.validate_every)
    total = stage.epochs * run.batches * a_step + validations * a_validation
    return Estimate(a_step, run.batches * a_step + a_validation, total, peak_memory(run.device))


@contextmanager
def _signals() -> Iterator[list[signal.Signals]]:
    """Notes Ctrl-C and SIGTERM in the list it gives; the second of a kind acts as ever."""
    received: list[signal.Signals] = []
    before: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        received.append(signal.Signals(number))
        signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _seed(*numbers: int) -> int:
    """One well-mixed seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def _groups(model: nn.Module, stage: Stage) -> list[dict[str, Any]]:
    """Parameters by weight decay and peak learning rate."""
    thresholds = [module.threshold for module in model.modules() if isinstance(module, SpikingNeuron)]
    apart = set(thresholds)
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter not in apart]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": stage.weight_decay, "peak": stage.lr},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0, "peak": stage.lr},
        {"params": thresholds, "weight_decay": 0.0, "peak": stage.threshold_lr},
    ]
    return [group for group in groups if group["params"]]


class _Run:
    """A run in progress."""

    def __init__(
        self,
        model: nn.Module,
        data: ImageData,
        validation: ImageData,
        stage: Stage,
        seed: int,
        device: torch.device | str | None,
    ):
        self.device = torch.device(device or next(model.parameters()).device)
        self.layout = torch.channels_last if stage.channels_last else torch.contiguous_format
        self.model = model.to(self.device, memory_format=self.layout)
        self.stage, self.seed = stage, seed
        self.data = data.to(self.device)
        self.validation = validation.select(min(stage.validation_images or len(validation), len(validation)))
        self.validation = self.validation.to(self.device)
        self.batches = len(data) // stage.batch_size
        if not self.batches:
            raise ValueError(f"{len(data)} training images do not fill a batch of {stage.batch_size}: lower batch_size")
        self.objective = get_objective(stage.objective)
        self.attack = ATTACKS[stage.attack](stage.attack_steps, stage.attack_step, self.objective.start)
        self.augment = Augment(stage.augmentation)
        self.generator = torch.Generator(self.device)
        self.optimizer = torch.optim.SGD(
            _groups(model, stage), lr=stage.lr, momentum=stage.momentum, nesterov=stage.nesterov
        )
        neurons = [module for module in model.modules() if isinstance(module, SpikingNeuron)]
        self.thresholds = [neuron.threshold for neuron in neurons]
        self.chunk = CHUNK if neurons and self.device.type == "cpu" else None
        self.average = None
        if stage.ema:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(stage.ema), use_buffers=True)

        self.epoch = self.batch = 0  # both are done
        self.sums = dict.fromkeys(("loss", "clean", "robust"), 0.0)  # over this epoch's batches
        self.seconds = self.training_seconds = 0.0  # of the run; of this epoch, without validation
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}

    # --- a step ---

    def order(self) -> Tensor:
        """The images of this epoch's batches, (batches, B)."""
        self.generator.manual_seed(_seed(self.seed, self.epoch))
        order = torch.randperm(len(self.data), generator=self.generator, device=self.device)
        return order[: self.batches * self.stage.batch_size].view(self.batches, -1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits in float32, convolutions in the stage's precision."""
        dtype = PRECISIONS[self.stage.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            return self.model(images).float()

    def step(self, order: Tensor) -> None:
        """One weight update."""
        stage, objective = self.stage, self.objective
        self.generator.manual_seed(_seed(self.seed, self.epoch, self.batch))
        torch.manual_seed(_seed(self.seed, self.epoch, self.batch, 1))  # dropout, where a network has it
        done = self.epoch + self.batch / self.batches
        indices = order[self.batch]
        images = self.augment(self.data.images[indices], self.generator).float() / self.data.info.levels
        images, labels = images.contiguous(memory_format=self.layout), self.data.labels[indices]

        clean = self.forward(images) if objective.clean else None
        adversarial = None
        if objective.inner:
            eps = stage.eps * min(1.0, done / stage.eps_warmup if stage.eps_warmup else 1.0)
            attacked = self.perturb(self.model, images, labels, self.attack, eps, objective.inner)
            adversarial = self.forward(attacked)
        loss = objective.loss(clean, adversarial, labels, stage.weight, stage.label_smoothing)
        if not math.isfinite(loss.item()):
            raise DivergedError(
                f"the loss is {loss.item()} in epoch {self.epoch + 1}, batch {self.batch + 1} of {self.batches}: "
                "lower lr, add warmup or clip, or set precision to float32, and start anew in another folder"
            )
        self.optimizer.zero_grad()
        loss.backward()
        if stage.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), stage.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.schedule(done)
        self.optimizer.step()
        with torch.no_grad():
            for threshold in self.thresholds:
                threshold.clamp_(min=MIN_THRESHOLD)
        if self.average is not None:
            self.average.update_parameters(self.model)

        self.batch += 1
        self.sums["loss"] += loss.item()
        for key, logits in (("clean", clean), ("robust", adversarial)):
            if logits is not None:
                self.sums[key] += (logits.argmax(1) == labels).float().mean().item()

    def schedule(self, done: float) -> float:
        """Share of the peak learning rate after so many epochs: a linear rise, then a cosine to 0."""
        warmup, epochs = self.stage.warmup, self.stage.epochs
        if done < warmup:
            return (done + 1 / self.batches) / (warmup + 1 / self.batches)
        return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (epochs - warmup)))

    def perturb(self, model: nn.Module, images: Tensor, labels: Tensor, attack: Any, eps: float, loss: str) -> Tensor:
        """Adversarial images, gradients in the stage's precision."""
        noise = start_noise(attack, images, self.generator)
        options = {"precision": self.stage.precision, "chunk": self.chunk}
        return perturb(model, images, labels, attack=attack, eps=eps, noise=noise, loss=loss, **options)

    # --- an epoch ---

    def loop(self, received: list[signal.Signals], progress: bool) -> None:
        """All that is left of the run."""
        size = self.stage.batch_size
        with tqdm(
            total=self.stage.epochs * self.batches * size,
            initial=(self.epoch * self.batches + self.batch) * size,
            unit="image",
            unit_scale=True,
            disable=not progress,
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
                self.check(received)

    def show(self, bar: tqdm) -> None:
        """Loss and accuracy in training, and the last validation."""
        bar.set_description(f"epoch {self.epoch + 1}/{self.stage.epochs}", refresh=False)
        shown = {key: f"{total / self.batch:.3f}" for key, total in self.sums.items() if total}
        last = self.history[-1] if self.history else {}
        shown |= {key: f"{last[key]:.3f}" for key in ("validation", "validation_robust") if last.get(key) is not None}
        bar.set_postfix(shown, refresh=False)
        bar.update(self.stage.batch_size)

    def check(self, received: list[signal.Signals]) -> None:
        """Stops, saved, where a signal has come."""
        if received and self.epoch < self.stage.epochs:
            self.save(must=True)
            raise TrainingInterrupted(
                f"stopped by {received[0].name} after {self.epoch} epochs and {self.batch} batches, saved in "
                f"{self.folder}: run the same command again to go on"
            )

    def end_epoch(self) -> None:
        """Validates, selects and records."""
        means = {f"train_{key}": total / self.batches for key, total in self.sums.items() if total}
        record: dict[str, Any] = {"epoch": self.epoch + 1, "lr": self.optimizer.param_groups[0]["lr"], **means}
        if (self.epoch + 1) % self.stage.validate_every == 0 or self.epoch + 1 == self.stage.epochs:
            start = time.perf_counter()
            record["validation"], record["validation_robust"] = self.validate()
            self.select(record)
            self.seconds += time.perf_counter() - start
        images = self.batches * self.stage.batch_size
        record["images_per_second"] = round(images / self.training_seconds, 1)
        self.seconds += self.training_seconds
        record["seconds"] = round(self.seconds, 1)
        record["peak_memory"] = peak_memory(self.device)
        self.history.append(record)
        self.epoch, self.batch, self.training_seconds = self.epoch + 1, 0, 0.0
        self.sums = dict.fromkeys(self.sums, 0.0)

    def select(self, record: Mapping[str, Any]) -> None:
        """Keeps these weights if none before were better."""
        score = [record["validation_robust"] or 0.0, record["validation"]]
        if not self.best or score >= self.best["score"]:
            self.best = {"score": score, "epoch": record["epoch"], "state": _copied(self.candidate)}

    @property
    def candidate(self) -> nn.Module:
        """What is validated and kept: the averaged weights where there are any."""
        return self.model if self.average is None else self.average.module

    def validate(self) -> tuple[float, float | None]:
        """Accuracy on the validation images, and under the short attack, by the exact float32 network."""
        stage, model = self.stage, self.candidate.eval()
        self.generator.manual_seed(_seed(self.seed))  # the same start in every epoch
        attack = ATTACKS["pgd"](stage.validation_steps, 2.5, "uniform") if stage.validation_steps else None
        right = standing = 0
        for indices in torch.arange(len(self.validation), device=self.device).split(stage.batch_size):
            images = self.validation.pixels(indices).contiguous(memory_format=self.layout)
            labels = self.validation.labels[indices]
            with torch.no_grad():
                stands = model(images).argmax(1) == labels
                right += stands.sum().item()
                if attack:
                    adversarial = self.perturb(model, images, labels, attack, stage.validation_eps, "ce")
                    standing += (stands & (model(adversarial).argmax(1) == labels)).sum().item()
        n = len(self.validation)
        return right / n, standing / n if attack else None

    # --- the folder ---

    def open(self, folder: Path, about: Mapping[str, Any], interval: float) -> None:
        """Makes the folder, or takes up the run that it holds."""
        self.folder, self.interval, self.saved = folder, interval, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"stage": asdict(self.stage), "seed": self.seed, **about}
        for name, part in (("train", self.data), ("validation", self.validation)):
            settings[f"{name}_images"], settings[f"{name}_sha256"] = len(part), part.sha256
        self.settings: dict[str, Any] = json.loads(to_json(settings))
        self.environment = environment(self.device)
        if (state := load_checkpoint(folder)) is None:
            self.write_run(None)
            return
        if differing := _differences(state["settings"], self.settings):
            raise OtherRunError(
                f"{folder} holds another run ({'; '.join(differing)}): give another folder, or the same settings"
            )
        if state["environment"] != self.environment:
            _log.warning("the run goes on in another environment: its weights may differ by roundings")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        for key in _REMEMBERED:
            setattr(self, key, state[key])
        _log.info("going on after %d epochs and %d batches", self.epoch, self.batch)

    def save(self, must: bool = False) -> None:
        """Writes a checkpoint and the log; a failure is fatal only where it ``must``."""
        state = {key: getattr(self, key) for key in (*_REMEMBERED, "settings", "environment")}
        state |= {"model": _copied(self.model), "optimizer": self.optimizer.state_dict()}
        if self.average is not None:
            state["average"] = _copied(self.average)
        try:
            save_checkpoint(self.folder, state)
            with replacing(self.folder / "log.jsonl") as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in self.history))
        except OSError as error:
            if must:
                raise
            _log.warning("no checkpoint, trying again later: %s", error)
        self.saved = time.monotonic()

    def close(self) -> RunResult:
        """Gives the network its best weights, and says what came of it."""
        self.model.load_state_dict(self.best["state"])
        self.model.eval()
        robust, accuracy = self.best["score"]
        last = self.history[-1]
        result = {
            "epoch": self.best["epoch"],
            "accuracy": accuracy,
            "robust_accuracy": robust if self.stage.validation_steps else None,
            "seconds": round(self.seconds, 1),
            "images_per_second": last["images_per_second"],
            "peak_memory": max(record["peak_memory"] for record in self.history),
        }
        return RunResult(**result, history=self.history, record=self.write_run(result))

    def write_run(self, result: Mapping[str, Any] | None) -> dict[str, Any]:
        record = {**self.settings, "environment": self.environment, "result": result}
        with replacing(self.folder / "run.json") as temporary:
            temporary.write_bytes(to_json(record))
        return record


_REMEMBERED = ("epoch", "batch", "sums", "seconds", "training_seconds", "history", "best")


def _copied(module: nn.Module) -> dict[str, Tensor]:
    """The state, each tensor in memory of its own: those of a loaded network are views of one file."""
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    """What differs between two JSON objects, key by key."""
    found = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{path}{key}.")
        elif old != new:
            found.append(f"{path}{key} is {old!r} there, {new!r} here")
    return found
