"""The results of an evaluation as Markdown: accuracies, what felled the network, checks, spikes and costs."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from rsnn_zoo.report.evidence import SHOWN_SETTINGS, images_of
from rsnn_zoo.report.report import ALL, in_255

__all__ = ["accuracies", "cell", "facts_of", "results_of", "shown"]


def accuracies(evidence: Mapping[str, Any]) -> list[str]:
    """Return a table of accuracies with their intervals, of an evaluation's JSON, as lines of Markdown."""
    return [
        f"On {images_of(evidence)}, with 95 % Wilson intervals:",
        "",
        "| attack | eps | accuracy | 95 % interval |",
        "|---|---|---|---|",
        _row("none", 0, *_accuracy(evidence["clean"], "accuracy")),
        *(
            _row(f"none, all {whole['n']:,} images", 0, *_accuracy(whole, "accuracy"))
            for whole in [evidence.get("clean_on_all")]
            if whole
        ),
        *(
            _row(run["protocol"], in_255(run["eps"]), *_accuracy(run, "robust_accuracy"))
            for run in sorted(evidence.get("runs", []), key=lambda run: (run["protocol"], run["eps"]))
        ),
        *(_row(ALL, in_255(robust["eps"]), *_accuracy(robust, "accuracy")) for robust in evidence.get("robust", [])),
    ]


def results_of(evidence: Mapping[str, Any]) -> str:
    """Return all that a card says of ``evaluation.json``, as Markdown."""
    runs = evidence.get("runs", [])
    lines = accuracies(evidence)
    if ann := evidence.get("ann"):
        lines += ["", f"### The ANN that it was converted from: {cell(ann['name'])}", "", *accuracies(ann)]
        lines += ["", "### What felled the SNN"]
    for protocol in dict.fromkeys(run["protocol"] for run in runs if run.get("attacks")):
        lines += _felled(protocol, [run for run in runs if run["protocol"] == protocol])
    flags = evidence.get("flags") or {}
    if flags:
        raised = [f"- {cell(flag['message'])}" for flag in flags.values() if flag["raised"]]
        passed = f"{len(flags) - len(raised)} of {len(flags)} sanity checks find nothing against these figures."
        lines += ["", "### Checks", "", passed, *raised]
    for title, key in (("Spikes", "spikes"), ("Energy estimate", "energy")):
        if facts := list(facts_of(evidence.get(key) or {})):
            lines += ["", f"### {title}", "", *facts]
    settings = {key: value for key, value in evidence.get("settings", {}).items() if key in SHOWN_SETTINGS}
    measured = [f"{key} {value}" for key, value in {**settings, **evidence.get("versions", {})}.items()]
    measured += [cell(evidence[key]) for key in ("cpu", "gpu", "created") if evidence.get(key)]
    counts = [_counted(evidence[key], key) for key in ("cores", "processes", "threads") if evidence.get(key)]
    measured += [f"{', '.join(counts)} each"] if counts else []
    took = [
        f"{run['protocol']} at {in_255(run['eps'])} {run['seconds'] / 60:,.1f}" for run in runs if run.get("seconds")
    ]
    minutes = f" Minutes of all processes together: {cell(', '.join(took))}." if took else ""
    return "\n".join([*lines, "", f"Measured with {', '.join(measured) or 'rsnn_zoo'}.{minutes}"])


def _felled(protocol: str, runs: list[Mapping[str, Any]]) -> list[str]:
    """A table of how many images each member of an ensemble felled, a column for each eps; the rest are named."""
    runs = sorted(runs, key=lambda run: run["eps"])
    counts = [Counter[tuple[str, str]]() for _ in runs]
    for column, run in zip(counts, runs, strict=True):
        for attack in run.get("attacks", []):
            column[attack["attack"], attack.get("mode", "")] += attack["felled"]
    members = dict.fromkeys(member for column in counts for member in column)
    shown = [member for member in members if any(column[member] for column in counts)]
    table = [
        f"Images felled by members of {cell(protocol)}, in this order; a fallen image is not attacked again:",
        "",
        _row("attack", "backward mode", *(f"eps {in_255(run['eps'])}" for run in runs)),
        "|---" * (2 + len(runs)) + "|",
        *(_row(*member, *(column.get(member, "") for column in counts)) for member in shown),
    ]
    nothing: dict[str, list[str]] = {}
    for attack, mode in members:
        if (attack, mode) not in shown:
            nothing.setdefault(cell(attack), []).append(cell(mode))
    listed = "; ".join(f"{attack} ({', '.join(modes)})" if any(modes) else attack for attack, modes in nothing.items())
    return [
        "",
        *(table if shown else [f"No member of {cell(protocol)} felled an image."]),
        *([f"\nThese felled no image, or had none left to attack: {listed}."] if listed else []),
        *(f"\nLeft out {cell(what)}: {cell(why)}." for what, why in dict(runs[0].get("left_out") or {}).items()),
    ]


def _counted(number: Any, plural: str) -> str:
    """``1 thread``, ``2 threads``; the plural ends in s, or in es after an s."""
    return f"{number} {plural.removesuffix('es' if plural.endswith('sses') else 's') if number == 1 else plural}"


def facts_of(facts: Mapping[str, Any]) -> Iterator[str]:
    """Give the bullets of a JSON object; objects inside are indented below their key, long lists are cut."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield f"- {cell(key)}"
            yield from (f"  {line}" for line in facts_of(value))
        else:
            yield f"- {cell(key)}: {shown(value)}"


def shown(value: Any) -> str:
    """Return a value as a card shows it: numbers in four digits."""
    if not isinstance(value, float):
        return cell(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _accuracy(result: Mapping[str, Any], key: str) -> tuple[str, str]:
    low, high = result["ci95"]
    return f"{100 * result[key]:.1f} %", f"{100 * low:.1f} to {100 * high:.1f} %"


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(cell, cells))} |"


def cell(value: Any) -> str:
    """Return a value as text of one line, that breaks no table."""
    return " ".join(str(value).split()).replace("|", "\\|")[:500]
