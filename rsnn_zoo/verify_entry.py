"""Hold a published entry to its word: its files against each other, and its verdicts against attacks run here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rsnn_zoo._utils.files import MAX_JSON_BYTES
from rsnn_zoo.data.images import ImageData, load_dataset
from rsnn_zoo.evaluation import flags
from rsnn_zoo.evaluation.evaluation import evaluate
from rsnn_zoo.hub.registry import create_model
from rsnn_zoo.hub.resolve import CARD, EVIDENCE, Entry, resolve
from rsnn_zoo.report.card import check_card
from rsnn_zoo.report.evidence import (
    MAX_EVIDENCE_BYTES,
    EvidenceError,
    PublishedRun,
    images_of,
    load_evidence,
    published_index,
    published_runs,
    published_settings,
)
from rsnn_zoo.report.report import Run, in_255
from rsnn_zoo.spec.datasets import DATASETS
from rsnn_zoo.training.recipe import split_of

__all__ = ["TOLERANCE", "Check", "verify"]

TOLERANCE = 0.02
"""Share of the verdicts that may differ: another processor rounds otherwise, and a spike can hang on a rounding."""


@dataclass(frozen=True)
class Check:
    """One thing that was verified.

    Attributes:
        what: ``"config"``, ``"weights"``, ``"evidence"``, ``"card"``, or ``"verdicts"`` and at which eps.
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
    eps: float = 8 / 255,
    source: str | Path | None = None,
    root: str | Path = "data",
    download: bool = False,
    device: torch.device | str = "cpu",
    progress: bool = False,
    **where: Any,
) -> list[Check]:
    """Verify an entry: config, weights, evidence, card, and verdicts recomputed with the published settings.

    Args:
        name: As of :func:`rsnn_zoo.create_model`: a published name, ``"hf-hub:org/name"`` or ``"local-dir:path"``.
        images: Recompute the first so many verdicts of the run at ``eps`` that found least to be robust; None for all
            of all runs, where adaptive ensembles learn anew, and not from the evidence.
        eps: Radius in [0, 1] of the run to recompute; without one there, the next is taken.
        source: An ``.npz`` file or folder in place of the data set that the evidence names.
        root: Folder of the named data sets on disk.
        download: Whether a named data set may be downloaded.
        device: Where to compute.
        progress: Show a progress bar.
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
    entry = resolve(name, **where)
    checks = [Check("config", True, entry.origin)]
    checks += [_tried(what, check, entry) for what, check in _OF_FILES.items()]
    if not all(check.holds for check in checks):
        return checks
    evidence = _evidence(entry)
    dataset, split = evidence["dataset"], evidence.get("split", "test")
    record = dataset if dataset in DATASETS else None
    if not (source or record):
        raise ValueError(f"{name} was evaluated on {dataset!r}, no data set of the zoo: pass it as source (--data)")
    origin = {"root": root, "download": download, **split_of(entry.config.training)}
    data = load_dataset(source or record, split, dataset=record, **origin)
    model = create_model(name, pretrained=True, **where).to(device)
    runs = published_runs(evidence)
    chosen = runs if images is None else [min(runs, key=lambda run: (abs(run.eps - eps), run.verdicts.count(-1)))]
    for run in chosen:
        checks.append(
            _tried(f"verdicts at {in_255(run.eps)}", _recompute, model, data, evidence, run, images, progress)
        )
    return checks


def _tried(what: str, check: Callable[..., str], *args: Any) -> Check:
    try:
        return Check(what, True, check(*args))
    except (OSError, ValueError) as error:
        return Check(what, False, str(error))


def _evidence(entry: Entry) -> dict[str, Any]:
    return load_evidence(entry.get(EVIDENCE, MAX_EVIDENCE_BYTES), entry.config)


def _check_weights(entry: Entry) -> str:
    entry.load_weights()
    return f"SHA-256 {entry.sha256}"


def _check_evidence(entry: Entry) -> str:
    evidence = _evidence(entry)
    runs = published_runs(evidence)
    _check_flags(evidence)
    said = f"made with these weights; {len(runs)} runs on {images_of(evidence)}, whose verdicts give the accuracies"
    unchecked = [said for key, said in _UNCHECKED.items() if key in evidence]
    return said + (f"; not checked: {', '.join(unchecked)}" if unchecked else "")


_UNCHECKED = {
    "ann": "accuracies of the ANN",
    "spikes": "spikes",
    "energy": "energy",
    "flags": "flags that take more than verdicts",
}


def _check_flags(evidence: Mapping[str, Any]) -> None:
    """Hold what is flagged against what the verdicts alone show.

    Raises:
        EvidenceError: If a flag that they raise is not raised.
    """
    members = [tuple((a["attack"], str(a.get("mode"))) for a in run.get("attacks", [])) for run in evidence["runs"]]
    published = zip(published_runs(evidence), members, strict=True)
    runs = [Run(run.protocol, run.eps, members, run.verdicts, 0.0) for run, members in published]
    for flag in (flags.gradient_free(runs), flags.more_eps(runs), flags.more_steps(runs)):
        if flag.raised and not evidence.get("flags", {}).get(flag.name, {}).get("raised"):
            raise EvidenceError(f"the flag {flag.name} is not raised, and by the verdicts {flag.message}")


def _check_card(entry: Entry) -> str:
    text = entry.get(CARD, MAX_JSON_BYTES).read_text(encoding="utf-8")
    check_card(text, entry.config, _evidence(entry))
    return "every figure is the evidence's"


_OF_FILES: dict[str, Callable[[Entry], str]] = {
    "weights": _check_weights,
    "evidence": _check_evidence,
    "card": _check_card,
}


def _recompute(
    model: nn.Module, data: ImageData, evidence: dict[str, Any], run: PublishedRun, images: int | None, progress: bool
) -> str:
    """Attack the first images as the evidence says, and compare verdict by verdict."""
    published = run.verdicts[:images]
    rows = {number: row for row, number in enumerate(data.index.tolist())}
    at = [rows.get(number) for number in published_index(evidence)]
    whole = None if None in at else data.select(at)
    if whole is None or evidence.get("data_sha256") not in (None, whole.sha256):
        raise EvidenceError(f"the evidence is of other images than the {len(data)} at hand: name its data set")
    part = whole.select(len(published))
    # obeyed besides: its protocols, radii and images, and where a part is attacked, what ensembles are said to have
    # learned on the whole; low bars weaken them, so with all images they learn by themselves
    settings = published_settings(evidence) | {
        "batch_size": len(part),
        "taught": run.learned if len(part) < len(whole) else None,
    }
    report = evaluate(model, part, run.protocol, run.eps, checks=0, progress=progress, **settings)
    pairs = [(here, there) for here, there in zip(report.runs[0].verdicts, published, strict=True) if here != there]
    differ = sum(min(here, there) < 0 for here, there in pairs)  # else it fell in both, to another member
    if differ > max(1, TOLERANCE * len(published)):
        raise EvidenceError(f"{differ} of the first {len(published)} verdicts differ")
    equal = f"the first {len(published)} of {run.protocol} are equal"
    equal += f" but for {differ}: a rounding each" if differ else ""
    return equal + (f"; {len(pairs) - differ} fell to another attack" if len(pairs) > differ else "")
