"""Robust accuracy by the worst case over an ensemble of attacks, sample by sample.

A sample is robust only if it stands under every member. *Fallen* means misclassified, at any iterate, by the exact
float32 network: spikes are thresholds, so a pass that differs by a rounding is a suspicion and not a verdict. What is
random about a sample is seeded by its index in the data set, and passes run in padded chunks of one fixed size, so the
verdicts do not depend on batch size, order, the number of processes, or on when an evaluation was killed and resumed.
Networks of this zoo run with channels last, which is faster; that too is only a matter of roundings.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from numbers import Integral
from typing import Any

import torch
from torch import nn

from rsnn_zoo import __version__
from rsnn_zoo._utils.files import check_writable
from rsnn_zoo._utils.progress import bar as progress_bar
from rsnn_zoo._utils.provenance import digest, environment
from rsnn_zoo.attacks.adaptive import Adaptive
from rsnn_zoo.attacks.base import check_eps
from rsnn_zoo.attacks.queries import Square
from rsnn_zoo.attacks.signed import pgd
from rsnn_zoo.attacks.victim import ModelVictim, default_chunk, exact_arithmetic
from rsnn_zoo.data.images import check_labels
from rsnn_zoo.evaluation import flags
from rsnn_zoo.evaluation.engine import Engine, Samples
from rsnn_zoo.evaluation.examples import save_examples
from rsnn_zoo.evaluation.inputs import Data
from rsnn_zoo.evaluation.ledger import Ledger
from rsnn_zoo.evaluation.protocols import Member, Plan, plan
from rsnn_zoo.evaluation.transfer import Transfer, unconverted
from rsnn_zoo.hub.weights import WeightsError, serialize
from rsnn_zoo.models import Temporal
from rsnn_zoo.models.distributed import Ranks
from rsnn_zoo.report.evidence import NETWORK, SETTINGS
from rsnn_zoo.report.report import MISCLASSIFIED, STANDS, Flag, Report, Run, in_255, wilson

__all__ = ["EPSILONS", "Report", "Run", "evaluate", "wilson"]

_log = logging.getLogger(__name__)

EPSILONS = tuple(k / 255 for k in (2, 4, 8, 16, 32, 64))
"""The radii of a published curve of robust accuracy."""

DRAWS = 16
"""Passes averaged where a model is random."""

_TOLD = ("objective", "eps", "attack", "attack_steps")

CLEAN_CHECKS, GRADIENT_CHECKS = 256, 32
"""Images at which the sanity flags look without attacking them: forward passes, and gradients under each mode."""
STEP_CHECKS, QUERY_CHECKS = (5, 20), 100
"""Steps of the two PGD that are compared, and queries of the Square attack that gradient attacks are compared with."""


def _weights_sha256(model: nn.Module) -> str | None:
    try:
        return serialize(model, "")[1].sha256
    except (WeightsError, IndexError):  # a module that no entry can hold
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
        precision: Of the gradients that attacks follow, ``"float32"`` or ``"bfloat16"`` (folded batch norms). Verdicts
            on all iterates are the exact float32 network's, which costs the latter a forward pass a step; its gradients
            are those of a network with other roundings, so somewhat fewer samples fall.
        draws: Passes over which gradients and logits are averaged (EOT); by default 16 for a random model, else 1. What
            these misclassify is judged by eight times as many, since one of many iterates may fall by luck.
        checks: Samples that the sanity flags attack (see :mod:`rsnn_zoo.evaluation.flags`); 0 for no flags.
        state: File (SQLite, on a local disk) that holds the verdicts so far: killed and called again, with any number
            of processes, an evaluation resumes from it. More attacks, radii and samples may be asked of it later.
        adversarial: File for the adversarial examples: see :func:`rsnn_zoo.evaluation.examples.verify`.
        taught: By member, as ``"adaptive434/own"``, what an adaptive ensemble has learned, as a report holds it; by
            default it learns from the first samples.
        progress: Show a progress bar with the robust accuracy so far and the time left.

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
    if not isinstance(attack, Mapping):
        attack = dict.fromkeys([attack] if isinstance(attack, str) else attack, eps)
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module from images to logits, got {type(model).__name__}")
    bounds = {"batch_size": (1, None), "checks": (0, None), **SETTINGS}
    given = {"batch_size": batch_size, "checks": checks, "seed": seed, "chunk": chunk, "draws": draws}
    for name, (least, most) in bounds.items():
        if (value := given[name]) is None and name in ("chunk", "draws"):
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least or value > (most or value):
            span = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise ValueError(f"{name} must be an integer {span}, got {value!r}")
    if adversarial is not None:
        check_writable(adversarial)
    model = _unwrapped(model)
    planned: dict[str, tuple[Plan, list[float]]] = {}
    for name, mine in attack.items():  # a protocol may be named with and without its version
        _, radii = planned.setdefault((one := plan(name, model)).name, (one, []))
        radii += [radius for radius in _radii(mine) if radius not in radii]
    if not planned or not all(radii for _, radii in planned.values()):
        raise ValueError("name at least one attack and one eps")
    for member in (member for one, _ in planned.values() for member in one.members):
        if str(member) in (taught or {}) and isinstance(member.attack, Adaptive):
            member.attack.taught(taught[str(member)])
    source = unconverted(model) if checks else None
    device = next(model.parameters(), torch.zeros(())).device
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(f"verdicts are those of a float32 network; {name} is {parameter.dtype}: use model.float()")
    with _own_randomness(device, seed):
        samples = Samples.of(data, model, device)
        chunk = chunk or default_chunk(samples.images)
        weights = digest(model)
        try:
            victim = ModelVictim(model, chunk, precision)
        except RuntimeError as error:
            raise ValueError(
                "the model cannot be copied: does it hold tensors of an earlier forward pass, such as membranes? Reset "
                "it at the end of its forward pass. Weights that a hook makes anew (weight_norm, spectral_norm, prune) "
                "are such tensors too: use torch.nn.utils.parametrizations, or remove the hook"
            ) from error
        classes = victim.logits(samples.images[:1]).shape[1]
        check_labels(samples.labels, classes)
        plans = [(each.of_classes(classes), radii) for each, radii in planned.values()]
        if Ranks.current().main:
            for each, _ in plans:
                for what, why in each.left_out.items():
                    _log.warning("%s: left out %s: %s", each.name, what, why)
        is_random = flags.random_model(victim, samples.images[:chunk], draws or DRAWS)
        draws = draws or (DRAWS if is_random.raised else 1)
        if draws > 1:
            victim = ModelVictim(model, chunk, precision, draws)
        settings = {"seed": seed, "precision": precision, "chunk": chunk, "draws": draws}
        fingerprint = {
            "version": __version__,
            "model": weights,
            "adversarial": adversarial is not None,
            **settings,
        }
        hidden = not (progress and Ranks.current().main)
        here = environment(device) | {"processes": Ranks.current().size}
        kept = Ledger(state, fingerprint, here, samples.each())
        with closing(kept) as ledger, progress_bar(disable=hidden, unit="gradient") as bar:
            engine = Engine(samples, victim, ledger, bar, seed, batch_size, adversarial is not None, taught or {})
            looked = [is_random, *_model_flags(engine, plans, is_random.raised)] if checks else []
            clean = engine.clean()
            correct = [position for position, verdict in enumerate(clean) if verdict == STANDS]
            engine.expect(len(correct), [member for each, radii in plans for member in each.members * len(radii)])
            runs = tuple(_run(engine, each, radius, correct) for each, radii in plans for radius in radii)
            found: list[Flag] = []
            if checks:
                found = _run_flags(engine, [each for each, _ in plans], source, runs, correct, checks, classes)
            called = str(
                getattr(model, "pretrained_name", None) or getattr(model, "architecture", type(model).__name__)
            )
            if adversarial is not None:
                examples = engine.examples(runs)
                if ledger.ranks.main:
                    how = {"model": called, "digest": weights, "chunk": chunk, "draws": draws}
                    save_examples(adversarial, examples, victim, runs, **how)
    sha256 = _weights_sha256(model)
    return Report(
        model=called,
        weights_sha256=sha256,
        dataset=samples.dataset,
        split=samples.split,
        data_sha256=samples.sha256,
        index=tuple(samples.index),
        correct=tuple(verdict == STANDS for verdict in clean),
        runs=runs,
        settings=settings | {"checks": checks},
        environment=here | ({"resumed_from": ledger.sessions} if ledger.sessions else {}),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        flags=(*looked, *found),
        network={key: getattr(model, key) for key in NETWORK}
        if isinstance(model, Temporal) and model.timesteps
        else {},
        training=_training(model) if sha256 and sha256 == getattr(model, "weights_sha256", None) else {},
    )


def _unwrapped(model: nn.Module) -> nn.Module:
    """What is inside of torch.compile, which not every backward mode bears, and of wrappers for several devices.

    Their threads would not see the backward mode.
    """
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while inner := model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", None):
        model = inner
    return model


def _radii(eps: float | Sequence[float]) -> list[float]:
    if getattr(eps, "ndim", 0) == 1:  # an array or a tensor
        eps = eps.tolist()
    several = isinstance(eps, Sequence) and not isinstance(eps, str)
    return [check_eps(each) for each in (eps if several else [eps])]


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


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Global generators of our own, for models that draw from them; afterwards they are as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


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


def _model_flags(engine: Engine, plans: Sequence[tuple[Plan, list[float]]], is_random: bool) -> list[Flag]:
    """What a look at the model shows."""
    samples, victim = engine.samples, engine.victim
    images, labels = samples.images[:CLEAN_CHECKS], samples.labels[:CLEAN_CHECKS]
    modes = [member.mode for plan, _ in plans for member in plan.members]
    logits = victim.logits(images)
    return [
        flags.ignores_input(logits),
        flags.normalisation_outside(victim, images, labels, samples.mean, samples.std),
        flags.zero_gradients(victim, images[:GRADIENT_CHECKS], labels[:GRADIENT_CHECKS], modes),
        flags.depends_on_batch(victim, images[: victim.chunk], is_random),
        flags.tied_logits(logits),
    ]


def _run_flags(
    engine: Engine,
    plans: Sequence[Plan],
    source: nn.Module | None,
    runs: Sequence[Run],
    correct: Sequence[int],
    n: int,
    classes: int,
) -> list[Flag]:
    """What attacks on the first ``n`` samples show: from far away, with more steps, and without its gradients."""
    plan = max(plans, key=lambda plan: len(plan.members))
    index = engine.samples.index
    probe = [position for position in correct if position < n]
    radii = sorted(run.eps for run in runs if run.protocol == plan.name)

    def standing(what: str, eps: float, member: Member, positions: Sequence[int]) -> list[int]:
        engine.expect(len(positions), [member])
        found, _ = engine.attack(f"check {what}", eps, [member], positions)
        return [position for position in positions if found[index[position]] == STANDS]

    seen = min(n, len(index))
    last = [run for run in runs if run.eps == radii[-1]]
    left = [position for position in probe if all(run.verdicts[position] == STANDS for run in last)]
    far, enough = probe, min(seen / classes, len(left))
    for number, member in enumerate(plan.members):
        if len(far) > enough:  # else neither flag can be raised
            member, _ = engine.learned(member, flags.FAR, correct)
            far = standing(f"far {number}", flags.FAR, member, far)
    few, many = (standing(f"pgd{k}", radii[len(radii) // 2], Member(pgd(k)), probe) for k in STEP_CHECKS)
    without = left  # what needs no gradient of the model is compared with attacks that followed it
    if any(not attack.startswith(flags.GRADIENT_FREE) for run in last for attack, _ in run.members):
        without = standing("square", radii[-1], Member(Square(QUERY_CHECKS)), without)
        if source is not None:
            without = standing("transfer", radii[-1], Member(Transfer(source, pgd(STEP_CHECKS[1]), "ann")), without)

    def stands(standing: Sequence[int]) -> list[bool]:
        return [position in standing for position in range(seen)]

    return [
        flags.above_chance(len(far), seen, classes),
        flags.gradient_free(runs, also=len(left) - len(without)),
        flags.more_eps(runs, also=[stands(left), stands(far)] if radii[-1] < flags.FAR else ()),
        flags.more_steps(runs, also=[stands(few), stands(many)]),
    ]
