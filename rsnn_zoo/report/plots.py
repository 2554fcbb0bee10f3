"""Figures of evaluations and trainings, and a page that shows a report: nothing in it is loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import io
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsnn_zoo._utils.files import replacing
from rsnn_zoo.report.evidence import Evidence
from rsnn_zoo.report.report import ALL, by_steps, in_255, wilson

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["new_figure", "plot_accuracy", "plot_curves", "save_figure", "save_page"]


def plot_accuracy(evidence: Sequence[Evidence], path: str | os.PathLike[str]) -> Path:
    """Draw robust accuracy with 95 % Wilson intervals: by radius, by attack, and by steps where runs differ in them.

    Args:
        evidence: Reports as JSON (``Report.to_json()``, or the content of ``evaluation.json``).
        path: Of the figure; its ending (``.png``, ``.svg``, ``.pdf``) tells the format.

    Returns:
        The path.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If no report holds a run.
    """
    return save_figure(_figure(evidence), path)


def new_figure(width: float, height: float) -> Figure:
    """Give an empty figure of so many inches.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure; the ending of the path (``.png``, ``.svg``, ``.pdf``) tells the format."""
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=150)
    return path


_ACCURACIES = {
    "train_clean": "training, clean",
    "train_robust": "training, attacked",
    "validation": "validation, clean",
    "validation_robust": "validation, attacked",
}


def plot_curves(history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Draw the loss and the accuracies of a training run against the epoch.

    Args:
        history: ``RunResult.history``, or the records of ``log.jsonl``.
        path: Of the figure; its ending (``.png``, ``.svg``, ``.pdf``) tells the format.

    Returns:
        The path.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    figure = new_figure(9.6, 4.0)
    left, right = figure.subplots(1, 2)
    left.plot([record["epoch"] for record in history], [record["train_loss"] for record in history])
    left.set(xlabel="epoch", ylabel="training loss")
    for key, label in _ACCURACIES.items():
        points = [(record["epoch"], 100 * record[key]) for record in history if record.get(key) is not None]
        if points:
            right.plot(*zip(*points, strict=True), label=label, linestyle="--" if "train" in key else "-")
    right.set(xlabel="epoch", ylabel="accuracy (%)", ylim=(0, 100))
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return save_figure(figure, path)


def save_page(evidence: Evidence, path: str | os.PathLike[str]) -> Path:
    """Write one report as an HTML page with its figure inside, readable without a network.

    Args:
        evidence: A report as JSON.
        path: Of the page.

    Returns:
        The path.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the report holds no run.
    """
    path, image = Path(path), io.BytesIO()
    _figure([evidence]).savefig(image, format="png", dpi=150)
    with replacing(path) as temporary:
        temporary.write_text(_page(evidence, base64.b64encode(image.getvalue()).decode()), encoding="utf-8")
    return path


def _figure(evidence: Sequence[Evidence]) -> Figure:
    panels = [panel for panel in _PANELS if any(True for report in evidence for _ in panel(report))]
    if not panels:
        raise ValueError("nothing to draw: no report holds what an attack achieved")
    figure = new_figure(6.4 * len(panels), 5.4)
    from matplotlib.lines import Line2D

    several, kinds = len(evidence) > 1, {}  # numbered over all panels
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        curves = [(i, label, points) for i, report in enumerate(evidence) for label, points in panel(report)]
        if panel is _by_attack:
            names = _order([[name for name, *_ in points] for *_, points in curves])
            axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
            place = {name: position for position, name in enumerate(names)}
            curves = [(i, label, [(place[name], *found) for name, *found in points]) for i, label, points in curves]
        keys = {}
        for i, label, points in curves:
            kind = kinds.setdefault(label if panel is _by_steps else label.partition(", eps ")[0], len(kinds))
            look: dict[str, Any] = {"marker": _MARKERS[kind % len(_MARKERS)], "markersize": 4}
            if label == ALL:  # lies upon one of the others
                look |= {"marker": "D", "markersize": 8, "markerfacecolor": "none"}
            color = _color(i, len(evidence)) if several else _color(kind, 1)
            _curve(axes, points, label=f"{evidence[i]['model']}, {label}", color=color, **look)
            keys[label] = Line2D([], [], label=label, **look | {"color": "gray" if several else color})
        axes.set(xlabel=_PANELS[panel], ylabel="accuracy (%)", ylim=(0, 100))
        axes.grid(alpha=0.3)
        axes.legend(handles=[*keys.values()], fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    if several:
        differing = len({report["n"] for report in evidence}) > 1
        names = [report["model"] + f", n = {report['n']:,}" * differing for report in evidence]
        models = [Line2D([], [], color=_color(i, len(evidence)), label=name) for i, name in enumerate(names)]
        figure.legend(handles=models, fontsize="small", loc="outside lower center", ncols=2 * len(panels))
    shown = dict.fromkeys(f"{report['n']:,} {report['dataset']} {report['split']} images" for report in evidence)
    whose = "" if several else f" of {evidence[0]['model']}"
    title = f"Robust accuracy{whose} on {' and '.join(shown)}"
    figure.suptitle(textwrap.fill(title, 64 * len(panels), break_long_words=False, break_on_hyphens=False))
    return figure


_MARKERS = "os^v<>PX*"


def _color(place: int, of: int) -> Any:
    from matplotlib import colormaps

    colors = colormaps["tab10" if of <= 10 else "tab20"].colors
    return colors[place % len(colors)]


# A point: where it stands, the accuracy, and its interval.
_Points = Sequence[tuple[Any, float, Sequence[float]]]


def _curve(axes: Axes, points: _Points, **look: Any) -> None:
    x, accuracy, intervals = zip(*points, strict=True)
    accuracy, low, high = ([100 * a for a in values] for values in (accuracy, *zip(*intervals, strict=True)))
    axes.plot(x, accuracy, **look)
    if len(points) > 1:
        axes.fill_between(x, low, high, alpha=0.15, color=look["color"], linewidth=0)
    else:
        axes.vlines(x, low, high, alpha=0.4, color=look["color"])


def _order(lists: Sequence[Sequence[str]]) -> list[str]:
    """Merge lists of names so that each list's order is kept, if that can be; else that of the first lists."""
    before: dict[str, list[str]] = {name: [] for names in lists for name in names}
    for names in lists:
        for first, second in pairwise(names):
            before[second].append(first)
    try:
        return [*TopologicalSorter(before).static_order()]
    except CycleError:
        return [*before]


def _by_radius(report: Evidence) -> Iterator[tuple[str, _Points]]:
    """Draw accuracies from no attack on; what was tried at one radius only is a point, as smaller ones are unknown."""
    clean = (0.0, report["clean"]["accuracy"], report["clean"]["ci95"])
    for protocol in dict.fromkeys(run["protocol"] for run in report["runs"]):
        runs = sorted((run for run in report["runs"] if run["protocol"] == protocol), key=lambda run: run["eps"])
        found = [(255 * run["eps"], run["robust_accuracy"], run["ci95"]) for run in runs]
        yield protocol, [clean, *found] if len(found) > 1 else found
    if "robust" in report:
        yield ALL, [clean, *((255 * one["eps"], one["accuracy"], one["ci95"]) for one in report["robust"])]


def _by_attack(report: Evidence) -> Iterator[tuple[str, _Points]]:
    """What stands after each member that felled something (and the first), at the radius nearest to 8/255."""
    n = report["n"]
    for protocol in dict.fromkeys(run["protocol"] for run in report["runs"]):
        runs = (run for run in report["runs"] if run["protocol"] == protocol)
        run = min(runs, key=lambda run: abs(run["eps"] - 8 / 255))
        if len(run["attacks"]) > 1:
            shown = [a for number, a in enumerate(run["attacks"]) if a["felled"] or not number]
            standing = [(f"{a['attack']}/{a['mode']}", a["standing"]) for a in shown]
            yield f"{protocol}, eps {in_255(run['eps'])}", [(name, k / n, wilson(k, n)) for name, k in standing]


def _by_steps(report: Evidence) -> Iterator[tuple[str, _Points]]:
    families = by_steps((run["protocol"], run["eps"], run) for run in report["runs"])
    for (family, eps), runs in families.items():
        if len(runs) > 1:
            points = [(steps, runs[steps]["robust_accuracy"], runs[steps]["ci95"]) for steps in sorted(runs)]
            yield f"{family}, eps {in_255(eps)}", points


_PANELS: dict[Callable[[Evidence], Iterator[tuple[str, _Points]]], str] = {
    _by_radius: "eps (in 1/255)",
    _by_attack: "standing after each attack that felled an image",
    _by_steps: "steps",
}
"""Panels of a figure, each with what its x axis shows."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { border: 1px solid #ccc; padding: .2rem .6rem }
td { text-align: right } td:first-child { text-align: left } img { max-width: 100% }
.raised { background: #fde8e8; border-left: 4px solid #c00; padding: .5rem 1rem }
"""


def _page(report: Evidence, image: str) -> str:
    title = f"{report['model']}: robust accuracy"
    accuracies = [("none", "0", report["clean"]["accuracy"], report["clean"]["ci95"])]
    accuracies += [(run["protocol"], in_255(run["eps"]), run["robust_accuracy"], run["ci95"]) for run in report["runs"]]
    if "robust" in report:
        accuracies += [(ALL, in_255(one["eps"]), one["accuracy"], one["ci95"]) for one in report["robust"]]
    rows = [
        (attack, eps, f"{100 * accuracy:.1f} %", f"{100 * low:.1f} to {100 * high:.1f} %")
        for attack, eps, accuracy, (low, high) in accuracies
    ]
    felled = [
        (f"{a['attack']}/{a['mode']}", a.get("steps"), run["protocol"], in_255(run["eps"]), a["felled"], a["standing"])
        for run in report["runs"]
        for a in run["attacks"]
    ]
    left_out = [(run["protocol"], *both) for run in report["runs"] for both in run.get("left_out", {}).items()]
    flags = report.get("flags", {})
    raised = [f"<p class=raised>{html.escape(flag['message'])}</p>" for flag in flags.values() if flag["raised"]]
    measured = [(name.replace("_", " "), f"{flag['value']:.4g}", flag["raised"]) for name, flag in flags.items()]
    facts = {key: report.get(key) for key in ("weights_sha256", "dataset", "split", "n", "created", "cpu", "gpu")}
    facts |= {**report.get("settings", {}), **report.get("versions", {})}
    return "\n".join(
        [
            f"<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<title>{html.escape(title)}</title>",
            f"<style>{_STYLE}</style>\n<h1>{html.escape(title)}</h1>",
            *raised,
            _table(("attack", "eps", "accuracy", "95 % interval"), rows),
            f'<img alt="Robust accuracy by radius, attack and steps" src="data:image/png;base64,{image}">',
            "<h2>Sanity flags</h2>" if flags else "",
            _table(("flag", "value", "raised"), measured) if flags else "",
            "<h2>What each attack felled</h2>",
            _table(("attack", "steps", "protocol", "eps", "felled", "standing"), felled),
            *(["<h2>Left out</h2>", _table(("protocol", "what", "why"), left_out)] if left_out else []),
            "<h2>Facts</h2>",
            _table(("what", "value"), facts.items()),
            "</html>\n",
        ]
    )


def _table(header: Sequence[str], rows: Any) -> str:
    lines = ["".join(f"<th>{name}</th>" for name in header)]
    lines += ["".join(f"<td>{html.escape('' if x is None else str(x))}</td>" for x in row) for row in rows]
    return "<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
