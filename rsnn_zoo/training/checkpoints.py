"""The folder of a run, which survives being killed: written atomically, checked when read, the one before kept."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rsnn_zoo._utils.archives import check_swelling
from rsnn_zoo._utils.files import load_json, open_regular, replacing, to_json, write_through

__all__ = ["CheckpointError", "OtherRunError", "RunFolder", "load_checkpoint", "save_checkpoint"]

_log = logging.getLogger(__name__)

CURRENT, PREVIOUS = "checkpoint.pt", "checkpoint.previous.pt"
_DIGEST = hashlib.sha256().digest_size


class CheckpointError(ValueError):
    """Checkpoints are there, and none can be used."""


class OtherRunError(ValueError):
    """The folder holds a run with other settings."""


class RunFolder:
    """The folder of one run: ``checkpoint.pt`` and the one before, ``log.jsonl``, ``run.json``.

    Args:
        folder: Made if absent.
        settings: All that the run depends on, as JSON.
        environment: What it runs on, as JSON.
        defaults: What settings are, table by table, where a run of an older version says nothing.
        writes: Whether this process writes; of several, one does.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        environment: Mapping[str, Any],
        *,
        defaults: Mapping[str, Any] | None = None,
        writes: bool = True,
    ):
        self.folder, self.writes = folder, writes
        self.settings: dict[str, Any] = json.loads(to_json(settings))
        known = {key: value for key, value in (defaults or {}).items() if key in settings}
        self.defaults: dict[str, Any] = json.loads(to_json(known))
        self.environment: dict[str, Any] = json.loads(to_json(environment))

    def __str__(self) -> str:
        return str(self.folder)

    def open(self) -> dict[str, Any] | None:
        """The state to go on from, or None for a new run.

        Raises:
            OtherRunError: If the folder holds a run with other settings (names what differs), or what was kept of a
                finished one.
            CheckpointError: If its checkpoints cannot be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if (state := load_checkpoint(self.folder)) is None:
            self._check_unfinished()
            self.write_record(None)
            return None
        if differing := differences(state["settings"], self.settings, self.defaults):
            raise OtherRunError(
                f"{self} holds another run ({'; '.join(differing)}): give another folder, or the same settings"
            )
        return state

    def _check_unfinished(self) -> None:
        record = self.folder / "run.json"
        if record.is_file() and load_json(record).get("result"):
            raise OtherRunError(
                f"{self} holds a finished run without its checkpoints, which would be replaced: give another folder, "
                f"or remove {record} to train anew"
            )

    def go_on(self, state: Mapping[str, Any], finished: bool) -> None:
        """Takes note of where the state comes from: of what is finished the environment stays on record.

        The log is written anew: what saved the state may have been killed before it came to that.
        """
        self._write_log(state["history"])
        if finished:
            self.environment = state["environment"]
        elif state["environment"] != self.environment:
            _log.warning("the run goes on in another environment: its weights may differ by roundings")

    def save(self, state: Mapping[str, Any]) -> None:
        """Writes a checkpoint, and the log: what the state has as ``history``, a record an epoch.

        Raises:
            OSError: If it cannot be written; what was there stays.
        """
        if self.writes:
            save_checkpoint(self.folder, {**state, "settings": self.settings, "environment": self.environment})
            self._write_log(state["history"])

    def _write_log(self, history: Sequence[Mapping[str, Any]]) -> None:
        if self.writes:
            with replacing(self.folder / "log.jsonl") as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in history))

    def write_record(self, result: Mapping[str, Any] | None) -> dict[str, Any]:
        """Writes ``run.json`` with a result, or none yet; returns its content."""
        record = {**self.settings, "environment": self.environment, "result": result}
        if self.writes:
            with replacing(self.folder / "run.json") as temporary:
                temporary.write_bytes(to_json(record))
        return record


def _completed(before: Any, defaults: Any) -> Any:
    """``before``, and of the defaults what it does not say, table by table."""
    if not (isinstance(before, Mapping) and isinstance(defaults, Mapping)):
        return before
    return {**defaults, **{key: _completed(value, defaults.get(key)) for key, value in before.items()}}


def differences(before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of a run and others, key by key.

    Args:
        before: Settings of a run, perhaps by an older version, as JSON.
        now: The others, as JSON.
        defaults: What settings are, table by table, where the run says nothing.
    """
    return _differing(_completed(before, defaults), now)


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], path: str = "") -> list[str]:
    found = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differing(old, new, f"{path}{key}.")
        elif old != new:
            found.append(f"{path}{key} is {old!r} there, {new!r} here")
    return found


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
        write_through(temporary, hashlib.sha256(data).digest(), data)  # or a full disk costs the one before
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
            with open_regular(folder / name) as file:
                data = file.read()
            return _state(data)
        except FileNotFoundError:
            continue
        except OSError as error:  # no regular file, not readable for us, a disk that fails
            faults.append(f"{folder / name} cannot be read ({error})")
            _log.warning("%s: falling back to the one before", faults[-1])
        except CheckpointError as error:
            faults.append(f"{folder / name} {error}")
            _log.warning("%s: falling back to the one before", faults[-1])
    if faults:
        raise CheckpointError(f"{' and '.join(faults)}: delete the folder's checkpoints to start the run anew")
    return None


def _state(data: bytes) -> dict[str, Any]:
    """What a checkpoint holds, whoever wrote it.

    Raises:
        CheckpointError: If it is damaged, or no state of a run.
    """
    content = memoryview(data)[_DIGEST:]
    if hashlib.sha256(content).digest() != data[:_DIGEST]:
        raise CheckpointError("is damaged")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            check_swelling(archive, small=0)  # torch.save compresses nothing
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of the zip archive, of the pickle in it, of the tensors in that: anything
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(f"is no state of a run ({type(error).__name__}: {cause})") from error
    kinds = {"settings": Mapping, "environment": Mapping, "history": Sequence}
    if not isinstance(state, dict) or any(not isinstance(state.get(key), kind) for key, kind in kinds.items()):
        raise CheckpointError(f"is no state of a run: it lacks {', '.join(kinds)}")
    return state
