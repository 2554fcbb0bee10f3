"""``rsnn_zoo.export``: a network to a file of another format, which is read back and checked before it stays."""

from __future__ import annotations

import io
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsnn_zoo._utils.files import check_writable, replacing, to_json, write_through
from rsnn_zoo._utils.provenance import digest, environment
from rsnn_zoo.exports.check import Comparison, Judged, Pass, compare, default_images, recorded_spikes, reference_pass
from rsnn_zoo.exports.graph import ExportError, checked_network
from rsnn_zoo.exports.lower import spiking_graph
from rsnn_zoo.exports.nir import interpret, neuron_names, read_nir, to_nir
from rsnn_zoo.exports.runtimes import onnx_pass, torch_pass, write_onnx, write_torch
from rsnn_zoo.exports.simulators import installed_simulators, load_nir
from rsnn_zoo.models import Network

__all__ = ["FORMATS", "ExportReport", "export"]

SIMULATOR_SPIKES = 1e-6
"""Share of the spikes in which a simulator in float64 may differ: it sums in another order."""
RUNTIME_PREDICTIONS = 0.01
"""Share of the predictions in which a runtime in float32 may differ: a flipped spike decides between near classes."""


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it was checked.

    Attributes:
        path: The file; beside it lies this report, as ``NAME.report.json``.
        format: ``"nir"``, ``"onnx"`` or ``"torch"``.
        checks: One of each runtime.
    """

    path: str
    format: str
    checks: tuple[Comparison, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.path} ({self.format})", *(f"  {check}" for check in self.checks)])


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    format: str = "nir",
    *,
    batch: int | None = None,
    images: Tensor | None = None,
) -> ExportReport:
    """Writes a network for another simulator, a runtime or hardware, and checks what was written.

    The file is read back and shown images: a NIR file by a reference interpreter in float64, no spike of which may
    differ, and by each simulator that is installed (at most one spike in a million may differ, no prediction); an ONNX
    file by onnxruntime and a torch file by torch, at most one prediction in a hundred. A file that fails is not left
    behind. A report, ``NAME.report.json``, lies beside a file that holds.

    Args:
        model: A network of this zoo: for ``"nir"`` an SNN whose membranes do not leak, else any. It is not touched.
        path: The file.
        format: ``"nir"`` (float64), ``"onnx"`` or ``"torch"`` (``torch.export``; both float32).
        batch: Size of the batches that an ONNX or torch file takes; None for any.
        images: (N, C, H, W) in [0, 1] to check it with; by default some digits, brought to the network's size.

    Raises:
        ExportError: A ``ValueError``, if the network has no such form, or the file fails its check.
        ImportError: If a package is missing: ``pip install 'rsnn_zoo[nir]'`` or ``'rsnn_zoo[onnx]'``.
        ValueError: For an unknown format, a batch below 1, images that do not fit, or a path that cannot be written.

    Example:
        >>> print(rsnn_zoo.export(model, "resnet20.nir"))  # doctest: +SKIP
    """
    if format not in FORMATS:
        raise ExportError(f"unknown format {format!r}: there are {', '.join(FORMATS)}")
    if batch is not None and (format == "nir" or batch < 1):
        raise ExportError(f"batch={batch}: a size of at least 1, and none for nir, whose graphs hold no batch")
    check_writable(path)
    network = checked_network(model, format).float()
    images = default_images(network) if images is None else images.detach().cpu().float()
    network.check(images)
    source = network if format != "nir" else checked_network(model, format)
    with replacing(path) as temporary:
        checks = tuple(FORMATS[format](source, temporary, batch, images))
        report = ExportReport(str(path), format, checks)
        if not all(check.passes for check in checks):
            failed = "; ".join(str(check) for check in checks if not check.passes)
            raise ExportError(f"{path} is not kept, it does not compute what the network does: {failed}")
        with replacing(f"{os.fspath(path)}.report.json") as beside:
            beside.write_bytes(to_json(_about(model, report, batch)))
    return report


def _about(model: nn.Module, report: ExportReport, batch: int | None) -> dict[str, Any]:
    return {
        "schema": 1,
        "model": getattr(model, "pretrained_name", None),
        "model_sha256": digest(model),
        "format": report.format,
        "batch": batch,
        "checks": [asdict(check) for check in report.checks],
        "environment": environment(),
    }


def _export_nir(model: Network, path: Path, batch: int | None, images: Tensor) -> list[Comparison]:
    graph = to_nir(spiking_graph(model), model=str(model.pretrained_name), sha256=digest(model))
    import nir

    written = io.BytesIO()  # HDF5 tells in a way of its own that a disk is full, or not before the file is closed
    nir.write(written, graph)
    write_through(path, written.getbuffer())
    ours, graph = reference_pass(model, torch.float64), read_nir(path)
    layers = neuron_names(graph)

    def by_layer(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits, spikes = interpret(graph, images)
        return logits, {layers[name]: fired for name, fired in spikes.items()}

    judged = [Judged(by_layer, "rsnn_zoo", "float64")]
    for simulator in installed_simulators():
        try:
            theirs = _simulator_pass(path, simulator, layers)
        except ExportError:  # this library has no such neuron
            continue
        judged.append(Judged(theirs, simulator, "float64", spikes_within=SIMULATOR_SPIKES))
    return compare(ours, judged, images)


def _simulator_pass(path: Path, simulator: str, layers: dict[str, str]) -> Pass:
    simulated = load_nir(path, simulator, torch.float64)
    modules = {layer: simulated.network.get_submodule(name) for name, layer in layers.items()}

    @torch.no_grad()
    def run(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        found: dict[str, list[Tensor]] = {}
        with recorded_spikes(modules, found):
            logits = simulated(images.double())
        return logits, {layer: torch.stack(steps) for layer, steps in found.items()}

    return run


def _export_onnx(model: Network, path: Path, batch: int | None, images: Tensor) -> list[Comparison]:
    write_onnx(model, path, batch)
    ours = reference_pass(model, torch.float32)
    theirs = Judged(onnx_pass(path), "onnxruntime", "float32", predictions_within=RUNTIME_PREDICTIONS)
    return compare(ours, [theirs], images)


def _export_torch(model: Network, path: Path, batch: int | None, images: Tensor) -> list[Comparison]:
    write_torch(model, path, batch)
    ours = reference_pass(model, torch.float32)
    theirs = Judged(torch_pass(path, batch), "torch", "float32", predictions_within=RUNTIME_PREDICTIONS)
    return compare(ours, [theirs], images)


FORMATS = {"nir": _export_nir, "onnx": _export_onnx, "torch": _export_torch}
"""Formats by name: network, path, batch and images to how the file compares."""
