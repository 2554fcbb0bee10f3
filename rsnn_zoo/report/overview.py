"""One figure of many entries: a panel for each ANN with the SNNs made from it, row by row for each data set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rsnn_zoo.report.evidence import Evidence
from rsnn_zoo.report.plots import new_figure, save_figure
from rsnn_zoo.spec.names import ModelName, UnknownNameError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["overview", "plot_overview"]

COLUMNS = 4
_COLORS = (
    "#777777",
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)  # told apart by colour-blind people
_CURVE = "ensemble-pgd20"
_POINTS = {"worst-case": "D", "autoattack": "^"}


def plot_overview(evidence: Sequence[Evidence], path: str | os.PathLike[str]) -> Path:
    """Draw clean and robust accuracy of many entries as small multiples, readable however many there are.

    Args:
        evidence: Reports as JSON (the content of ``evaluation.json``).
        path: Of the figure; its ending (``.png``, ``.svg``, ``.pdf``) tells the format.

    Returns:
        The path.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no report.
    """
    return save_figure(overview(evidence), path)


def overview(evidence: Sequence[Evidence]) -> Figure:
    """Draw what :func:`plot_overview` saves: a row of panels for each data set, a panel for each family of networks.

    Raises:
        ValueError: If there is no report.
    """
    datasets = list(dict.fromkeys(report["dataset"] for report in evidence))
    if not datasets:
        raise ValueError("nothing to draw: there is no report")
    rows = [
        (dataset, families[start : start + COLUMNS])
        for dataset in datasets
        for families in [list(_families(dataset, evidence).items())]
        for start in range(0, len(families), COLUMNS)
    ]
    columns = max(len(families) for _, families in rows)
    figure = new_figure(0.6 + 2.7 * columns, 0.7 + 2.3 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False, sharey=True)
    steps = sorted({_steps(report) for report in evidence})
    colors = {step: _COLORS[place % len(_COLORS)] for place, step in enumerate(steps)}
    for (dataset, families), line in zip(rows, grid, strict=True):
        widest = max(255 * run["eps"] for report in evidence if report["dataset"] == dataset for run in report["runs"])
        for axes in line[len(families) :]:
            axes.set_axis_off()
        for axes, (family, reports) in zip(line, families, strict=False):
            for report in reports:
                _draw_entry(axes, report, colors[_steps(report)])
            axes.set_title(f"{dataset}: {family}", fontsize="small")
            axes.set(ylim=(0, 100), xlim=(-0.03 * widest, 1.05 * widest))
            axes.set_xticks([widest * quarter / 4 for quarter in range(5)])
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize="small")
        line[0].set_ylabel("accuracy (%)", fontsize="small")
    _explain(figure, colors)
    return figure


def _families(dataset: str, evidence: Sequence[Evidence]) -> dict[str, list[Evidence]]:
    """Reports on a data set by architecture and objective."""
    families: dict[str, list[Evidence]] = {}
    for report in evidence:
        if report["dataset"] == dataset:
            families.setdefault(_family(report["model"]), []).append(report)
    return families


def _family(model: str) -> str:
    name = _model_name(model)
    return f"{name.architecture}, {name.objective}" + (f", {name.tag}" if name.tag else "") if name else model


def _steps(report: Evidence) -> int:
    name = _model_name(report["model"])
    return (name.timesteps or 0) if name else 0


def _model_name(model: str) -> ModelName | None:
    try:
        return ModelName.parse(model.rpartition("/")[2])
    except UnknownNameError:  # a name of somebody's own
        return None


def _draw_entry(axes: Axes, report: Evidence, color: str) -> None:
    """Draw a line under the ensemble from no attack on, and points for other protocols where they were run."""
    curve, points = [(0.0, report["clean"]["accuracy"], report["clean"]["ci95"])], {}
    for run in sorted(report["runs"], key=lambda run: (run["eps"], run["protocol"])):
        found = 255 * run["eps"], run["robust_accuracy"], run["ci95"]
        if run["protocol"] == _CURVE:
            curve.append(found)
        for kind, marker in _POINTS.items():
            if run["protocol"].startswith(kind):  # the newest version comes last and stays
                points[kind, run["eps"]] = (marker, *found)
    radii, accuracies, intervals = zip(*curve, strict=True)
    low, high = ([100 * bound for bound in bounds] for bounds in zip(*intervals, strict=True))
    axes.fill_between(radii, low, high, color=color, alpha=0.15, linewidth=0)
    axes.plot(radii, [100 * one for one in accuracies], marker=".", color=color)
    for marker, radius, accuracy, (low, high) in points.values():
        axes.vlines(radius, 100 * low, 100 * high, color=color, alpha=0.5)
        look = {"marker": marker, "color": color, "markersize": 6, "markerfacecolor": "white"}
        axes.plot(radius, 100 * accuracy, clip_on=False, zorder=3, **look)


def _explain(figure: Figure, colors: Mapping[int, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, label=f"T = {step}" if step else "ANN") for step, color in colors.items()]
    handles += [Line2D([], [], color="black", marker=".", label=_CURVE)]
    handles += [
        Line2D([], [], color="black", marker=mark, markerfacecolor="white", linestyle="", label=kind)
        for kind, mark in _POINTS.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize="small", frameon=False)
    figure.supxlabel("eps (in 1/255)", fontsize="small")
