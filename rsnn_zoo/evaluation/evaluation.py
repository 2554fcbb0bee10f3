"""Robust accuracy by the worst case over an ensemble of attacks, sample by sample.

A sample is robust only if it stands under every member. *Fallen* means misclassified, at any iterate, by the exact
float32 network: spikes are thresholds, so a pass that differs by a rounding is a suspicion and not a verdict. What is
random about a sample is seeded by its index in the data set, and passes run in chunks padded to sizes of the same bits,
so the verdicts do not depend on batch size, order, the number of processes, or on when an evaluation was killed and
resumed. Networks of this zoo run with channels last, which is faster; that too is only a matter of roundings.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import torch
from torch import nn

from rsnn_zoo import __version__
from rsnn_zoo._utils.defaults import device_of, own_generators
from rsnn_zoo._utils.progress import bar as progress_bar
from rsnn_zoo._utils.provenance import digest, environment, workings
from rsnn_zoo.attacks.adaptive import Adaptive
from rsnn_zoo.attacks.victim import ModelVictim, default_chunk, exact_arithmetic
from rsnn_zoo.data.images import check_labels
from rsnn_zoo.evaluation import flags
from rsnn_zoo.evaluation.checks import model_flags, run_flags
from rsnn_zoo.evaluation.consistency import Consistency
from rsnn_zoo.evaluation.engine import Engine, Samples
from rsnn_zoo.evaluation.examples import save_examples
from rsnn_zoo.evaluation.inputs import Data
from rsnn_zoo.evaluation.ledger import Ledger
from rsnn_zoo.evaluation.protocols import Plan
from rsnn_zoo.evaluation.settings import Settings
from rsnn_zoo.evaluation.transfer import unconverted
from rsnn_zoo.hub.shards import packed
from rsnn_zoo.hub.weights import WeightsError
from rsnn_zoo.models import Temporal
from rsnn_zoo.models.distributed import Ranks, unwrapped
from rsnn_zoo.neurons.modes import surrogate_units
from rsnn_zoo.report.evidence import NETWORK
from rsnn_zoo.report.report import MISCLASSIFIED, STANDS, Flag, Report, Run, in_255, told_left_out, wilson
from rsnn_zoo.spec.units import RELATIVE

__all__ = ["EPSILONS", "Report", "Run", "evaluate", "wilson"]

_log = logging.getLogger(__name__)

EPSILONS = tuple(k / 255 for k in (2, 4, 8, 16, 32, 64))
"""The radii of a published curve of robust accuracy."""

DRAWS = 16
"""Passes averaged where a model is random."""

_TOLD = ("objective", "eps", "attack", "attack_steps")


def _weights_sha256(model: nn.Module) -> str | None:
    try:
        return packed(model)[1].sha256
    except (WeightsError, IndexError, StopIteration):  # a module that no entry can hold
        return None


@exact_arithmetic()
def evaluate(
    model: nn.Module,
    data: Data,
    attack: str | Sequence[str] | Mapping[str, float | Sequence[float]] = "ensemble-pgd20",
    eps: float | Sequence[float] = 8 / 255,
    *,
    seed: int = 0,
    batch_size: int = 256,
    chunk: int | None = None,
    precision: str = "float32",
    draws: int | None = None,
    checks: int = 64,
    state: str | os.PathLike[str] | None = None,
    adversarial: str | os.PathLike[str] | None = None,
    taught: Mapping[str, Mapping[str, Any]] | None = None,
    progress: bool = False,
    units: str = RELATIVE,
) -> Report:
    """Robust accuracy under a protocol, by the worst case over its members for each sample.

    Where ``torch.distributed`` is initialised (``torchrun``), every process calls it alike, attacks its share of the
    samples and gets the whole report; it differs from that of one process in nothing but time and hardware.

    Args:
        model: A network of this zoo, or any module from images in [0, 1] to logits (B, K) with its normalisation
            inside. It is copied, never touched; the copy runs in evaluation mode, on the model's device, in float32.
            It must keep nothing from one forward pass to the next.
        data: An :class:`ImageData`, images (N, C, H, W) in [0, 1] and labels (N,) as tensors or NumPy arrays, or a
            ``Dataset`` or ``DataLoader`` of such: see :func:`rsnn_zoo.evaluation.inputs.labelled`.
        attack: A protocol: see :func:`rsnn_zoo.evaluation.protocols.protocol`; or several, each run on its own;
            or a mapping of several, each to an eps of its own or to several.
        eps: Radius of the L-infinity ball in units of pixels in [0, 1], or several, each run on its own.
        seed: Of all that is drawn.
        batch_size: Most samples between two writes of the state, which are fewer where an attack takes long; no
            influence on the verdicts.
        chunk: Samples that go through the network at once. The verdicts are those of this size, since a library may
            choose another algorithm for another one; the default depends on image size and device.
        precision: Of the gradients that attacks follow, ``"float32"``, ``"folded"`` (float32 with folded batch norms,
            faster; of the answers to searches without gradients too) or ``"bfloat16"`` (folded too). No sample falls
            but by the exact float32 network, which ``"folded"`` asks about suspects and about a sample of what stands
            (the report says how often it contradicts), and ``"bfloat16"``, whose gradients are those of another
            network, about every iterate.
        draws: Passes over which gradients and logits are averaged (EOT); by default 16 for a random model, else 1. What
            these misclassify is judged by eight times as many, since one of many iterates may fall by luck.
        checks: Samples that the sanity flags attack (see :mod:`rsnn_zoo.evaluation.flags`); 0 for no flags.
        state: File (SQLite, on a local disk) that holds the verdicts so far: killed and called again, with any number
            of processes, an evaluation resumes from it. More attacks, radii and samples may be asked of it later.
        adversarial: File for the adversarial examples: see :func:`rsnn_zoo.evaluation.examples.verify_examples`.
        taught: By member, as ``"adaptive434/own"``, what an adaptive ensemble has learned, as a report holds it; by
            default it learns from the first samples.
        progress: Show a progress bar with the robust accuracy so far and the time left.
        units: Of the widths of surrogates: ``"threshold"``, so that no verdict depends on the scale of a layer's
            thresholds and currents, or ``"absolute"``, as in the published research code and in older evidence.

    Returns:
        The report.

    Raises:
        TypeError: For a model that is no module, images or labels of another kind, or an eps that
            is no number.
        ValueError: For bad images or labels, an unknown protocol, something that no adaptive ensemble learns, eps
            outside [0, 1], a state of another evaluation, a path where no adversarial examples can be written, or a
            model that does not give logits (B, K), or still holds the graph of an earlier forward pass.
        OSError: If the state cannot be written.

    Example:
        A network of SpikingJelly 2.0 is attacked through its own surrogates. It keeps its membranes until it is reset,
        so a module around it resets it, shows the image at each step, and holds the normalisation:

        >>> from spikingjelly.activation_based import functional, layer, neuron, surrogate
        >>> class Images(nn.Module):
        ...     def __init__(self, network, timesteps, mean, std):
        ...         super().__init__()
        ...         self.network, self.timesteps = network, timesteps
        ...         self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        ...         self.register_buffer("std", torch.tensor(std)[:, None, None])
        ...
        ...     def forward(self, x):
        ...         x = ((x - self.mean) / self.std).expand(self.timesteps, *x.shape)
        ...         try:
        ...             return self.network(x).mean(0)
        ...         finally:
        ...             functional.reset_net(self.network)
        >>> spiking = neuron.IFNode(surrogate_function=surrogate.ATan())
        >>> network = nn.Sequential(layer.Flatten(), layer.Linear(64, 32), spiking, layer.Linear(32, 10))
        >>> functional.set_step_mode(network, "m")
        >>> from rsnn_zoo import load_dataset
        >>> data = load_dataset("digits").select(20)
        >>> model = Images(network, timesteps=4, mean=data.info.mean, std=data.info.std)
        >>> report = evaluate(model, data, "pgd5", [4 / 255, 8 / 255])
        >>> [run.members for run in report.runs]
        [(('pgd5', 'own'),), (('pgd5', 'own'),)]
        >>> 0 <= report.runs[1].robust_accuracy <= report.runs[0].robust_accuracy <= report.clean_accuracy
        True

    Source:
        Özdenizci & Legenstein, TMLR 2024, section 4.2, with any iterate counting.
    """
    settings = Settings(
        attack,
        eps,
        seed=seed,
        batch_size=batch_size,
        chunk=chunk,
        precision=precision,
        draws=draws,
        checks=checks,
        state=state,
        adversarial=adversarial,
        taught=taught or {},
        progress=progress,
        units=units,
    )
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module from images to logits, got {type(model).__name__}")
    model = unwrapped(model)
    plans = settings.plans(model)
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(f"verdicts are those of a float32 network; {name} is {parameter.dtype}: use model.float()")
    device = device_of(model)
    with own_generators(device), surrogate_units(units):
        torch.manual_seed(seed)  # for models that draw from the global generators
        return _evaluate(model, Samples.of(data, model, device), plans, settings)


@dataclass(frozen=True)
class _Subject:
    """The model under attack, ready.

    Attributes:
        victim: Attacked in its place.
        plans: What runs, as far as it has classes for it, and the radii.
        classes: K.
        is_random: The flag of that.
        asked: What it was asked before anything else, to be asked again; None without checks.
    """

    victim: ModelVictim
    plans: list[tuple[Plan, list[float]]]
    classes: int
    is_random: Flag
    asked: Consistency | None


def _prepared(
    model: nn.Module, samples: Samples, plans: Sequence[tuple[Plan, list[float]]], settings: Settings
) -> _Subject:
    """Copies the model, and looks whether it can be attacked."""
    chunk = settings.chunk or default_chunk(samples.images)
    try:
        victim = ModelVictim(model, chunk, settings.precision)
    except RuntimeError as error:
        raise ValueError(
            "the model cannot be copied: does it hold tensors of an earlier forward pass, such as membranes? Reset "
            "it at the end of its forward pass. Weights that a hook makes anew (weight_norm, spectral_norm, prune) "
            "are such tensors too: use torch.nn.utils.parametrizations, or remove the hook"
        ) from error
    radius = max(radius for _, radii in plans for radius in radii)
    asked = Consistency(model, victim, samples.images, radius) if settings.checks else None
    classes = victim.logits(samples.images[:1]).shape[1]
    check_labels(samples.labels, classes)
    possible = [(each.of_classes(classes), radii) for each, radii in plans]
    if Ranks.current().main:
        for each, _ in possible:
            for line in told_left_out(each.left_out):
                _log.warning("%s: %s", each.name, line)
    is_random = flags.random_model(victim, samples.images[:chunk], settings.draws or DRAWS)
    draws = settings.draws or (DRAWS if is_random.raised else 1)
    if draws > 1:
        victim = ModelVictim(model, chunk, settings.precision, draws)
    return _Subject(victim, possible, classes, is_random, asked)


def _evaluate(
    model: nn.Module, samples: Samples, plans: Sequence[tuple[Plan, list[float]]], settings: Settings
) -> Report:
    """Looks, attacks, looks again, and reports."""
    source = unconverted(model) if settings.checks else None
    weights = digest(model)  # before anything runs: a model may change as it does
    subject = _prepared(model, samples, plans, settings)
    victim, plans = subject.victim, subject.plans
    followed = {"seed": settings.seed, "precision": settings.precision, "units": settings.units}
    followed |= {"chunk": victim.chunk, "draws": victim.draws}
    keep = settings.adversarial is not None
    # a state of anything else would mix two evaluations
    fingerprint = {"version": __version__, "model": weights, "adversarial": keep, **followed}
    fingerprint |= {"workings": found} if (found := workings(model)) else {}
    here = environment(samples.images.device) | {"processes": Ranks.current().size}
    kept = Ledger(settings.state, fingerprint, here, samples.each())
    hidden = not (settings.progress and Ranks.current().main)
    with closing(kept) as ledger, progress_bar(disable=hidden, unit="gradient") as bar:
        engine = Engine(samples, victim, ledger, bar, settings.seed, settings.batch_size, keep, settings.taught)
        found = [subject.is_random, *model_flags(engine, plans, subject.is_random.raised)] if settings.checks else []
        victim.heard.phase = "attacked"
        clean = engine.clean()
        correct = [position for position, verdict in enumerate(clean) if verdict == STANDS]
        engine.expect(len(correct), [member for each, radii in plans for member in each.members * len(radii)])
        runs = tuple(_run(engine, each, radius, correct) for each, radii in plans for radius in radii)
        if subject.asked:
            victim.heard.phase = "checked"
            each = [plan for plan, _ in plans]
            found += run_flags(engine, each, source, runs, correct, settings.checks, subject.classes)
            found.append(flags.inconsistent(subject.asked.again(), subject.is_random.raised))
        if settings.adversarial is not None:
            examples = engine.examples(runs)
            if ledger.ranks.main:
                how = {"model": _called(model), "digest": weights, "chunk": victim.chunk, "draws": victim.draws}
                save_examples(settings.adversarial, examples, victim, runs, **how)
        asked_twice = ledger.ranks.sum([victim.agreement.sampled, victim.agreement.fell], samples.images.device)
    resumed = {"resumed_from": ledger.sessions} if ledger.sessions else {}
    told = followed | {"checks": settings.checks}
    agreement = dict(zip(("sampled", "fell"), map(int, asked_twice), strict=True)) if asked_twice[0] else None
    if settings.checks:
        found.append(flags.other_network(*map(int, asked_twice)))
    extra = {} if agreement is None else {"agreement": agreement}
    environs = here | resumed
    return _report(model, samples, clean, runs, settings=told, environment=environs, flags=tuple(found), extra=extra)


def _called(model: nn.Module) -> str:
    return str(getattr(model, "pretrained_name", None) or getattr(model, "architecture", type(model).__name__))


def _report(model: nn.Module, samples: Samples, clean: Sequence[int], runs: tuple[Run, ...], **more: Any) -> Report:
    sha256 = _weights_sha256(model)
    spiking = isinstance(model, Temporal) and model.timesteps
    return Report(
        model=_called(model),
        weights_sha256=sha256,
        dataset=samples.dataset,
        split=samples.split,
        data_sha256=samples.sha256,
        index=tuple(samples.index),
        correct=tuple(verdict == STANDS for verdict in clean),
        runs=runs,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        network={key: getattr(model, key) for key in NETWORK} if spiking else {},
        training=_training(model) if sha256 and sha256 == getattr(model, "weights_sha256", None) else {},
        **more,
    )


def _training(model: nn.Module) -> dict[str, Any]:
    """What a number must come with of an entry's record of its training, which anybody may have written."""
    record = getattr(model, "training_record", {})
    stage = record.get("stage")
    known = stage if isinstance(stage, Mapping) else {}
    told = _TOLD[:1] if known.get("objective") == "natural" else _TOLD  # else no attack ran
    said = {key: known[key] for key in told if isinstance(known.get(key), str | int | float)}
    steps, eps, images = known.get("validation_steps"), known.get("validation_eps"), record.get("validation_images")
    if isinstance(steps, int) and isinstance(eps, float) and isinstance(images, int):
        attack = f"pgd{steps} at eps {in_255(eps)}" if steps else "no attack"
        said["selection"] = f"the epoch of the highest accuracy on {images:,} validation images under {attack}"
    return said


def _run(engine: Engine, plan: Plan, eps: float, correct: Sequence[int]) -> Run:
    members, learning = zip(*(engine.learned(member, eps, correct) for member in plan.members), strict=True)
    verdicts, seconds = engine.attack(plan.name, eps, members, correct)
    return Run(
        plan.name,
        eps,
        tuple((member.attack.name, member.mode_name) for member in members),
        tuple(verdicts.get(sample, MISCLASSIFIED) for sample in engine.samples.index),
        seconds + sum(learning),
        tuple(getattr(member.attack, "steps", None) for member in members),
        {number: m.attack.to_json() for number, m in enumerate(members) if isinstance(m.attack, Adaptive)},
        plan.left_out,
    )
