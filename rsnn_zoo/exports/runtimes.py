"""ONNX and ``torch.export`` files: written, and run again."""

from __future__ import annotations

import copy
import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsnn_zoo._utils.files import write_through
from rsnn_zoo.exports.check import Pass
from rsnn_zoo.exports.graph import ExportError
from rsnn_zoo.models import Network

__all__ = ["onnx_pass", "torch_pass", "write_onnx", "write_torch"]

OPSET = 18


def _plain(model: Network, batch: int | None) -> tuple[nn.Module, Tensor, dict[str, Any] | None]:
    """A copy to trace in float32, an input, and what of its shape may change."""
    model = copy.deepcopy(model).eval().cpu().float().requires_grad_(False)
    x = torch.rand(batch or 2, model.in_chans, model.img_size, model.img_size)
    return model, x, None if batch else {"x": {0: torch.export.Dim("batch", min=1)}}


def write_onnx(model: Network, path: Path, batch: int | None) -> None:
    """Writes an ONNX file: images (batch, C, H, W) in [0, 1], float32, to logits (batch, K).

    Args:
        model: Any network of this zoo.
        path: The file.
        batch: Its fixed size, or None for any.

    Raises:
        ImportError: If onnx or onnxscript is not installed.
        ExportError: If the network cannot be exported.
        OSError: If the file cannot be written.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"ONNX files need the package {error.name}: pip install 'rsnn_zoo[onnx]'") from error
    plain, x, shapes = _plain(model, batch)
    names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": shapes}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                plain, (x,), path, dynamo=True, opset_version=OPSET, external_data=False, verbose=False, **names
            )
    except OSError:
        raise
    except Exception as error:  # the exporter raises of many kinds
        raise ExportError(f"torch.onnx.export fails: {str(error)[:500]}") from error
    onnx.checker.check_model(path)


def onnx_pass(path: str | os.PathLike[str], threads: int = 1) -> Pass:
    """An ONNX file in onnxruntime, on the CPU.

    Raises:
        ImportError: If onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("checking ONNX files needs onnxruntime: pip install 'rsnn_zoo[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    fixed = given.shape[0] if isinstance(given.shape[0], int) else None

    def run(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits = [session.run(None, {given.name: part.numpy()})[0] for part in _padded_batches(images.float(), fixed)]
        return torch.cat([torch.from_numpy(part) for part in logits])[: len(images)], {}

    return run


def write_torch(model: Network, path: Path, batch: int | None) -> None:
    """Writes a ``torch.export`` program (.pt2): images (batch, C, H, W) in [0, 1] to logits (batch, K).

    Raises:
        ExportError: If the network cannot be exported.
        OSError: If the file cannot be written.
    """
    plain, x, shapes = _plain(model, batch)
    written = io.BytesIO()  # on a full disk torch's own writer ends the process
    try:
        torch.export.save(torch.export.export(plain, (x,), dynamic_shapes=shapes), written)
    except Exception as error:  # the exporter raises of many kinds
        raise ExportError(f"torch.export fails: {str(error)[:500]}") from error
    write_through(path, written.getbuffer())


def torch_pass(path: str | os.PathLike[str], batch: int | None) -> Pass:
    """A ``torch.export`` program, run in eager."""
    with open(path, "rb") as file:
        module = torch.export.load(file).module()

    @torch.no_grad()
    def run(images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.cat([module(part) for part in _padded_batches(images.float(), batch)])[: len(images)], {}

    return run


def _padded_batches(images: Tensor, size: int | None) -> tuple[Tensor, ...]:
    """Batches of a fixed size, the last filled up with black images."""
    if size is None:
        return (images,)
    short = -len(images) % size
    return torch.cat([images, images.new_zeros(short, *images.shape[1:])]).split(size)
