"""The files of an evaluation: an earlier report is not lost where another one takes its name."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from rsnn_zoo._utils.files import load_json, replacing
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES

__all__ = ["identity", "keep_former"]


def identity(report: Mapping[str, Any]) -> list[Any]:
    """What the verdicts of a report follow from: the same for one that only repeats it."""
    about = [report[key] for key in ("model", "weights_sha256", "split", "data_sha256", "index", "settings")]
    members = [[(attack["attack"], attack["mode"]) for attack in run["attacks"]] for run in report["runs"]]
    about.append(report.get("network"))
    return [*about, report["versions"]["rsnn_zoo"], members, [(run["protocol"], run["eps"]) for run in report["runs"]]]


def keep_former(files: Sequence[Path], report: Mapping[str, Any]) -> Path | None:
    """Copies the files of a report that the new one is no repetition of: ``net.json`` to ``net.1.json``, or 2, 3 ...

    They stay under their own names too, until the new ones take their place.

    Args:
        files: Where the new report goes, the JSON first; all of one stem.
        report: The new one, as JSON.

    Returns:
        The new path of the former JSON; None where nothing had to be renamed.

    Example:
        >>> keep_former([Path("results/net.json"), Path("results/net.csv")], report.to_json())  # doctest: +SKIP
        PosixPath('results/net.1.json')
    """
    try:
        if identity(load_json(files[0], MAX_EVIDENCE_BYTES)) == identity(report):
            return None
    except FileNotFoundError:
        return None
    except (LookupError, TypeError, ValueError):
        pass  # what cannot be read is no repetition
    stem = files[0].stem
    for number in count(1):
        moves = [(file, file.with_name(f"{stem}.{number}{file.name.removeprefix(stem)}")) for file in files]
        if not any(new.exists() for _, new in moves):
            break
    for old, new in moves:
        if old.exists():
            with replacing(new) as temporary:
                shutil.copyfile(old, temporary)
    return moves[0][1]
