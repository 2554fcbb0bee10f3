"""Evaluate an entry from its name to its evidence: model, images, attacks, energy, and the files of the report.

The one path by which the command line, the scripts and the published evidence come to their numbers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rsnn_zoo._utils.defaults import device_of
from rsnn_zoo._utils.files import load_json
from rsnn_zoo._utils.folders import current
from rsnn_zoo.data.images import ImageData, load_dataset
from rsnn_zoo.evaluation.clean import clean_accuracy
from rsnn_zoo.evaluation.energy import energy
from rsnn_zoo.evaluation.evaluation import evaluate
from rsnn_zoo.hub.publish import save_evidence
from rsnn_zoo.hub.registry import create_model
from rsnn_zoo.hub.resolve import entries_folder
from rsnn_zoo.models.distributed import Ranks
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES
from rsnn_zoo.report.outputs import keep_former
from rsnn_zoo.report.report import Report
from rsnn_zoo.spec.config import CONFIG, EVIDENCE, load_config
from rsnn_zoo.spec.names import ModelName, is_model
from rsnn_zoo.training.recipe import split_of

__all__ = ["ann_of", "data_of", "evaluate_entry", "save_report"]

ENERGY_IMAGES = 256
"""Images over which spikes and energy are averaged."""


def data_of(
    model: nn.Module,
    source: str | os.PathLike[str] | None = None,
    split: str = "test",
    *,
    images: int | Sequence[int] | None = None,
    root: str | os.PathLike[str] = "data",
    download: bool = False,
) -> ImageData:
    """The images that a network is to be evaluated on, split as its training split them.

    Args:
        model: A network of this zoo.
        source: An ``.npz`` file, a folder or a data set, in place of the one in the network's name.
        split: ``"test"``, ``"validation"`` or ``"train"``.
        images: The first so many, or those at these places; None for all.
        root: Folder of the named data sets on disk.
        download: Whether a named data set may be downloaded.

    Raises:
        ValueError: If neither the name nor ``source`` says a data set, or the record of the training cannot be used.
        OSError: If the data set is not there.

    Example:
        >>> len(data_of(create_model("resnet20_digits_trades_t4"), images=8))
        8
    """
    name = str(getattr(model, "pretrained_name", None))
    dataset = ModelName.parse(name).dataset if is_model(name) else None
    if source is None and dataset is None:
        raise ValueError(f"{name} names no data set: pass --data, or source=")
    where = {"root": root, "download": download, **split_of(getattr(model, "training_record", {}))}
    with Ranks.current().main_first():  # the others find what it has downloaded
        data = load_dataset(source or dataset, split, dataset=dataset, **where)
    return data if images is None else data.select(images)


def evaluate_entry(
    entry: str | nn.Module,
    attack: str | Sequence[str] | Mapping[str, float | Sequence[float]] = "ensemble-pgd20",
    eps: float | Sequence[float] = 8 / 255,
    *,
    data: ImageData | str | os.PathLike[str] | None = None,
    split: str = "test",
    images: int | Sequence[int] | None = None,
    root: str | os.PathLike[str] = "data",
    download: bool = False,
    device: torch.device | str | None = None,
    with_energy: bool = True,
    clean_on_all: bool = False,
    **settings: Any,
) -> Report:
    """Robust accuracy, spikes and energy of an entry on the images that its name says.

    Under ``torchrun`` every process calls it alike; the report of the main one has the energy too.

    Args:
        entry: A published name, ``"hf-hub:org/name"``, ``"local-dir:path"``, or a network of this zoo.
        attack: One protocol, several, or a mapping of protocols to radii, as of :func:`rsnn_zoo.evaluate`.
        eps: One radius or several, in units of pixels in [0, 1].
        data: The images themselves, or what :func:`data_of` takes as ``source``.
        split: See :func:`data_of`; of named data.
        images: See :func:`data_of`.
        root: See :func:`data_of`.
        download: See :func:`data_of`.
        device: Where to compute; by default where the network is.
        with_energy: Whether to count spikes and energy too.
        clean_on_all: Whether to find the accuracy without attack on the whole split too, however few images are
            attacked.
        **settings: Of :func:`rsnn_zoo.evaluate`, such as ``seed``, ``checks``, ``state`` and ``progress``.

    Returns:
        The report; :func:`save_report` writes it.

    Raises:
        LookupError: If nobody published that name.
        OSError: If the entry or the data set cannot be had, or the state cannot be written.
        ValueError: If something given cannot be used.

    Example:
        >>> report = evaluate_entry("resnet20_digits_trades_t4", "fgsm", images=8, checks=0)
        >>> report.model, len(report.correct), report.extra["energy"]["images"]
        ('resnet20_digits_trades_t4', 8, 8)
    """
    model = create_model(entry, pretrained=True) if isinstance(entry, str) else entry
    model = model if device is None else model.to(device)
    whole = data if isinstance(data, ImageData) else data_of(model, data, split, root=root, download=download)
    data = whole if images is None else whole.select(images)
    report = evaluate(model, data, attack, eps, **settings)
    if clean_on_all:
        report.extra["clean_on_all"] = clean_accuracy(model, whole)
    if with_energy and Ranks.current().main:
        report.extra.update(energy(model, data.pixels(slice(0, ENERGY_IMAGES)).to(device_of(model))))
    return report


def ann_of(name: ModelName, training: dict[str, Any]) -> dict[str, Any] | None:
    """What the published ANN withstood that an SNN was converted from; None where there was none.

    Args:
        name: Of the SNN.
        training: Its record.

    Raises:
        OSError: If the entry of that ANN cannot be read.
        ValueError: If there is none of these weights.
    """
    if not training.get("ann"):
        return None
    ann, sha256 = replace(name, timesteps=None), training["ann_sha256"]
    folder = entries_folder() / str(ann)
    weights = load_config(folder / CONFIG).weights if (folder / EVIDENCE).is_file() else None
    if weights is None or weights.sha256 != sha256:
        raise ValueError(
            f"the entry {ann} is {'not there' if weights is None else 'of other weights'}: publish the network that "
            f"{name} was converted from first, as it is attacked by transfer from it and compared with it"
        )
    report = load_json(folder / EVIDENCE, MAX_EVIDENCE_BYTES)
    runs = [{key: run[key] for key in ("protocol", "eps", "robust_accuracy", "ci95")} for run in report["runs"]]
    return {"name": str(ann), "weights_sha256": sha256, "n": report["n"], "clean": report["clean"], "runs": runs}


def save_report(report: Report, path: Path, *others: Path) -> Path | None:
    """Write a report as JSON; an entry's card is renewed with its evidence, an SNN's beside that of its ANN.

    Args:
        report: What is to be written.
        path: Of the JSON; the report of another evaluation that is there is kept.
        *others: Further files of the same report, which the caller writes: their former ones are kept alike.

    Returns:
        Where the former report is kept; None where nothing had to be.

    Raises:
        OSError: If it cannot be written.

    Example:
        >>> save_report(report, Path("results/net.json"), Path("results/net.csv"))  # doctest: +SKIP
        PosixPath('results/net.1.json')
    """
    of_entry = path.name == EVIDENCE and current(path.parent, CONFIG).is_file()
    if of_entry:
        config = load_config(current(path.parent, CONFIG))
        with suppress(OSError, ValueError):  # whoever evaluates an SNN need not have its ANN
            if ann := ann_of(ModelName.parse(config.name), config.training):
                report.extra["ann"] = ann
    former = keep_former([path, *others], report.to_json())
    if of_entry:
        save_evidence(path.parent, report.to_json())  # and the card, which is of the evidence too
    else:
        report.save(path)
    return former
