"""What an evaluation found: verdicts, intervals and flags, as JSON, as rows of a table, and as text."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rsnn_zoo._utils.files import replacing, to_json

__all__ = ["ALL", "MISCLASSIFIED", "STANDS", "Flag", "Report", "Run", "by_steps", "in_255", "wilson", "write_csv"]

FIRST = "0..n-1"
"""How an index is written of the first n samples of the test split."""
ALL = "all, up to this eps"
"""What tables call the worst case over all runs at a radius and at smaller ones."""

STANDS, MISCLASSIFIED = -1, -2
"""Verdicts beside the number of the member that felled the sample: robust; wrong without any attack."""


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def in_255(eps: float) -> str:
    """A radius as papers write it, e.g. ``"8/255"``."""
    return f"{round(255 * eps, 2):g}/255"


_STEPS = re.compile(r"(.*?pgd)(\d+)(.*)")
_AnyRun = TypeVar("_AnyRun")


def by_steps(runs: Iterable[tuple[str, float, _AnyRun]]) -> dict[tuple[str, float], dict[int, _AnyRun]]:
    """Runs that differ in nothing but the steps of PGD, by steps.

    Args:
        runs: Protocol, radius and what belongs to them.

    Example:
        >>> by_steps([("ensemble-pgd5", 0.1, "five"), ("ensemble-pgd20", 0.1, "twenty"), ("fgsm", 0.1, "one")])
        {('ensemble-pgdK', 0.1): {5: 'five', 20: 'twenty'}}
    """
    found: dict[tuple[str, float], dict[int, _AnyRun]] = {}
    for protocol, eps, run in runs:
        if match := _STEPS.fullmatch(protocol):
            found.setdefault((f"{match[1]}K{match[3]}", eps), {})[int(match[2])] = run
    return found


@dataclass(frozen=True)
class Flag:
    """One check of whether the numbers of a report can be believed.

    Attributes:
        name: Of the check, see :mod:`rsnn_zoo.evaluation.flags`.
        raised: Whether it speaks against them.
        value: What was measured.
        message: What that means and what to do, where it is raised; else empty.
    """

    name: str
    raised: bool
    value: float
    message: str


@dataclass(frozen=True)
class Run:
    """One protocol at one radius.

    Attributes:
        protocol: Name of the protocol.
        eps: Radius, in units of pixels in [0, 1].
        members: (attack, mode) of each member, in the order in which they ran.
        verdicts: For each sample the number of the member that felled it, -1 if it stands, -2 if it is misclassified
            without any attack.
        seconds: Time spent on its members and on what they learned beforehand, summed over all processes. A member that
            another run shares counts in both.
        steps: Of each member; None where it counts none.
        learned: By the number of a member that learns beforehand, what it has learned, as JSON.
        left_out: What of the protocol the model did not meet, and why.
    """

    protocol: str
    eps: float
    members: tuple[tuple[str, str], ...]
    verdicts: tuple[int, ...]
    seconds: float
    steps: tuple[int | None, ...] = ()
    learned: Mapping[int, dict[str, Any]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def robust_accuracy(self) -> float:
        """Share of all samples that stand, in [0, 1]."""
        return self.verdicts.count(STANDS) / len(self.verdicts)

    @property
    def ci95(self) -> tuple[float, float]:
        """Wilson interval of the robust accuracy."""
        return wilson(self.verdicts.count(STANDS), len(self.verdicts))

    @property
    def restarts(self) -> int:
        """How often the most repeated attack starts anew under one mode: ``pgd20``, ``pgd20#2``, ... ."""
        return max(Counter((attack.partition("#")[0], mode) for attack, mode in self.members).values())

    def felled(self) -> list[int]:
        """How many samples each member felled; one that has fallen is not attacked again."""
        counts = Counter(self.verdicts)
        return [counts[number] for number in range(len(self.members))]

    def to_json(self) -> dict[str, Any]:
        """The run as JSON, with what follows from the verdicts written out."""
        standing = len(self.verdicts) - self.verdicts.count(MISCLASSIFIED)
        attacks: list[dict[str, Any]] = []
        for (attack, mode), felled in zip(self.members, self.felled(), strict=True):
            standing -= felled
            attacks.append({"attack": attack, "mode": mode, "felled": felled, "standing": standing})
        for entry, steps in zip(attacks, self.steps, strict=False):
            entry["steps"] = steps
        for number, learned in self.learned.items():
            attacks[number]["learned"] = learned
        return {
            "protocol": self.protocol,
            "eps": self.eps,
            "robust_accuracy": self.robust_accuracy,
            "ci95": list(self.ci95),
            "restarts": self.restarts,
            "attacks": attacks,
            **({"left_out": dict(self.left_out)} if self.left_out else {}),
            "verdicts": " ".join(map(str, self.verdicts)),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True)
class Report:
    """What an evaluation found, and everything it takes to repeat it.

    Attributes:
        model: Name of the model.
        weights_sha256: Of the weights file that ``save_pretrained`` makes of the model; None where it cannot.
        dataset: Name of the data set.
        split: Name of the split.
        data_sha256: Of the images and labels, as they were attacked.
        index: Index in the data set of each sample.
        correct: Whether each sample is classified correctly without any attack.
        runs: One for each protocol and radius.
        flags: The sanity checks; empty where they were not asked for.
        settings: Seed, precision of the gradients, chunk, draws of a random model, samples of the checks.
        environment: Versions and hardware.
        created: ISO 8601.
        network: Of an SNN, what it computes by and its weights do not say: timesteps, reset, leak, initial.
        training: How the model came to be, as far as that is known: objective, radius, selection of the epoch.
        extra: Further parts of the JSON, such as the energy estimate, or with gradients of the folded network
            ``"agreement"``: how many iterates that stand by it this session showed to the exact one, and which fell.
    """

    model: str
    weights_sha256: str | None
    dataset: str
    split: str
    data_sha256: str
    index: tuple[int, ...]
    correct: tuple[bool, ...]
    runs: tuple[Run, ...]
    settings: dict[str, Any]
    environment: dict[str, Any]
    created: str
    flags: tuple[Flag, ...] = ()
    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def clean_accuracy(self) -> float:
        """Share classified correctly without any attack, in [0, 1]."""
        return sum(self.correct) / len(self.correct)

    @property
    def robust(self) -> dict[float, int]:
        """Number of samples by radius that stand under all runs at it and at smaller ones: balls are nested.

        Further runs, of whatever attack, steps or radius, never raise it. Empty where there is but one run.
        """
        standing, found = [True] * len(self.index), dict[float, int]()
        if len(self.runs) < 2:
            return found
        for run in sorted(self.runs, key=lambda run: run.eps):
            standing = [so_far and v == STANDS for so_far, v in zip(standing, run.verdicts, strict=True)]
            found[run.eps] = sum(standing)
        return found

    @property
    def raised(self) -> list[Flag]:
        """The flags that speak against the numbers."""
        return [flag for flag in self.flags if flag.raised]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON: the evidence of a published entry."""
        index = list(self.index)
        flags = {
            flag.name: {"raised": flag.raised, "value": flag.value} | ({"message": flag.message} if flag.raised else {})
            for flag in self.flags
        }
        robust = [
            {"eps": eps, "accuracy": stand / len(index), "ci95": list(wilson(stand, len(index)))}
            for eps, stand in self.robust.items()
        ]
        return {
            "schema": 1,
            "model": self.model,
            "weights_sha256": self.weights_sha256,
            **({"network": dict(self.network)} if self.network else {}),
            "dataset": self.dataset,
            "split": self.split,
            "n": len(index),
            "data_sha256": self.data_sha256,
            "index": FIRST if index == list(range(len(index))) else index,
            "clean": {"accuracy": self.clean_accuracy, "ci95": list(wilson(sum(self.correct), len(index)))},
            "runs": [one.to_json() for one in self.runs],
            **({"robust": robust} if robust else {}),
            **({"training": dict(self.training)} if self.training else {}),
            **({"flags": flags} if flags else {}),
            "settings": self.settings,
            **self.extra,
            **self.environment,
            "created": self.created,
        }

    def rows(self) -> list[dict[str, Any]]:
        """The report as the rows of a table: one without attack, and one for each run."""
        n, about = len(self.index), {"model": self.model, "dataset": self.dataset, "split": self.split}
        tail = {"seed": self.settings["seed"], "flags": " ".join(flag.name for flag in self.raised)}
        tail["weights_sha256"] = self.weights_sha256
        lines: list[tuple[Any, ...]] = [("none", 0.0, self.clean_accuracy, wilson(sum(self.correct), n), 0, 0.0)]
        lines += [
            (run.protocol, run.eps, run.robust_accuracy, run.ci95, len(run.members), run.seconds) for run in self.runs
        ]
        lines += [(ALL, eps, k / n, wilson(k, n), None, None) for eps, k in self.robust.items()]
        return [
            about
            | {"attack": attack, "eps": in_255(eps), "accuracy": accuracy, "ci95_low": low, "ci95_high": high, "n": n}
            | {"members": members, "seconds": None if seconds is None else round(seconds, 3)}
            | tail
            for attack, eps, accuracy, (low, high), members, seconds in lines
        ]

    def summary(self) -> dict[str, Any]:
        """The report as one row: accuracies in per cent by attack and radius."""
        accuracies = {f"{run.protocol} {in_255(run.eps)}": round(100 * run.robust_accuracy, 2) for run in self.runs}
        return {
            "model": self.model,
            "dataset": self.dataset,
            "split": self.split,
            "n": len(self.index),
            "data_sha256": self.data_sha256,
            **{key: self.settings[key] for key in ("seed", "precision")},
            "network": " ".join(f"{key}={value}" for key, value in self.network.items()),
            "clean": round(100 * self.clean_accuracy, 2),
            **accuracies,
            "flags": " ".join(flag.name for flag in self.raised),
            "weights_sha256": self.weights_sha256,
        }

    def robustbench(self, eps: float) -> dict[str, Any]:
        """A record with the keys of RobustBench's ``model_info`` files, as far as an evaluation can know them.

        Args:
            eps: The radius; reported is the worst case over all runs at it and at smaller ones.

        Raises:
            ValueError: If no run has this radius.

        Source:
            Croce et al., "RobustBench: a standardized adversarial robustness benchmark", NeurIPS 2021.
        """
        runs = [run for run in self.runs if abs(run.eps - eps) < 1e-9]
        if not runs:
            raise ValueError(f"no run at eps {in_255(eps)}: there are {', '.join(in_255(r.eps) for r in self.runs)}")
        below = [run for run in self.runs if run.eps <= max(run.eps for run in runs)]
        worst = sum(set(verdicts) == {STANDS} for verdicts in zip(*(run.verdicts for run in below), strict=True))
        return {
            "name": self.model,
            "dataset": self.dataset,
            "threat_model": "Linf",
            "eps": in_255(eps),
            "number_forward_passes": self.settings.get("draws", 1),
            "clean_acc": f"{100 * self.clean_accuracy:.2f}",
            "reported": f"{100 * worst / len(self.index):.2f}",
            "attack": "+".join(dict.fromkeys(run.protocol for run in below)),
            "n_examples": len(self.index),
            "flags": [flag.name for flag in self.raised],
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON, or the rows where ``path`` ends in ``.csv``, under a temporary name and renames it."""
        path = Path(path)
        if path.suffix == ".csv":
            write_csv(path, self.rows())
            return
        with replacing(path) as temporary:
            temporary.write_bytes(to_json(self.to_json()))

    def table(self) -> str:
        """The report as text: accuracy by radius, what each member felled, and the flags that are raised."""
        n = len(self.index)
        what = f"{self.dataset} {self.split} images" if self.split else "images"  # which came as tensors
        lines = [f"{self.model} on {n} {what}", ""]
        lines += [f"  {'eps':>6}  {'attack':<20} {'accuracy':>9}   95 % interval"]
        for row in self.rows():
            interval = f"{100 * row['ci95_low']:.1f} to {100 * row['ci95_high']:.1f} %"
            eps = row["eps"] if row["attack"] != "none" else "0"
            lines.append(f"  {eps:>6}  {row['attack']:<20} {100 * row['accuracy']:>7.1f} %   {interval}")
        for run in self.runs:
            felled = zip(run.felled(), ("/".join(member) for member in run.members), strict=True)
            counts = ", ".join(f"{member} {count}" for count, member in sorted(felled, reverse=True) if count)
            lines += ["", f"  felled at eps {in_255(run.eps)} by {run.protocol}: {counts or 'none'}"]
            lines += [f"    {line}" for line in told_left_out(run.left_out)]
        if self.flags:
            lines += ["", f"  sanity flags: {len(self.raised) or 'none'} of {len(self.flags)} raised"]
            lines += [f"  ! {flag.name}: {flag.message}" for flag in self.raised]
        return "\n".join(lines)


def told_left_out(left_out: Mapping[str, str]) -> list[str]:
    """What a run left out, a line for each reason."""
    reasons = dict.fromkeys(left_out.values())
    return [f"left out {', '.join(what for what in left_out if left_out[what] == why)}: {why}" for why in reasons]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows under a temporary name and renames it; a column for each key that any row has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
