"""The results file: one table of many evaluations, as CSV or JSON, to which each evaluation adds its row."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsnn_zoo._utils.files import load_json, replacing, to_json
from rsnn_zoo._utils.folders import locked
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES
from rsnn_zoo.report.report import write_csv

__all__ = ["add_row", "read_rows"]

ROW = ("model", "weights_sha256", "dataset", "split", "n", "data_sha256", "seed", "precision", "network")
"""What a row of the results file is of."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a results file, values of a CSV file as text; none where there is no file.

    Args:
        path: Ends in ``.csv`` or ``.json``.

    Raises:
        ValueError: If it is no results file.
    """
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"a results file ends in .csv or .json, not as {path}")
    try:
        if not path.exists():
            return []
        if not path.is_file():
            raise ValueError("it is no regular file")
        if path.suffix == ".json":
            rows = load_json(path, MAX_EVIDENCE_BYTES)
        else:
            with open(path, newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, strict=True)
                rows = list(reader)
                if reader.fieldnames and "model" not in reader.fieldnames:
                    raise ValueError("it has no column 'model'")
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "model" in row for row in rows):
            raise ValueError("it is no list of rows, each with its model")
        if any(None in row for row in rows):
            raise ValueError("a row has more values than there are columns")
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} is no results file ({error}): name another one") from None
    return rows


def add_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a results file; one of the same evaluation that is there keeps its other attacks and flags.

    Args:
        path: See :func:`read_rows`; it need not be there.
        row: ``Report.summary()``.

    Raises:
        ValueError: If it is no results file.
        OSError: If it cannot be written.
    """
    path = Path(os.path.realpath(path))  # through a link: else the link would become another file
    with locked(path.parent):  # or of two evaluations that end at once one row would be lost
        known = read_rows(path)
        rows = [*(old for old in known if _key(old) == _key(row)), row]
        flags = dict.fromkeys(flag for one in rows for flag in str(one.get("flags") or "").split())
        merged = {key: value for one in rows for key, value in one.items()} | {"flags": " ".join(flags)}
        rows = [*(old for old in known if _key(old) != _key(row)), merged]
        if path.suffix == ".csv":
            write_csv(path, rows)
            return
        with replacing(path) as temporary:
            temporary.write_bytes(to_json(rows))


def _key(row: Mapping[str, Any]) -> list[str]:
    """What a row is of, as text, since that is all that a CSV file gives back."""
    return ["" if row.get(key) is None else str(row[key]) for key in ROW]
