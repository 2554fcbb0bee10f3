"""Hold a published entry to its word: its files against each other, and its verdicts against attacks run here."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rsnn_zoo._utils.defaults import device_of
from rsnn_zoo._utils.files import MAX_JSON_BYTES, read_text
from rsnn_zoo.data.images import ImageData, load_dataset
from rsnn_zoo.evaluation.claims import check_attacks, check_flags, tolerated_moves
from rsnn_zoo.evaluation.costs import Cost, chances_of_missing, cost_of, sources_of
from rsnn_zoo.evaluation.evaluation import evaluate
from rsnn_zoo.evaluation.protocols import Plan, plan
from rsnn_zoo.evaluation.transfer import packaged_only
from rsnn_zoo.hub.registry import load_entry
from rsnn_zoo.hub.resolve import Entry, held, is_packaged, resolve
from rsnn_zoo.report.card import check_card
from rsnn_zoo.report.evidence import (
    MAX_EVIDENCE_BYTES,
    EvidenceError,
    PublishedRun,
    check_shown,
    images_of,
    load_evidence,
    published_index,
    published_runs,
    published_settings,
)
from rsnn_zoo.report.report import in_255
from rsnn_zoo.spec.config import CARD, EVIDENCE
from rsnn_zoo.spec.datasets import DATASETS
from rsnn_zoo.training.recipe import split_of

__all__ = ["TOLERANCE", "Check", "verify"]

TOLERANCE = 0.02
"""Share of the verdicts that may differ: another processor rounds otherwise, and a spike can hang on a rounding."""


@dataclass(frozen=True)
class Check:
    """One thing that was verified.

    Attributes:
        what: ``"config"``, ``"weights"``, ``"evidence"``, ``"card"``, ``"verdicts"`` and at which eps, ``"attacks"``
            where a run lists others than its protocol's, or ``"draw"``: how verdicts were drawn and what that proves.
        holds: Whether it is as published.
        said: What was found.
    """

    what: str
    holds: bool
    said: str


def verify(
    name: str,
    images: int | None = 64,
    *,
    eps: float | None = None,
    seed: int | None = None,
    source: str | Path | None = None,
    root: str | Path = "data",
    download: bool = False,
    device: torch.device | str = "cpu",
    progress: bool = False,
    allow_fetch: bool = False,
    allow_cost: bool = False,
    **where: Any,
) -> list[Check]:
    """Verify an entry: config, weights, evidence, card, and verdicts recomputed with the published settings.

    Args:
        name: As of :func:`rsnn_zoo.create_model`: a published name, ``"hf-hub:org/name"`` or ``"local-dir:path"``.
        images: Recompute so many verdicts, drawn among all runs, radii and images; None for all, where adaptive
            ensembles learn anew, and not from the evidence.
        eps: Radius in [0, 1]; draw among the runs at this one, or the next to it, alone.
        seed: Of the draw; by default one that nobody could have known. What is found says it.
        source: An ``.npz`` file or folder in place of the data set that the evidence names.
        root: Folder of the named data sets on disk.
        download: Whether a named data set may be downloaded.
        device: Where to compute.
        progress: Show a progress bar.
        allow_fetch: Load other models that the evidence says its attacks transfer from, wherever they are.
        allow_cost: Recompute at any cost; else a verdict that would take too much memory or time is refused.
        **where: ``revision``, ``cache_dir``, ``local_files_only``, ``endpoint``, as of ``create_model``.

    Returns:
        What was checked. Verdicts are recomputed only where everything before them holds.

    Raises:
        LookupError: If nobody published that name.
        OSError: If the entry or the data set cannot be had.
        ValueError: If the name, the config or ``images`` cannot be used, or a ``source`` is needed.

    Example:
        >>> all(check.holds for check in verify("hf-hub:colleague/their_snn"))  # doctest: +SKIP
        True
    """
    if images is not None and images < 1:
        raise ValueError(f"images must be at least 1, got {images}")
    with held(name):
        entry = resolve(name, **where)
        word = "; not checked: how it was trained" if entry.config.training else ""
        checks = [Check("config", True, f"{entry.origin}{word}")]
        checks += [_as_check(what, check, entry) for what, check in _OF_FILES.items()]
        if not all(check.holds for check in checks):
            return checks
        evidence = _evidence(entry)
        model = load_entry(entry, name).to(device)
        step = load_entry(entry, name, timesteps=1).to(device) if entry.config.timesteps else model
    dataset, split = evidence["dataset"], evidence.get("split", "test")
    record = dataset if dataset in DATASETS else None
    if not (source or record):
        raise ValueError(f"{name} was evaluated on {dataset!r}, no data set of the zoo: pass it as source (--data)")
    origin = {"root": root, "download": download, **split_of(entry.config.training)}
    data = load_dataset(source or record, split, dataset=record, **origin)
    seed = secrets.randbits(32) if seed is None else seed
    drawn = _drawn(published_runs(evidence), images, eps, seed)
    judged = _Recomputed(model, step, evidence, images is None, allow_fetch, allow_cost, progress)
    checks += [_as_check(f"verdicts at {in_255(run.eps)}", judged.compare, run, rows, data) for run, rows in drawn]
    attacks = _as_check("attacks", judged.check_attacks)  # of runs too that no verdict was drawn of
    checks += [] if attacks.holds else [attacks]
    return [*checks, _as_check("draw", judged.conclude, drawn, "all" if images is None else f"seed {seed}")]


def _drawn(
    runs: Sequence[PublishedRun], images: int | None, eps: float | None, seed: int
) -> list[tuple[PublishedRun, list[int]]]:
    """Draw so many of all verdicts, at one radius or at all, by run."""
    if eps is not None and images is not None:
        nearest = min((run.eps for run in runs), key=lambda each: abs(each - eps))
        runs = [run for run in runs if run.eps == nearest]
    n = len(runs[0].verdicts)
    numbers = range(n * len(runs))
    if images is not None and images < len(numbers):
        numbers = sorted(random.Random(seed).sample(numbers, images))
    rows = [[number % n for number in numbers if number // n == at] for at in range(len(runs))]
    return [(run, mine) for run, mine in zip(runs, rows, strict=True) if mine]


def _as_check(what: str, check: Callable[..., str], *args: Any) -> Check:
    try:
        return Check(what, True, check(*args))
    except (OSError, ValueError) as error:
        return Check(what, False, str(error))


def _evidence(entry: Entry) -> dict[str, Any]:
    return load_evidence(entry.get(EVIDENCE, MAX_EVIDENCE_BYTES), entry.config)


def _check_weights(entry: Entry) -> str:
    entry.load_weights()
    shards = len(entry.config.weights.shards) if entry.config.weights else 0
    return f"SHA-256 {entry.sha256}" + (f", of an index and {shards} shards" if shards else "")


def _check_evidence(entry: Entry) -> str:
    evidence = _evidence(entry)
    runs = published_runs(evidence)
    check_shown(evidence)
    check_flags(evidence)
    said = f"made with these weights; {len(runs)} runs on {images_of(evidence)}, whose verdicts give the accuracies"
    unchecked = [said for key, said in _UNCHECKED.items() if key in evidence]
    return said + (f"; not checked: {', '.join(unchecked)}" if unchecked else "")


_UNCHECKED = {
    "clean_on_all": "accuracy on all images",
    "ann": "accuracies of the ANN",
    "spikes": "spikes",
    "energy": "energy",
    "flags": "flags that take more than verdicts",
    "versions": "versions, hardware and minutes",
}


def _check_card(entry: Entry) -> str:
    text = read_text(entry.get(CARD, MAX_JSON_BYTES), MAX_JSON_BYTES)
    repo, at, _ = entry.origin.partition("@")
    named = check_card(text, entry.config, _evidence(entry), repo if at and "/" in repo and ":" not in repo else None)
    return "it is what config and evidence make" + (f"; it says to load hf-hub:{named}" if named else "")


_OF_FILES: dict[str, Callable[[Entry], str]] = {
    "weights": _check_weights,
    "evidence": _check_evidence,
    "card": _check_card,
}


class _Recomputed:
    """Verdicts recomputed here, and how many of them differ."""

    def __init__(
        self,
        model: nn.Module,
        step: nn.Module,
        evidence: Mapping[str, Any],
        all_of_them: bool,
        allow_fetch: bool,
        allow_cost: bool,
        progress: bool,
    ):
        self.model, self.step, self.evidence, self.all = model, step, evidence, all_of_them
        self.allow_fetch, self.allow_cost, self.progress = allow_fetch, allow_cost, progress
        self.differing = self.moved = self.fallen = self.compared = 0
        self.plans: dict[str, Plan] = {}
        self.settings = published_settings(evidence)

    def check_attacks(self) -> str:
        """Hold the attacks that each run lists against those that its protocol runs.

        Raises:
            EvidenceError: If they are others.
        """
        for run in published_runs(self.evidence):
            if not self._unnamed(run):  # refused where a verdict of it is drawn
                check_attacks(run, self._plan(run))
        return "they are those of their protocols"

    def _unnamed(self, run: PublishedRun) -> list[str]:
        """Models that the run transfers from, and that nobody allowed to load."""
        sources = [] if self.allow_fetch else sources_of(run.protocol)
        return [other for other in sources if not is_packaged(other, weights=True)]

    def _plan(self, run: PublishedRun) -> Plan:
        if run.protocol not in self.plans:
            try:
                with packaged_only(not self.allow_fetch):
                    found = plan(run.protocol, self.model)
            except LookupError as error:
                raise EvidenceError(str(error)) from None
            self.plans[run.protocol] = found.of_classes(self.model.num_classes)
        return self.plans[run.protocol]

    def compare(self, run: PublishedRun, rows: list[int], data: ImageData) -> str:
        """Attack these images as the evidence says, and compare verdict by verdict."""
        part = self._part(rows, data)
        self._allow(run, part)
        check_attacks(run, self._plan(run))
        settings = self.settings | {
            "batch_size": min(256, len(part)),
            "taught": run.learned if len(rows) < len(run.verdicts) else None,
        }
        with packaged_only(not self.allow_fetch):
            report = evaluate(self.model, part, run.protocol, run.eps, checks=0, progress=self.progress, **settings)
        published = [run.verdicts[row] for row in rows]
        pairs = [(here, there) for here, there in zip(report.runs[0].verdicts, published, strict=True) if here != there]
        differ = sum(min(here, there) < 0 for here, there in pairs)  # else it fell in both, to another member
        moved, fallen = len(pairs) - differ, sum(there >= 0 for there in published)
        self.differing, self.compared = self.differing + differ, self.compared + len(rows)
        self.moved, self.fallen = self.moved + moved, self.fallen + fallen
        if differ > _tolerated(len(rows)):
            raise EvidenceError(f"{differ} of {len(rows)} verdicts of {run.protocol} differ")
        if moved > tolerated_moves(fallen):
            raise EvidenceError(
                f"{moved} of {fallen} images that {run.protocol} fells fall to another attack of it than the evidence "
                "says"
            )
        equal = f"{len(rows)} of {len(run.verdicts)} verdicts of {run.protocol} are equal"
        equal += f" but for {differ}: a rounding each" if differ else ""
        return equal + (f"; {moved} fell to another attack" if moved else "")

    def _part(self, rows: list[int], data: ImageData) -> ImageData:
        places = {number: row for row, number in enumerate(data.index.tolist())}
        at = [places.get(number) for number in published_index(self.evidence)]
        whole = None if None in at else data.select(at)
        if whole is None or self.evidence.get("data_sha256") not in (None, whole.sha256):
            raise EvidenceError(f"the evidence is of other images than the {len(data)} at hand: name its data set")
        return whole.select(rows)

    def _allow(self, run: PublishedRun, part: ImageData) -> None:
        """Refuse what nobody asked for: models from elsewhere, and costs without bounds.

        Raises:
            EvidenceError: If it is not allowed.
        """
        for other in self._unnamed(run):
            raise EvidenceError(
                f"{run.protocol[:100]} would load {other[:100]!r}, which you have not named: allow it by allow_fetch "
                "(--allow-fetch)"
            )
        members = self._plan(run).members
        if not self.allow_cost and (unknown := [member for member in members if not member.is_bounded]):
            raise EvidenceError(
                f"nobody knows what {unknown[0]} would take in memory and time: allow it by allow_cost (--allow-cost)"
            )
        cost = self._cost(sum(member.cost for member in members), part)
        if not self.allow_cost and cost.excess:
            raise EvidenceError(
                f"{run.protocol[:100]} with {self.settings} would take {cost.excess}: allow it by allow_cost "
                "(--allow-cost)"
            )

    def _cost(self, gradients: int, part: ImageData) -> Cost:
        timesteps = getattr(self.model, "timesteps", None)
        return cost_of(self.step, part.pixels([0]).to(device_of(self.model)), timesteps, gradients, self.settings)

    def conclude(self, drawn: Sequence[tuple[PublishedRun, list[int]]], how: str) -> str:
        """What all of it proves.

        Raises:
            EvidenceError: If more verdicts differ than roundings explain.
        """
        tolerated, wanted = _tolerated(self.compared), sum(len(rows) for _, rows in drawn)
        if self.compared < wanted:
            raise EvidenceError(f"{wanted - self.compared} of {wanted} verdicts could not be recomputed ({how})")
        if self.differing > tolerated:
            raise EvidenceError(f"{self.differing} of {wanted} verdicts differ ({how})")
        if self.moved > tolerated_moves(self.fallen):
            raise EvidenceError(
                f"{self.moved} of {self.fallen} images that fell do so to another attack than is said ({how})"
            )
        said = f"{wanted} verdicts recomputed ({how}), {self.differing} differ"
        if self.all:
            return said
        total = sum(len(run.verdicts) for run, _ in drawn)
        chances = chances_of_missing(total, wanted, tolerated)
        return f"{said}; of {total} in these runs, the probability of missing {chances}"


def _tolerated(drawn: int) -> int:
    """How many of so many verdicts may hang on a rounding."""
    return min(drawn - 1, max(1, int(TOLERANCE * drawn))) if drawn else 0
