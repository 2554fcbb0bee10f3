"""Figure of a training run: loss and accuracy against the epoch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rsnn_zoo._utils.files import replacing

__all__ = ["plot_curves"]

_ACCURACIES = {
    "train_clean": "training, clean",
    "train_robust": "training, attacked",
    "validation": "validation, clean",
    "validation_robust": "validation, attacked",
}


def plot_curves(history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Draws the loss and the accuracies of a run.

    Args:
        history: ``RunResult.history``, or the records of ``log.jsonl``.
        path: Of the figure; its ending (``.png``, ``.svg``, ``.pdf``) tells the format.

    Returns:
        The path.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install matplotlib") from error

    path = Path(path)
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
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
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=150)
    return path
