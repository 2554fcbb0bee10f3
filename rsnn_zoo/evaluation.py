"""Robust accuracy by the worst case over an ensemble of attacks, sample by sample.

A sample is robust only if it stands under every member. *Fallen* means misclassified, at any iterate, by the exact
float32 network: spikes are thresholds, so a pass that differs by a rounding is a suspicion and not a verdict. What is
random about a sample is seeded by its index in the data set, and passes run in padded chunks of one fixed size, so the
verdicts do not depend on batch size, order, the number of processes, or on when an evaluation was killed and resumed.
Networks of this zoo run with channels last, which is faster; that too is only a matter of roundings.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rsnn_zoo import __version__, flags
from rsnn_zoo.adversarial import Examples, save_examples
from rsnn_zoo.attacks.adaptive import PILOT, Adaptive
from rsnn_zoo.attacks.base import Batch, check_eps
from rsnn_zoo.attacks.protocols import Member, full_name, protocol
from rsnn_zoo.attacks.queries import Square
from rsnn_zoo.attacks.signed import pgd
from rsnn_zoo.attacks.victim import ModelVictim, default_chunk, exact_arithmetic
from rsnn_zoo.data import ImageData, check_images, check_labels
from rsnn_zoo.distributed import Ranks
from rsnn_zoo.ledger import Ledger
from rsnn_zoo.provenance import digest, environment
from rsnn_zoo.report import MISCLASSIFIED, STANDS, Flag, Report, Run, by_steps, in_255, wilson
from rsnn_zoo.weights import WeightsError, serialize

__all__ = ["EPSILONS", "Report", "Run", "evaluate", "wilson"]

EPSILONS = tuple(k / 255 for k in (2, 4, 8, 16, 32, 64))
"""The radii of a published curve of robust accuracy."""

DRAWS = 16
"""Passes averaged where a model is random."""

CLEAN_CHECKS, GRADIENT_CHECKS = 256, 32
"""Images at which the sanity flags look without attacking them: forward passes, and gradients under each mode."""
STEP_CHECKS, QUERY_CHECKS = (5, 20), 100
"""Steps of the two PGD that are compared, and questions of the Square attack that gradient attacks are held against."""

PATIENCE = 30.0
"""Seconds after which the verdicts of a batch should be on disk: so much is lost where an evaluation is killed."""

_FELL = 0
"""Verdict about a sample under one member, beside ``STANDS``."""

Judge = Callable[[Tensor], tuple[list[int], Tensor | None]]
"""Positions of samples to their verdicts and, where they are kept, the images that these are about."""


@dataclass(frozen=True)
class _Samples:
    """What is attacked, on the device of the model."""

    images: Tensor
    labels: Tensor
    index: list[int]
    dataset: str
    split: str
    sha256: str
    mean: Sequence[float]
    std: Sequence[float]

    @staticmethod
    def of(data: ImageData | tuple[Tensor, Tensor], model: nn.Module, device: torch.device) -> _Samples:
        """Those of ``data``, checked."""
        images, labels = (data.pixels(), data.labels) if isinstance(data, ImageData) else data
        check_images(images, getattr(model, "in_chans", None), getattr(model, "img_size", None))
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images come with {len(labels)} labels")
        here = images.detach().to(device, torch.float32), labels.to(device)
        if isinstance(data, ImageData):
            info = data.info
            return _Samples(*here, data.index.tolist(), info.name, data.split, data.sha256, info.mean, info.std)
        sha256 = hashlib.sha256(images.detach().cpu().contiguous().numpy().tobytes())
        sha256.update(labels.cpu().contiguous().numpy().tobytes())
        std, mean = torch.std_mean(here[0], (0, 2, 3), correction=0)
        statistics = mean.tolist(), std.clamp(min=1e-3).tolist()
        return _Samples(*here, list(range(len(labels))), "tensors", "", sha256.hexdigest(), *statistics)


@dataclass
class _Engine:
    """Runs jobs: each a judgement of some samples, shared among the processes and kept in the state."""

    samples: _Samples
    victim: ModelVictim
    ledger: Ledger
    bar: Any
    seed: int
    batch_size: int
    keep: bool
    """Whether adversarial images are to be kept."""

    def __post_init__(self) -> None:
        self.place = {sample: position for position, sample in enumerate(self.samples.index)}
        self.accuracy = 1.0  # without attack: attacked are those that are classified correctly

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
            if took < PATIENCE / 2:
                size = min(2 * size, self.batch_size)
            known.update(zip(batch, verdicts, strict=True))
            if show:
                show(len(batch), len(known), sum(verdict == STANDS for verdict in known.values()))
        merged, seconds = self.ledger.merged(job)
        return {sample: merged[sample] for sample in wanted}, seconds

    def clean(self) -> list[int]:
        """For each sample STANDS or MISCLASSIFIED, without any attack."""

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
        for number, member in enumerate(members):
            if not left:
                break

            def judge(at: Tensor, member: Member = member) -> tuple[list[int], Tensor | None]:
                at = at.to(self.samples.labels.device)
                index = tuple(self.samples.index[i] for i in at.tolist())
                images, labels = self.samples.images[at], self.samples.labels[at]
                batch = Batch(images, labels, eps, index, self.seed, str(member))
                fell, found = member.attack(self.victim.under(member.mode), batch)
                return torch.where(fell, _FELL, STANDS).tolist(), found if self.keep else None

            def show(size: int, known: int, stand: int, member: Member = member, left: int = len(left)) -> None:
                robust = self.accuracy * left * stand / known / len(positions)
                self.bar.set_postfix_str(f"{name} {in_255(eps)}: robust {100 * robust:.1f} %, {member}", refresh=False)
                self.bar.update(size * self.ledger.ranks.size)

            found, took = self.judge(_job(str(member), eps), left, judge, show)
            seconds += took
            verdicts |= {sample: number for sample, verdict in found.items() if verdict == _FELL}
            left = [i for i in left if found[self.samples.index[i]] == STANDS]
            self.bar.n = before + len(positions) * len(members) - len(left) * (len(members) - number - 1)
            self.bar.refresh()
        return verdicts, seconds

    def pilot(self, eps: float, positions: Sequence[int]) -> Batch:
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
                images = self.ledger.images(_job("/".join(run.members[fell]), run.eps))
                rows += [(number, sample, fell, images[sample]) for sample, verdict in verdicts if verdict == fell]
        rows.sort(key=lambda row: (row[0], self.place[row[1]]))
        at = torch.tensor([self.place[sample] for _, sample, _, _ in rows], dtype=torch.long)
        numbers = torch.tensor([row[:3] for row in rows], dtype=torch.long).reshape(-1, 3)
        clean, labels = self.samples.images.cpu()[at], self.samples.labels.cpu()[at]
        pixels = np.frombuffer(b"".join(row[3] for row in rows), np.float32).copy()
        return Examples(
            torch.from_numpy(pixels).reshape(clean.shape), clean, labels, numbers[:, 1], numbers[:, 0], numbers[:, 2]
        )


def _job(member: str, eps: float) -> str:
    return f"{member} {in_255(eps)}|{eps!r}"


def _weights_sha256(model: nn.Module) -> str | None:
    try:
        return serialize(model, "")[1].sha256
    except (WeightsError, IndexError):  # a module that no entry can hold
        return None


def evaluate(
    model: nn.Module,
    data: ImageData | tuple[Tensor, Tensor],
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
    progress: bool = False,
) -> Report:
    """Robust accuracy under a protocol, by the worst case over its members for each sample.

    Where ``torch.distributed`` is initialised (``torchrun``), every process calls it alike, attacks its share of the
    samples and gets the whole report; it differs from that of one process in nothing but time and hardware.

    Args:
        model: A network of this zoo, or any module from images in [0, 1] to logits (B, K) with its normalisation
            inside. It is copied, never touched; the copy runs in evaluation mode, on the model's device, in float32.
            It must keep nothing from one forward pass to the next.
        data: An :class:`ImageData`, or images (N, C, H, W) in [0, 1] and labels (N,).
        attack: A protocol: see :func:`rsnn_zoo.attacks.protocols.protocol`; or several, each run on its own;
            or a mapping of several, each to an eps of its own or to several.
        eps: Radius of the L-infinity ball in units of pixels in [0, 1], or several, each run on its own.
        seed: Of all that is drawn.
        batch_size: Most samples between two writes of the state, which are fewer where an attack takes long; no
            influence on the verdicts.
        chunk: Samples that go through the network at once. The verdicts are those of this size, since a library may
            choose another algorithm for another one; the default depends on image size and device.
        precision: Of the gradients that attacks follow, ``"float32"`` or ``"bfloat16"`` (folded batch norms, faster).
            Verdicts are always the exact float32 network's; but with the latter it only judges the iterates that the
            16-bit network has misclassify, and the last, so fewer samples may fall.
        draws: Passes over which gradients and logits are averaged (EOT); by default 16 for a random model, else 1.
        checks: Samples that the sanity flags attack (see :mod:`rsnn_zoo.flags`); 0 for no flags.
        state: File (SQLite, on a local disk) that holds the verdicts so far: killed and called again, with any number
            of processes, an evaluation resumes from it.
        adversarial: File for the adversarial examples: see :func:`rsnn_zoo.adversarial.verify`.
        progress: Show a progress bar with the robust accuracy so far and the time left.

    Returns:
        The report.

    Raises:
        TypeError: For images or labels that are no tensors of the right kind.
        ValueError: For bad images or labels, an unknown protocol, eps outside [0, 1], a state of another evaluation, or
            a model that still holds the graph of an earlier forward pass.

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
    protocols = {full_name(name): protocol(name, model) for name in attack}
    radii = {
        full_name(name): [check_eps(e) for e in (mine if isinstance(mine, Sequence) else [mine])]
        for name, mine in attack.items()
    }
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("checks", checks, 0),
        ("draws", 1 if draws is None else draws, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if not radii or not all(radii.values()):
        raise ValueError("name at least one attack and one eps")
    parameter = next(model.parameters(), torch.zeros(()))
    if parameter.dtype != torch.float32:
        raise ValueError(f"verdicts are those of a float32 network, and this is {parameter.dtype}: use model.float()")
    samples = _Samples.of(data, model, parameter.device)
    chunk = chunk or default_chunk(samples.images)
    weights = digest(model)
    with _own_randomness(parameter.device, seed), exact_arithmetic(parameter.device):
        try:
            victim = ModelVictim(model, chunk, precision)
        except RuntimeError as error:
            raise ValueError(
                "the model cannot be copied: does it hold tensors of an earlier forward pass, such as membranes? Reset "
                "it at the end of its forward pass"
            ) from error
        classes = victim.logits(samples.images[:1]).shape[1]
        check_labels(samples.labels, classes)
        for member in (member for members in protocols.values() for member in members):
            if classes < (least := getattr(member.attack, "least_classes", 2)):
                raise ValueError(f"{member} needs at least {least} classes, and the model has {classes}: name others")
        is_random = flags.random_model(victim, samples.images[:chunk], draws or DRAWS)
        draws = draws or (DRAWS if is_random.raised else 1)
        if draws > 1:
            victim = ModelVictim(model, chunk, precision, draws)
        settings = {"seed": seed, "precision": precision, "chunk": chunk, "draws": draws}
        fingerprint = {
            "version": __version__,
            "model": weights,
            "data": samples.sha256,
            "index": samples.index,
            "adversarial": adversarial is not None,
            **settings,
        }
        hidden = not (progress and Ranks.current().main)
        here = environment(parameter.device) | {"processes": Ranks.current().size}
        with closing(Ledger(state, fingerprint, here)) as ledger, tqdm(disable=hidden, unit="attack") as bar:
            engine = _Engine(samples, victim, ledger, bar, seed, batch_size, adversarial is not None)
            clean = engine.clean()
            correct = [position for position, verdict in enumerate(clean) if verdict == STANDS]
            members = sum(len(radii[name]) * len(members) for name, members in protocols.items())
            bar.total = len(correct) * members
            runs = tuple(
                _run(engine, name, radius, members, correct)
                for name, members in protocols.items()
                for radius in radii[name]
            )
            found: list[Flag] = []
            if checks:
                found = [is_random, *_model_flags(engine, protocols)]
                found += _run_flags(engine, protocols, runs, correct, checks, classes)
            called = str(
                getattr(model, "pretrained_name", None) or getattr(model, "architecture", type(model).__name__)
            )
            if adversarial is not None:
                examples = engine.examples(runs)
                if ledger.ranks.main:
                    how = {"model": called, "digest": weights, "chunk": chunk, "draws": draws}
                    save_examples(adversarial, examples, victim, runs, **how)
    return Report(
        model=called,
        weights_sha256=_weights_sha256(model),
        dataset=samples.dataset,
        split=samples.split,
        data_sha256=samples.sha256,
        index=tuple(samples.index),
        correct=tuple(verdict == STANDS for verdict in clean),
        runs=runs,
        settings=settings | {"checks": checks},
        environment=here | ({"resumed_from": ledger.sessions} if ledger.sessions else {}),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        flags=tuple(found),
    )


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Global generators of our own, for models that draw from them; afterwards they are as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _run(engine: _Engine, name: str, eps: float, members: Sequence[Member], correct: Sequence[int]) -> Run:
    pilot = engine.pilot(eps, correct)
    members = [member.learned(engine.victim, pilot) for member in members]
    verdicts, seconds = engine.attack(name, eps, members, correct)
    return Run(
        name,
        eps,
        tuple((member.attack.name, member.mode_name) for member in members),
        tuple(verdicts.get(sample, MISCLASSIFIED) for sample in engine.samples.index),
        seconds,
        tuple(getattr(member.attack, "steps", None) for member in members),
        {number: m.attack.to_json() for number, m in enumerate(members) if isinstance(m.attack, Adaptive)},
    )


def _model_flags(engine: _Engine, protocols: Mapping[str, Sequence[Member]]) -> list[Flag]:
    """What a look at the model shows."""
    samples, victim = engine.samples, engine.victim
    images, labels = samples.images[:CLEAN_CHECKS], samples.labels[:CLEAN_CHECKS]
    modes = [member.mode for members in protocols.values() for member in members]
    return [
        flags.ignores_input(victim.logits(images)),
        flags.normalisation_outside(victim, images, labels, samples.mean, samples.std),
        flags.zero_gradients(victim, images[:GRADIENT_CHECKS], labels[:GRADIENT_CHECKS], modes),
    ]


def _run_flags(
    engine: _Engine,
    protocols: Mapping[str, Sequence[Member]],
    runs: Sequence[Run],
    correct: Sequence[int],
    n: int,
    classes: int,
) -> list[Flag]:
    """What attacks on the first ``n`` samples show: from far away, with more steps, and without gradients."""
    name, members = max(protocols.items(), key=lambda item: len(item[1]))
    index = engine.samples.index
    probe = [position for position in correct if position < n]
    radii = sorted(run.eps for run in runs if run.protocol == name)

    def standing(what: str, eps: float, member: Member, positions: Sequence[int]) -> list[int]:
        engine.bar.total += len(positions)
        found, _ = engine.attack(f"check {what}", eps, [member], positions)
        return [position for position in positions if found[index[position]] == STANDS]

    seen = min(n, len(index))
    last = [run.verdicts for run in runs if run.eps == radii[-1]]
    left = [position for position in probe if all(verdicts[position] == STANDS for verdicts in last)]
    far, enough = probe, min(seen / classes, len(left))
    for number, member in enumerate(members):
        if len(far) > enough:  # else neither flag can be raised
            member = member.learned(engine.victim, engine.pilot(flags.FAR, correct))
            far = standing(f"far {number}", flags.FAR, member, far)
    few, many = (standing(f"pgd{k}", radii[len(radii) // 2], Member(pgd(k)), probe) for k in STEP_CHECKS)
    square = standing("square", radii[-1], Member(Square(QUERY_CHECKS)), left)
    curves = [
        [run.robust_accuracy for run in sorted(runs, key=lambda run: run.eps) if run.protocol == one]
        for one in protocols
    ]
    longer = [
        [run.robust_accuracy for _, run in sorted(one.items())]
        for one in by_steps((run.protocol, run.eps, run) for run in runs).values()
    ]
    return [
        flags.above_chance(len(far) / seen, classes),
        flags.gradient_free(runs, also=len(left) - len(square)),
        flags.more_eps([*curves, [len(left) / seen, len(far) / seen]] if radii[-1] < flags.FAR else curves),
        flags.more_steps([*longer, [len(few) / seen, len(many) / seen]]),
    ]
