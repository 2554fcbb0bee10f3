"""Files of measurements that take hours: written after each step, so that the same command goes on where it stopped."""

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rsnn_zoo._utils.files import load_json, replacing, to_json


def resumed(path: Path, asked: dict[str, Any], empty: dict[str, Any]) -> dict[str, Any]:
    """What a file holds of the measurement that is asked for, or a new measurement.

    Raises:
        ValueError: If the file is of another measurement.
    """
    found = load_json(path) if path.exists() else asked | empty
    if other := {key: found.get(key) for key, value in asked.items() if found.get(key) != value}:
        raise ValueError(f"{path} holds another measurement, with {other}: name another file")
    return found


def keep(path: Path, found: dict[str, Any]) -> None:
    """Write what was found so far, with the time."""
    found["created"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(to_json(found))
