"""The leaderboard: one static page of all entries and attacks, made from their evidence; opens from a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rsnn_zoo._utils.files import replacing
from rsnn_zoo._utils.folders import current, locked
from rsnn_zoo.report.evidence import load_evidence, published_runs
from rsnn_zoo.spec.config import CARD, CONFIG, EVIDENCE, ModelConfig, load_config

__all__ = ["leaderboard_page", "read_entry", "save_leaderboard"]

_TEMPLATE = Path(__file__).with_name("leaderboard.html")
_MARKER = "__ENTRIES__"


def read_entry(folder: str | os.PathLike[str], seen_from: str | os.PathLike[str] = ".") -> dict[str, Any]:
    """Read what the page shows of one entry.

    Args:
        folder: Holds ``config.json`` and ``evaluation.json``, as every entry does and as others send theirs.
        seen_from: Folder of the page, from which its links go.

    Raises:
        OSError: If one of the two cannot be read.
        ValueError: If the evidence is of other weights, or its verdicts contradict what it claims.

    Example:
        >>> read_entry("hub_configs/resnet20_digits_trades_t4")["timesteps"]  # doctest: +SKIP
        4
    """
    folder = Path(folder)
    with locked(folder, shared=True):
        config = load_config(current(folder, CONFIG), registered=False)  # nothing of the network is built here
        evidence = load_evidence(current(folder, EVIDENCE), config)
    published_runs(evidence)  # refuses accuracies that the verdicts do not give
    energy = evidence.get("energy", {})
    link = Path(os.path.relpath(folder, seen_from)).as_posix()
    name = config.name or folder.name
    return {
        "name": name,
        "dataset": str(evidence["dataset"]),
        "images": f"{evidence['n']:,} {evidence.get('split') or ''} images".replace("  ", " "),
        "timesteps": config.timesteps or 0,
        "parameters": config.weights.num_parameters if config.weights else None,
        "nanojoule": energy.get("nanojoule"),
        "clean": evidence["clean"]["accuracy"],
        "clean_ci95": evidence["clean"]["ci95"],
        "runs": [
            {"protocol": run["protocol"], "eps": run["eps"], "robust": run["robust_accuracy"], "ci95": run["ci95"]}
            for run in evidence["runs"]
        ],
        "flags": {
            flag: str(one.get("message") or "") for flag, one in evidence.get("flags", {}).items() if one.get("raised")
        },
        "card": f"{link}/{CARD}" if current(folder, CARD).is_file() else None,
        "evidence": f"{link}/{EVIDENCE}",
        "bibtex": _bibtex(name, config, evidence),
    }


def _bibtex(name: str, config: ModelConfig, evidence: Mapping[str, Any]) -> str:
    """A reference to exactly these weights."""
    sha256 = config.weights.sha256 if config.weights else ""
    fields = {
        "title": "{" + name + "}: a network of the rsnn\\_zoo model zoo",
        "year": str(evidence.get("created", ""))[:4],
        "howpublished": f"rsnn\\_zoo {evidence.get('versions', {}).get('rsnn_zoo', '')}".strip(),
        "note": f"weights with SHA-256 {sha256}",
    }
    lines = "".join(f"  {key} = {{{value}}},\n" for key, value in fields.items())
    return f"@misc{{{name},\n{lines}}}"


def leaderboard_page(entries: Iterable[Mapping[str, Any]]) -> str:
    """Give the page as HTML; nothing that an entry says can leave the place of its text.

    Args:
        entries: Each as :func:`read_entry` gives it.
    """
    content = json.dumps(list(entries), ensure_ascii=True, allow_nan=False)
    for character in "<>&":  # so that no text ends the element that holds it
        content = content.replace(character, f"\\u{ord(character):04x}")
    return _TEMPLATE.read_text(encoding="utf-8").replace(_MARKER, content)


def save_leaderboard(path: str | os.PathLike[str], folders: Iterable[str | os.PathLike[str]]) -> int:
    """Write the page of these entries.

    Args:
        path: Of the page.
        folders: Of the entries; two of one name are refused.

    Returns:
        How many entries there are on it.

    Raises:
        OSError: If an entry cannot be read or the page not be written.
        ValueError: If an entry is not what it claims to be, as far as its files tell.
    """
    path = Path(path)
    entries = [read_entry(folder, path.parent) for folder in folders]
    names = [entry["name"] for entry in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several entries are called {', '.join(twice)}: give each a name of its own")
    if not entries:
        raise ValueError(f"there is no entry to show: name folders that hold {CONFIG} and {EVIDENCE}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(leaderboard_page(entries), encoding="utf-8")
    return len(entries)
