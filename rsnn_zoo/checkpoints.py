"""Checkpoints that survive being killed: written atomically, checked when read, the one before kept."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import torch

from rsnn_zoo.files import replacing

__all__ = ["CheckpointError", "load_checkpoint", "save_checkpoint"]

_log = logging.getLogger(__name__)

CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
_DIGEST = hashlib.sha256().digest_size


class CheckpointError(ValueError):
    """Checkpoints are there, and none can be used."""


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Writes the state of a run; the checkpoint that was there becomes the one before.

    A file is its SHA-256, then what ``torch.save`` wrote: a zip archive alone would not notice a flipped bit.

    Args:
        folder: Folder of the run.
        state: Tensors, numbers, strings, and containers of them.

    Raises:
        OSError: If it cannot be written, such as on a full disk; the checkpoints that are there stay.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    with replacing(folder / CURRENT) as temporary:
        with open(temporary, "wb") as file:
            file.write(hashlib.sha256(data).digest())
            file.write(data)
        if (folder / CURRENT).exists():
            os.replace(folder / CURRENT, folder / PREVIOUS)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest state that can be read, on the CPU; None where there is no checkpoint.

    Raises:
        CheckpointError: If neither the checkpoint nor the one before can be read.
    """
    faults = []
    for name in (CURRENT, PREVIOUS):
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        if hashlib.sha256(data[_DIGEST:]).digest() == data[:_DIGEST]:
            return torch.load(io.BytesIO(data[_DIGEST:]), map_location="cpu", weights_only=True)
        faults.append(f"{folder / name} is damaged")
        _log.warning("%s: falling back to the one before", faults[-1])
    if faults:
        raise CheckpointError(f"{' and '.join(faults)}: delete the folder's checkpoints to start the run anew")
    return None
