"""``evaluation.json`` of an entry, the evidence: read and checked against the config. Free of torch."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from rsnn_zoo.config import ModelConfig
from rsnn_zoo.files import load_json
from rsnn_zoo.report import in_255
from rsnn_zoo.schema import Section

MAX_EVIDENCE_BYTES = 2**24  # a verdict for each image, attack and eps

NETWORK = ("timesteps", "reset", "leak", "initial")
"""What an SNN computes by and its weights do not say."""

_MAX_IMAGES = 10**7
_MAX_PROCESSES = 10**6
_TEXT = re.compile(r"[^\x00-\x1f]{1,500}")


class EvidenceError(ValueError):
    """An entry whose evidence does not belong to its weights, or does not say what it claims to."""


@dataclass(frozen=True)
class PublishedRun:
    """One protocol at one radius, as published.

    Attributes:
        protocol: Name of the protocol.
        eps: Radius, in units of pixels in [0, 1].
        verdicts: By image: number of the attack that felled it, -1 if it stands, -2 if wrong without any attack.
        learned: What its adaptive ensembles had learned, by member.
    """

    protocol: str
    eps: float
    verdicts: tuple[int, ...]
    learned: Mapping[str, Any] = field(default_factory=dict)


def load_evidence(path: str | os.PathLike[str], config: ModelConfig) -> dict[str, Any]:
    """Read the ``evaluation.json`` that belongs to a config.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If it is not JSON, or ``check_evidence`` misses something.
        EvidenceError: If it is of other weights, or older than they are.
    """
    evidence = load_json(path, MAX_EVIDENCE_BYTES)
    check_evidence(config, evidence)
    return evidence


def check_evidence(config: ModelConfig, evidence: Mapping[str, Any]) -> None:
    """Check that the evidence was made with the weights of this config, after them, and that a card can be made of it.

    Raises:
        ConfigError: If it lacks what a card needs; names the key.
        EvidenceError: If it is of other weights, or older than they are; says what to do.
    """
    top = Section(evidence, f"the evidence of {config.name}")
    remedy = f"evaluate {config.name} again with `rsnn-zoo evaluate`"
    if config.weights is None or evidence.get("weights_sha256") != config.weights.sha256:
        raise EvidenceError(f"The evidence of {config.name} was made with other weights; {remedy}")
    network = top.section("network", optional=True)
    if differing := [key for key in NETWORK if key in network.content and network.content[key] != getattr(config, key)]:
        raise EvidenceError(f"The evidence of {config.name} was made with another {', '.join(differing)}; {remedy}")
    if config.created and parse_time(evidence.get("created")) < parse_time(config.created):
        raise EvidenceError(f"The evidence of {config.name} is older than its weights; {remedy}")
    n = top.integer("n", 1, _MAX_IMAGES)
    for key in ("cores", "threads", "processes"):
        if evidence.get(key) is not None:
            top.integer(key, 1, _MAX_PROCESSES)
    top.text("dataset", _TEXT)
    for key in ("settings", "versions", "spikes", "energy"):
        top.section(key, optional=True)
    flags = top.section("flags", optional=True)
    for name in flags.content:
        if (flag := flags.section(name)).value("raised"):
            flag.text("message", _TEXT)
    for run in _accuracies(top):
        run.number("seconds", 0.0, 1e12, default=0.0)
        for attack in run.sections("attacks"):
            attack.text("attack", _TEXT)
            attack.integer("felled", 0, n)
    if "ann" in evidence:
        ann = top.section("ann")
        ann.text("name", _TEXT)
        ann.integer("n", 1, _MAX_IMAGES)
        _accuracies(ann)


def _accuracies(report: Section) -> list[Section]:
    """The runs, once they and the accuracy without attack are seen to be there."""
    clean, runs, robust = report.section("clean"), report.sections("runs"), report.sections("robust")
    for run in runs:
        run.text("protocol", _TEXT)
        run.section("left_out", optional=True)
    for section in (*runs, *robust):
        section.number("eps", 0.0, 1.0)
    accuracies = [(section, "accuracy") for section in (clean, *robust)]
    for section, key in [*accuracies, *((run, "robust_accuracy") for run in runs)]:
        section.number(key, 0.0, 1.0)
        section.numbers("ci95", 2, 0.0, 1.0)
    return runs


def published_runs(evidence: Mapping[str, Any]) -> list[PublishedRun]:
    """Return the runs with the verdict on each image, once the accuracies are seen to be those of the verdicts.

    Raises:
        EvidenceError: If verdicts are missing or contradict what is claimed.
    """
    runs = []
    for run in evidence.get("runs", []):
        place = f"run {run['protocol']} at eps {in_255(run['eps'])}"
        listed = run.get("verdicts")
        try:
            verdicts = tuple(int(v) for v in (listed.split() if isinstance(listed, str) else listed))
        except (TypeError, ValueError):
            raise EvidenceError(f"{place} holds no readable verdicts") from None
        n = len(verdicts)
        if n != evidence["n"]:
            raise EvidenceError(f"{place} holds {n} verdicts for {evidence['n']} images")
        claims = (
            ("robust", run["robust_accuracy"], verdicts.count(-1) / n),
            ("clean", evidence["clean"]["accuracy"], 1 - verdicts.count(-2) / n),
        )
        for what, claimed, counted in claims:
            if abs(claimed - counted) > 1e-6:
                raise EvidenceError(f"{place} claims {what} accuracy {claimed:.4f}, its verdicts say {counted:.4f}")
        learned = {f"{a['attack']}/{a.get('mode')}": a["learned"] for a in run.get("attacks", []) if "learned" in a}
        runs.append(PublishedRun(run["protocol"], run["eps"], verdicts, learned))
    for claim in evidence.get("robust", []):
        if claim["eps"] not in {run.eps for run in runs}:
            raise EvidenceError(f"a worst case at eps {in_255(claim['eps'])} is claimed, where nothing was run")
        below = [run.verdicts for run in runs if run.eps <= claim["eps"]]
        stand = sum(set(each) == {-1} for each in zip(*below, strict=True))
        if abs(claim["accuracy"] - stand / evidence["n"]) > 1e-6:
            raise EvidenceError(
                f"the worst case at eps {in_255(claim['eps'])} is claimed to be {claim['accuracy']:.4f}, the "
                f"verdicts say {stand / evidence['n']:.4f}"
            )
    return runs


def parse_time(text: Any) -> datetime:
    """Return the time that ISO 8601 text stands for, in UTC where it names no zone; the beginning of time if none."""
    try:
        time = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return datetime.min.replace(tzinfo=timezone.utc)
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
