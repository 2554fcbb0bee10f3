"""Figures of an evaluation: robust accuracy against the radius of the ball."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsnn_zoo.files import replacing

__all__ = ["plot_accuracy"]


def plot_accuracy(evidence: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Draws robust accuracy against eps, with 95 % Wilson intervals, one curve for each model and protocol.

    Args:
        evidence: Reports as JSON (``Report.to_json()``, or the content of ``evaluation.json``).
        path: Of the figure; its ending (``.png``, ``.svg``, ``.pdf``) tells the format.

    Returns:
        The path.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'rsnn_zoo[plot]'") from error

    path = Path(path)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for report in evidence:
        for protocol in dict.fromkeys(run["protocol"] for run in report["runs"]):
            runs = sorted((run for run in report["runs"] if run["protocol"] == protocol), key=lambda run: run["eps"])
            eps = [0.0, *(255 * run["eps"] for run in runs)]
            accuracy = [report["clean"]["accuracy"], *(run["robust_accuracy"] for run in runs)]
            intervals = [report["clean"]["ci95"], *(run["ci95"] for run in runs)]
            (line,) = axes.plot(eps, [100 * a for a in accuracy], marker="o", label=f"{report['model']}, {protocol}")
            low, high = zip(*intervals, strict=True)
            band = [100 * x for x in low], [100 * x for x in high]
            axes.fill_between(eps, *band, alpha=0.15, color=line.get_color(), linewidth=0)
    first = evidence[0]
    axes.set(
        xlabel="eps (in 1/255)",
        ylabel="accuracy (%)",
        ylim=(0, 100),
        title=f"Robust accuracy on {first['n']:,} {first['dataset']} {first['split']} images",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right", fontsize="small")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=150)
    return path
