"""``evaluation.json`` of an entry, the evidence: read and checked against the config. Free of torch."""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from rsnn_zoo._utils.files import load_json
from rsnn_zoo.report.report import FIRST, MISCLASSIFIED, STANDS, in_255, wilson
from rsnn_zoo.spec.config import ModelConfig
from rsnn_zoo.spec.datasets import SPLITS
from rsnn_zoo.spec.names import near_matches
from rsnn_zoo.spec.schema import Section
from rsnn_zoo.spec.units import ABSOLUTE, UNITS

Evidence = Mapping[str, Any]
"""What ``evaluation.json`` says, as :func:`check_evidence` lets it pass."""

MAX_EVIDENCE_BYTES = 2**24  # a verdict for each image, attack and eps

NETWORK = ("timesteps", "reset", "leak", "initial")
"""What an SNN computes by and its weights do not say."""

SETTINGS = {"seed": (0, 2**64 - 1), "chunk": (1, 4096), "draws": (1, 1024)}
"""Bounds of the integers among the settings, since whoever recomputes a verdict takes them from a stranger."""
PRECISIONS = ("float32", "bfloat16", "folded")
"""The keys of ``attacks.gradients.COMPUTE_DTYPES``, then ``attacks.victim.FOLDED``: a test holds them together, since
those need torch."""

FLAGS = (
    *("random_model", "ignores_input", "normalisation_outside", "zero_gradients", "depends_on_batch", "inconsistent"),
    *("knows_images", "hidden_margins", "other_network", "tied_logits", "above_chance", "gradient_free"),
    *("more_eps", "more_steps"),
)
"""Of ``evaluation.flags``, likewise."""

SHOWN_SETTINGS = (*SETTINGS, "precision", "units", "checks")
"""Those that a card shows."""
_COUNTED_COSTS = {
    "spikes": ("images", "per_image", "rates"),
    "energy": (
        *("images", "ann_macs", "macs", "accumulates", "ann_nanojoule", "nanojoule", "ratio"),
        *("picojoule_per_mac", "picojoule_per_accumulate"),
    ),
}
"""What ``evaluation.energy`` says; a card shows all of it, so nothing else may stand there."""

_MAX_IMAGES = 10**7
_MAX_PROCESSES = 10**6
_ROUNDING = 1e-6
_SPLIT = re.compile(f"({'|'.join(SPLITS)})?")  # none where images came as tensors
_TEXT = re.compile(r"[^\x00-\x1f]{1,500}")
_NAME = re.compile(r"[^\x00-\x20|<>]{1,300}")
_VERSION = re.compile(r"[0-9A-Za-z.+!_-]{1,64}")


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
        claimed: All that is said of it, as it stands there.
    """

    protocol: str
    eps: float
    verdicts: tuple[int, ...]
    learned: Mapping[str, Any] = field(default_factory=dict)
    claimed: Mapping[str, Any] = field(default_factory=dict, repr=False)


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
    # of these weights; but whoever wrote it, all that a card or a verification reads has to be of its kind
    n = top.integer("n", 1, _MAX_IMAGES)
    settings = top.section("settings", optional=True)
    integers = [(top, key, (1, _MAX_PROCESSES)) for key in ("cores", "threads", "processes")]
    for section, key, bounds in [*integers, *((settings, key, bounds) for key, bounds in SETTINGS.items())]:
        if section.content.get(key) is not None:
            section.integer(key, *bounds)
    top.text("dataset", _TEXT)
    top.text("split", _SPLIT, default="test")
    settings.one_of("precision", PRECISIONS, default=PRECISIONS[0])
    settings.one_of("units", UNITS, default=ABSOLUTE)
    for key in ("versions", *_COUNTED_COSTS):
        top.section(key, optional=True)
    flags = top.section("flags", optional=True)
    for name in flags.content:
        if (flag := flags.section(name)).value("raised"):
            flag.text("message", _TEXT)
    for run in _accuracies(top):
        run.number("seconds", 0.0, 1e12, default=0.0)
        for attack in run.sections("attacks"):
            attack.text("attack", _TEXT)
            attack.text("mode", _TEXT, default="")
            attack.integer("felled", 0, n)
    if "clean_on_all" in evidence:
        whole = top.section("clean_on_all")
        images, accuracy = whole.integer("n", n, _MAX_IMAGES), whole.number("accuracy", 0.0, 1.0)
        what = "the accuracy on all images is claimed to be"
        _check_claim(what, accuracy, whole.numbers("ci95", 2, 0.0, 1.0), round(accuracy * images), images)
    if "ann" in evidence:
        ann = top.section("ann")
        ann.text("name", _TEXT)
        ann.integer("n", 1, _MAX_IMAGES)
        _accuracies(ann)


def check_shown(evidence: Mapping[str, Any]) -> None:
    """Refuse what a card would show beside the figures and no evaluation writes: it could say anything.

    Args:
        evidence: As :func:`check_evidence` lets it pass.

    Raises:
        ConfigError: If a flag, a version or a cost is none that an evaluation writes.
    """
    top = Section(evidence, "the evidence")
    settings, versions, flags = (top.section(key, optional=True) for key in ("settings", "versions", "flags"))
    for name in flags.content:
        if name not in FLAGS:
            raise flags.error(name, f"is no sanity flag{near_matches(name, FLAGS)}")
    if settings.content.get("checks") is not None:
        settings.integer("checks", 0, _MAX_IMAGES)
    for key, value in versions.content.items():
        if not _VERSION.fullmatch(key) or (value is not None and not _VERSION.fullmatch(str(value))):
            raise versions.error(key, f"is {value!r:.100}, no version")
    for part, known in _COUNTED_COSTS.items():
        _check_numbers(top.section(part, optional=True), known)
    if "ann" in evidence:
        top.section("ann").text("name", _NAME)


def _check_numbers(section: Section, known: tuple[str, ...] | None) -> None:
    for key, value in section.content.items():
        if known and key not in known:
            raise section.error(key, f"is nothing that an evaluation counts{near_matches(key, known)}")
        if isinstance(value, dict) and known:
            _check_numbers(section.section(key), None)  # by layer
        elif not _NAME.fullmatch(key) or not (value is None or type(value) in (int, float)):
            raise section.error(key, f"is {value!r:.100}, no number")


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


def published_settings(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the verdicts depend on besides weights and images, as arguments of ``rsnn_zoo.evaluate``.

    Evidence that says nothing of units was made when the widths of surrogates were absolute.
    """
    given = {"units": ABSOLUTE} | evidence.get("settings", {})
    return {key: given[key] for key in (*SETTINGS, "precision", "units") if given.get(key) is not None}


def published_index(evidence: Mapping[str, Any]) -> Sequence[int]:
    """Return which images of the split the verdicts are about, in their order.

    Raises:
        EvidenceError: If these are not as many different ones as it claims.
    """
    n, index = evidence["n"], evidence.get("index", FIRST)
    if index == FIRST:
        return range(n)
    known = isinstance(index, list) and all(type(number) is int and number >= 0 for number in index)
    if not known or not n == len(index) == len(set(index)):
        raise EvidenceError(f"the index must be {FIRST} or {n} different numbers from 0, one an image; evaluate again")
    return index


def images_of(evidence: Mapping[str, Any]) -> str:
    """Return how many images of which split it is about, and whether somebody chose them; ``360 images (test split)``.

    Validation images are listed by their places among the training images, which does not tell whether they are chosen.
    """
    split = evidence.get("split", "test")
    chosen = split == "test" and evidence.get("index", FIRST) != FIRST
    return f"{evidence['n']:,} {'chosen ' if chosen else ''}images ({split} split)"


def published_runs(evidence: Mapping[str, Any]) -> list[PublishedRun]:
    """Return the runs with the verdict on each image, once all that they claim is seen to follow from the verdicts.

    Raises:
        EvidenceError: If there are no runs, or verdicts are missing or contradict what is claimed.
    """
    runs, n, clean = list[PublishedRun](), len(published_index(evidence)), evidence["clean"]
    if not evidence.get("runs"):
        raise EvidenceError("the evidence holds no runs, so nothing of it can be verified; evaluate again")
    for run in evidence["runs"]:
        place = f"run {run['protocol']} at eps {in_255(run['eps'])}"
        attacks = run.get("attacks", [])
        verdicts = _verdicts(run.get("verdicts"), attacks, n, place)
        counts = Counter(verdicts)
        _check_claim(f"{place} claims robust accuracy", run["robust_accuracy"], run["ci95"], counts[STANDS], n)
        _check_claim(f"{place} claims clean accuracy", clean["accuracy"], clean["ci95"], n - counts[MISCLASSIFIED], n)
        learned = {f"{a['attack']}/{a.get('mode')}": a["learned"] for a in attacks if "learned" in a}
        runs.append(PublishedRun(run["protocol"], run["eps"], verdicts, learned, run))
    for claim in evidence.get("robust", []):
        what = f"the worst case at eps {in_255(claim['eps'])} claims accuracy"
        if claim["eps"] not in {run.eps for run in runs}:
            raise EvidenceError(f"{what} where nothing was run")
        below = [run.verdicts for run in runs if run.eps <= claim["eps"]]
        stand = sum(set(each) == {STANDS} for each in zip(*below, strict=True))
        _check_claim(what, claim["accuracy"], claim["ci95"], stand, n)
    return runs


def _verdicts(listed: Any, attacks: Sequence[Mapping[str, Any]], n: int, place: str) -> tuple[int, ...]:
    """Read the verdicts on n images, once what each attack is said to have felled is seen to follow from them."""
    try:
        verdicts = tuple(int(v) for v in (listed.split() if isinstance(listed, str) else listed))
    except (TypeError, ValueError):
        raise EvidenceError(f"{place} holds no readable verdicts") from None
    if len(verdicts) != n:
        raise EvidenceError(f"{place} holds {len(verdicts)} verdicts for {n} images")
    counts = Counter(verdicts)
    if unknown := [verdict for verdict in counts if not MISCLASSIFIED <= verdict < len(attacks)]:
        raise EvidenceError(f"{place} holds the verdict {unknown[0]}, where it lists {len(attacks)} attacks")
    for number, attack in enumerate(attacks):
        if (felled := attack["felled"]) != counts[number]:
            what = f"felled by {attack['attack']}"
            raise EvidenceError(f"{place} claims {felled} {what}, the verdicts say {counts[number]}")
    return verdicts


def _check_claim(what: str, accuracy: float, ci95: Sequence[float], count: int, n: int) -> None:
    """Hold a claimed accuracy and its interval against how many of the images the verdicts count."""
    claimed, counted = (accuracy, *ci95), (count / n, *wilson(count, n))
    if any(abs(one - other) > _ROUNDING for one, other in zip(claimed, counted, strict=True)):
        shown = ["{:.6g} ({:.6g} to {:.6g})".format(*values) for values in (claimed, counted)]
        raise EvidenceError(f"{what} {shown[0]}, the verdicts say {shown[1]}")


def parse_time(text: Any) -> datetime:
    """Return the time that ISO 8601 text stands for, in UTC where it names no zone; the beginning of time if none."""
    try:
        time = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return datetime.min.replace(tzinfo=timezone.utc)
    return time if time.tzinfo else time.replace(tzinfo=timezone.utc)
