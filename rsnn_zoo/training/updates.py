"""One weight update: the attack, the losses, the optimizer, and what the weights are held to afterwards."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rsnn_zoo.attacks.base import project
from rsnn_zoo.attacks.gradients import COMPUTE_DTYPES, InputGradient, PassGradient
from rsnn_zoo.attacks.inner import ATTACKS, InnerAttack, ascend, perturb, start_noise
from rsnn_zoo.models.distributed import Ranks, parallel
from rsnn_zoo.models.layers import WeightedSum, batch_statistics
from rsnn_zoo.neurons.integrate_fire import SpikingNeuron, wide
from rsnn_zoo.neurons.modes import parse_mode, surrogate_units
from rsnn_zoo.training.constraints import hold_thresholds, retract
from rsnn_zoo.training.objectives import Objective, get_objective
from rsnn_zoo.training.recipe import Stage
from rsnn_zoo.training.staircases import Staircases

__all__ = ["MEASURED", "Updates"]

CPU_CHUNK = 16
"""Images at once through a spiking network on a CPU, in attacks: so a layer's T steps stay in the cache."""

MEASURED = ("loss", "clean", "robust")
"""What an update measures: its loss, and the accuracy on its clean and on its adversarial images."""


_Shares = list[tuple[Tensor, Tensor, Tensor]]
_Attacked = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Adversarial images, given labels, what the teacher says, and the logits of the clean ones."""


class Updates:
    """The updates of a network's weights, as one stage of a recipe has them.

    Args:
        model: ANN or SNN, on its device; its weights are changed.
        stage: Objective, attack, optimizer.
        ranks: The processes, each with the same weights.
        teacher: A trained network, where the objective is taught by one; it is copied.

    Attributes:
        optimizer: SGD over weights, and over thresholds with a rate of their own.
        average: The averaged weights, as ``AveragedModel``; None where the stage has none.
        staircases: Of the last epochs; None where the stage has none.
    """

    def __init__(self, model: nn.Module, stage: Stage, ranks: Ranks, teacher: nn.Module | None = None):
        if stage.batch_size % (stage.accumulate * ranks.size):
            raise ValueError(
                f"batch_size {stage.batch_size} cannot be divided among {ranks.size} processes in {stage.accumulate} "
                "parts: make it a multiple"
            )
        self.model, self.stage, self.ranks = model, stage, ranks
        self.objective = get_objective(stage.objective)
        if self.objective.teacher and teacher is None:
            raise ValueError(f"objective {stage.objective!r} needs a teacher: fine-tune an SNN with it, of its ANN")
        self.staircases = Staircases(model, stage.staircase) if stage.staircase else None
        if self.staircases and ranks.size > 1:
            raise ValueError("staircase trains in one process, since its clips are no weights of the network")
        self.optimizer = torch.optim.SGD(
            _groups(model, stage, self.staircases), lr=stage.lr, momentum=stage.momentum, nesterov=stage.nesterov
        )
        self.average = None
        if stage.ema:
            self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(stage.ema), use_buffers=True)
        self.parallel = parallel(model, ranks)
        if stage.compile:
            self.parallel = torch.compile(self.parallel)
        self.device = next(model.parameters()).device
        self.teacher = None
        if self.objective.teacher and teacher is not None:
            here = copy.deepcopy(teacher).to(self.device)
            self.teacher = InputGradient(here, None, stage.precision, chunk=stage.batch_size)
        spiking = any(isinstance(module, SpikingNeuron) for module in model.modules())
        self.attack_options = {
            "precision": stage.precision,
            "chunk": CPU_CHUNK if spiking and self.device.type == "cpu" else None,
            "mode": None if stage.attack_mode == "own" else parse_mode(stage.attack_mode),
        }

    @property
    def lr(self) -> float:
        """The learning rate of the last update."""
        return self.optimizer.param_groups[0]["lr"]

    @property
    def result(self) -> nn.Module:
        """What is validated and kept: the averaged weights where there are any."""
        return self.model if self.average is None else self.average.module

    def objective_at(self, done: float) -> Objective:
        """What is learned when so many epochs are done."""
        return get_objective("natural") if done < self.stage.natural_epochs else self.objective

    def attack_steps(self, done: float) -> int:
        """Steps of the attack, once there is one, when so many epochs are done."""
        return 1 + int((self.stage.attack_steps - 1) * _grown(done, self.stage.steps_warmup))

    def __call__(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, done: float, step: float
    ) -> list[float]:
        """Updates the weights.

        Args:
            images: The whole batch, (B, C, H, W) in [0, 1]; each process takes its share of it.
            labels: (B,).
            generator: Draws the start of the attack, and which weights are retracted.
            done: Epochs that are done, with the share of this one.
            step: What share of an epoch this update is.

        Returns:
            What ``MEASURED`` names, means over the batch.

        Raises:
            FloatingPointError: If the loss is no number; this step changes no weights, but of a replayed batch those
                before it have.
            OSError: If the stage wants the network compiled, and that fails.
        """
        last = self.stage.epochs - self.stage.staircase_epochs
        cut = self.staircases.in_force() if self.staircases and done >= last else nullcontext()
        with surrogate_units(self.stage.units), cut:
            return self._update(images, labels, generator, done, step)

    def _update(
        self, images: Tensor, labels: Tensor, generator: torch.Generator, done: float, step: float
    ) -> list[float]:
        stage, objective = self.stage, self.objective_at(done)
        eps = stage.eps * _grown(done, stage.eps_warmup)
        steps = self.attack_steps(done)
        start = self.objective.start if stage.attack_start == "objective" else stage.attack_start
        attack = ATTACKS[stage.attack](steps, stage.attack_step, start)
        noise = start_noise(attack, images, generator) if objective.inner else images
        parts = (self.ranks.share(whole, stage.accumulate) for whole in (images, labels, noise))
        shares = list(zip(*parts, strict=True))
        if objective.inner and stage.attack == "free":
            return self._replay(shares, attack, eps, generator, done, step)
        found = (
            self._measure(objective, x, y, partial(self._attacked, x, z, attack=attack, eps=eps)) for x, y, z in shares
        )
        return self._step(found, generator, done, step)

    def _replay(
        self, shares: _Shares, attack: InnerAttack, eps: float, generator: torch.Generator, done: float, step: float
    ) -> list[float]:
        """An update for each step of the attack, which follows the gradient that the update's pass leaves behind."""
        points = [attack.begin(images, eps, noise) for images, _, noise in shares]
        part, total = step / attack.steps, [0.0] * len(MEASURED)
        for replay in range(attack.steps):
            points = [x.detach().requires_grad_() for x in points]
            given = zip(shares, points, strict=True)
            found = (self._measure(self.objective, x, y, lambda *_, at=at: at) for (x, y, _), at in given)
            measured = self._step(found, generator, done + replay * part, part)
            total = [sum(both) for both in zip(total, measured, strict=True)]
            moves = [(x.detach(), x.grad.sign(), images) for x, (images, _, _) in zip(points, shares, strict=True)]
            points = [project(x + attack.size * eps * sign, images, eps) for x, sign, images in moves]
        return [value / attack.steps for value in total]

    def _step(
        self, found: Iterable[tuple[Tensor, list[float]]], generator: torch.Generator, done: float, step: float
    ) -> list[float]:
        """One update of the weights by the losses of all parts of a batch; what was measured, means over the batch."""
        stage, count = self.stage, self.stage.accumulate
        self.optimizer.zero_grad()
        measured, parts = [0.0] * len(MEASURED), iter(found)
        for number in range(count):
            last = number == count - 1
            with nullcontext() if last or self.ranks.size == 1 else self.parallel.no_sync():
                loss, accuracies = next(parts)
                (loss / count).backward()
            for at, value in enumerate((loss.item(), *accuracies)):
                measured[at] += value / count
        measured = [value / self.ranks.size for value in self.ranks.sum(measured, self.device)]
        if not math.isfinite(measured[0]):
            raise FloatingPointError(f"the loss is {measured[0]}")
        if stage.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), stage.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self._schedule(done, step)
        self.optimizer.step()
        hold_thresholds(self.model)
        if stage.retraction:
            retract(self.model, stage.retraction, generator)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return measured

    def attack(self, model: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
        """Adversarial images, gradients in the stage's precision: see ``perturb``."""
        with surrogate_units(self.stage.units):
            return perturb(model, images, labels, **options, **self.attack_options)

    def _measure(
        self, objective: Objective, images: Tensor, labels: Tensor, attacked: _Attacked
    ) -> tuple[Tensor, list[float]]:
        """Loss, and accuracy on clean and adversarial images (0 for those that the objective does not look at)."""
        taught = labels if self.teacher is None or not objective.teacher else self.teacher.logits(images).softmax(1)
        clean = self._forward(images, self.parallel) if objective.clean else None
        adversarial = None
        if objective.inner:
            adversarial = self._forward(attacked(labels, taught, clean), self.parallel)
        loss = objective.loss(clean, adversarial, taught, self.stage.weight, self.stage.label_smoothing)
        seen = (clean, adversarial)
        return loss, [0.0 if z is None else (z.argmax(1) == labels).float().mean().item() for z in seen]

    def _attacked(
        self,
        images: Tensor,
        noise: Tensor,
        labels: Tensor,
        taught: Tensor,
        clean: Tensor | None,
        *,
        attack: InnerAttack,
        eps: float,
    ) -> Tensor:
        """Adversarial images, as the stage has them."""
        stage, inner = self.stage, str(self.objective.inner)
        loss = inner if stage.attack_loss == "objective" else stage.attack_loss
        target = taught if loss == "teacher" else labels
        options = {"attack": attack, "eps": eps, "noise": noise, "loss": loss}
        if stage.attack_pass == "training":
            return self._attack_as_trained(images, target, clean, **options)
        return self.attack(self.model, images, target, **options)

    def _attack_as_trained(
        self, images: Tensor, target: Tensor, clean: Tensor | None, *, loss: str, **options: Any
    ) -> Tensor:
        """Adversarial images for the very pass that trains, whose statistics are remembered only when it trains."""
        network = self.parallel if self.ranks.size == 1 else self.model  # no gradients of weights to be gathered
        gradient = PassGradient(lambda x: self._forward(x, network), self.attack_options["mode"])
        with _frozen(self.model), batch_statistics(self.model, track=False):
            if loss == "kl":
                before = gradient.logits(images) if clean is None else clean.detach()
                target = before.softmax(1)
            return ascend(gradient, images, target, loss=loss, **options)

    def _forward(self, images: Tensor, network: nn.Module) -> Tensor:
        """Logits, convolutions in the stage's precision."""
        dtype = COMPUTE_DTYPES[self.stage.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            try:
                logits = network(images)
            except TorchDynamoException as error:
                cause = str(error).strip().split("\n")[0]
                raise OSError(f"torch.compile fails here ({cause}): set compile = false in the recipe") from error
        return logits.to(wide(logits.dtype))

    def _schedule(self, done: float, step: float) -> float:
        """Share of the peak learning rate: a linear rise over the warmup, then a cosine to 0."""
        warmup, epochs = self.stage.warmup, self.stage.epochs
        if done < warmup:
            return (done + step) / (warmup + step)
        return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (epochs - warmup)))


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """The weights get no gradient."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _grown(done: float, warmup: float) -> float:
    """A linear rise from 0 to 1."""
    return min(1.0, done / warmup) if warmup else 1.0


def _groups(model: nn.Module, stage: Stage, staircases: Staircases | None) -> list[dict[str, Any]]:
    """Parameters by weight decay and peak learning rate."""
    thresholds = [module.threshold for module in model.modules() if isinstance(module, SpikingNeuron)]
    apart = set(thresholds)
    rest = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter not in apart]
    free = {p for module in model.modules() if isinstance(module, WeightedSum) for p in module.parameters()}
    decayed = [p for p in rest if p.ndim > 1 and p not in free]
    groups = [
        {"params": decayed, "weight_decay": stage.weight_decay, "peak": stage.lr},
        {"params": [p for p in rest if p.ndim <= 1 or p in free], "weight_decay": 0.0, "peak": stage.lr},
        {"params": thresholds, "weight_decay": 0.0, "peak": stage.threshold_lr},
        {"params": list(staircases.clips) if staircases else [], "weight_decay": 0.0, "peak": stage.lr},
    ]
    return [group for group in groups if group["params"]]
