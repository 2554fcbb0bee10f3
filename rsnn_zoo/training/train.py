"""Training of ANNs and SNNs, one loop for both: fast, recorded, never lost. And what it would take."""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rsnn_zoo._utils.defaults import own_generators
from rsnn_zoo._utils.provenance import peak_memory
from rsnn_zoo.data.images import ImageData
from rsnn_zoo.training.checkpoints import CheckpointError, OtherRunError
from rsnn_zoo.training.precision import warn_where_slow
from rsnn_zoo.training.recipe import Stage
from rsnn_zoo.training.run import DivergedError, RunResult, TrainingInterrupted, TrainingRun

__all__ = [
    "CheckpointError",
    "DivergedError",
    "Estimate",
    "OtherRunError",
    "RunResult",
    "TrainingInterrupted",
    "estimate",
    "train",
]


@dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        seconds_a_step: Of a step when the attack's steps have grown.
        seconds_an_epoch: Of an epoch of such steps with its validation.
        seconds: Of all epochs, of which the first have fewer steps of the attack.
        peak_memory: In bytes, so far.
    """

    seconds_a_step: float
    seconds_an_epoch: float
    seconds: float
    peak_memory: int

    def __str__(self) -> str:
        return (
            f"{self.seconds / 60:.1f} minutes: {self.seconds_a_step:.3g} s a step, {self.seconds_an_epoch:.3g} s "
            f"an epoch with its validation; {self.peak_memory / 2**20:.0f} MiB"
        )


def train(
    model: nn.Module,
    data: ImageData,
    validation: ImageData,
    stage: Stage,
    folder: str | Path,
    *,
    teacher: nn.Module | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    about: Mapping[str, Any] | None = None,
    interval: float = 300.0,
    progress: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Trains a network, in place, or goes on with the run that the folder holds.

    The weights of the epoch with the best robust accuracy on the validation images are kept (the latest of equals);
    at the end the network has them, in evaluation mode. The folder gets ``checkpoint.pt`` and the one before,
    ``log.jsonl`` with one record an epoch, and ``run.json`` with all that the run depends on, and its result.

    Where a process group is initialised (``torchrun``), every process takes its part of each batch, and the first one
    writes; the batch norms of the network are replaced by synchronised ones.

    Args:
        model: ANN or SNN, from images (B, C, H, W) in [0, 1] to logits (B, K).
        data: Training images.
        validation: Validation images, which select the epoch.
        stage: Every number of the run.
        folder: Where the run is kept; made if absent.
        teacher: A trained network, where the objective is taught by one.
        seed: Draws the order, the augmentation and the attacks' starts. The initial weights are the caller's.
        device: Where to train; that of the model by default.
        about: What else the run depends on, as JSON: recorded, and compared when the run is taken up again, as are
            stage, seed, data and what ``print(model)`` shows; not the initial weights.
        interval: Seconds between two checkpoints within an epoch.
        progress: Show a progress bar.
        on_epoch: Is handed each epoch's record, for a logger of your own.

    Raises:
        OtherRunError: If the folder holds a run with other settings.
        CheckpointError: If it holds checkpoints that cannot be read.
        DivergedError: If the loss is no number any more.
        TrainingInterrupted: After Ctrl-C or SIGTERM, when the run has been saved.
        ValueError: If the training images do not fill one batch, a batch cannot be divided, the objective needs a
            teacher and there is none, or the batch norms cannot be synchronised.
        OSError: If the folder cannot be written, or the stage wants the network compiled and that fails.

    Example:
        >>> train(model, data, validation, load_recipe("digits", "trades").ann, "runs/mine")  # doctest: +SKIP
    """
    run = TrainingRun(model, data, validation, stage, seed, device, teacher)
    run.open(Path(folder), about or {}, interval)
    warn_where_slow(stage.precision, run.device)
    with own_generators(run.device), _signals() as received:
        run.loop(received, progress, on_epoch)
    return run.close()


def estimate(
    model: nn.Module,
    data: ImageData,
    validation: ImageData,
    stage: Stage,
    *,
    teacher: nn.Module | None = None,
    device: torch.device | str | None = None,
    steps: int = 3,
) -> Estimate:
    """Measures a few steps and one batch of validation on a copy of the network; writes nothing.

    Args:
        model: As for :func:`train`.
        data: As for :func:`train`.
        validation: As for :func:`train`.
        stage: As for :func:`train`.
        teacher: As for :func:`train`.
        device: As for :func:`train`.
        steps: How many steps to time, after one that warms up.

    Raises:
        ValueError: As :func:`train`.

    Example:
        >>> print(estimate(model, data, validation, load_recipe("digits", "trades").ann))  # doctest: +SKIP
    """
    few = validation.select(min(stage.batch_size, len(validation)))
    run = TrainingRun(copy.deepcopy(model), data, few, replace(stage, validation_images=0), 0, device, teacher)
    warn_where_slow(stage.precision, run.device)
    run.model.train()
    order = run.order()

    def timed(call: Callable[[], Any], times: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - start) / times

    def a_step_at(batch: int) -> Callable[[], None]:
        def step() -> None:
            run.epoch, run.batch = divmod(batch, run.batches)
            run.step(order)

        return step

    batches = [batch / run.batches for batch in range(stage.epochs * run.batches)]  # by the epochs that are done
    natural = stage.natural_epochs * run.batches
    growth = [0] * natural + [run.updates.attack_steps(done) for done in batches[natural:]]
    with own_generators(run.device):
        timed(a_step_at(0))
        taken = {growth[batch]: timed(a_step_at(batch), steps) for batch in sorted({0, natural, len(growth) - 1})}
        shown = min(stage.validation_images or len(validation), len(validation))
        a_validation = timed(run.validate) * shown / len(few)
    validations = math.ceil(stage.epochs / stage.validate_every)
    # what a step takes is linear in those of the attack
    total = float(np.interp(growth, list(taken), list(taken.values())).sum()) + validations * a_validation
    a_step = taken[growth[-1]]
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
