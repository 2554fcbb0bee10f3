"""What a protocol is chosen by: the greedy order, and tables that are those of the files."""

import json
import re
import runpy
import shlex
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "worst_case_v2.md"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / "scripts" / "choose_protocol.py"))


def one(felled, seconds, standing=()):
    return {"felled": felled, "standing": list(standing), "seconds": seconds}


def test_next_comes_what_fells_most_per_second_of_what_is_left(script, tmp_path):
    attacks = {"first": one([0], 1.0, range(1, 9)), "dear": one([1, 2, 3, 4], 8.0), "cheap": one([1, 2], 1.0)}
    found = {"first": "first", "attacks": attacks | {"idle": one([], 0.5), "same": one([1], 0.75)}}
    assert script["ordered"](found) == [("cheap", 2, 2.0), ("dear", 2, 0.25)]
    about = {"model": "a", "eps": 8 / 255, "n": 10, "split": "validation", "dataset": "b", "precision": "folded"}
    (tmp_path / "a.json").write_text(json.dumps(found | about | {"cores": 2, "cpu": "c"}))
    *_, cheap, dear, idle, same, _, left = script["table"](tmp_path / "a.json").splitlines()
    assert cheap == "| `cheap` | 2 | 0.12 | 2 | 120 |" and dear == "| `dear` | 4 | 1.00 | 2 | 15 |"
    assert idle == "| `idle` | 0 | 0.06 | 0 | 0 |" and same == "| `same` | 1 | 0.09 | 0 | 0 |"
    assert left == "4 stand under all of them."


def test_the_tables_of_the_page_are_those_of_the_files(script, monkeypatch):
    """By the commands that the page itself names, and of every measurement there is."""
    monkeypatch.chdir(ROOT)
    page = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"choose_protocol\.py\s--felled\s([^`]+)`", page)
    assert {command.split()[0] for command in commands} == {"worst-case-v1", "worst-case-v2"}
    for command in commands:
        protocol, *patterns = shlex.split(command)
        files = [sorted(map(str, Path().glob(pattern))) or [pattern] for pattern in patterns]
        assert script["felled"](protocol, *chain.from_iterable(files)) in page
    for path in sorted((ROOT / "docs" / "protocols").glob("*.json")):
        assert json.loads(path.read_text(encoding="utf-8"))["split"] == "validation"
        assert script["table"](path) in page
