"""What a protocol is chosen by: the greedy order of candidates, and what fells the images that withstand another."""

import json
import runpy
from pathlib import Path

import pytest

from rsnn_zoo.report.report import FIRST, wilson

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return lambda name: runpy.run_path(str(ROOT / "scripts" / f"{name}.py"))


def one(felled, seconds, standing=()):
    return {"felled": felled, "standing": list(standing), "seconds": seconds}


def test_next_comes_what_fells_most_per_second_of_what_is_left(script):
    attacks = {"first": one([0], 1.0, range(1, 9)), "dear": one([1, 2, 3, 4], 8.0), "cheap": one([1, 2], 1.0)}
    found = {"first": "first", "attacks": attacks | {"idle": one([], 0.5), "same": one([1], 0.75)}}
    candidates = script("_candidates")
    assert candidates["ordered"](found) == [("cheap", 2, 2.0), ("dear", 2, 0.25)]
    about = {"model": "a", "eps": 8 / 255, "n": 10, "split": "validation", "dataset": "b", "precision": "folded"}
    *_, cheap, dear, idle, same, _, left = candidates["table"](found | about | {"cores": 2, "cpu": "c"}).splitlines()
    assert cheap == "| `cheap` | 2 | 0.12 | 2 | 120 |" and dear == "| `dear` | 4 | 1.00 | 2 | 15 |"
    assert idle == "| `idle` | 0 | 0.06 | 0 | 0 |" and same == "| `same` | 1 | 0.09 | 0 | 0 |"
    assert left == "4 stand under all of them."


def test_experiments_by_which_a_protocol_was_chosen_are_on_validation_images():
    paths = sorted((ROOT / "docs" / "protocols").glob("*.json"))
    assert paths and {json.loads(path.read_text(encoding="utf-8"))["split"] for path in paths} == {"validation"}


def run(protocol, verdicts, *attacks):
    listed = [{"attack": name, "mode": mode, "felled": verdicts.count(i)} for i, (name, mode) in enumerate(attacks)]
    stand = verdicts.count(-1)
    accuracy = {"robust_accuracy": stand / len(verdicts), "ci95": list(wilson(stand, len(verdicts)))}
    return {"protocol": protocol, "eps": 8 / 255, "verdicts": verdicts, "attacks": listed, **accuracy}


def report(*runs, weights="a", n=6):
    clean = {"accuracy": (n - 1) / n, "ci95": list(wilson(n - 1, n))}
    about = {"model": "m", "weights_sha256": weights, "split": "test", "n": n, "index": FIRST}
    return about | {"clean": clean, "runs": list(runs), "robust": []}


STRONG = [("adaptive434", "own"), ("apgd100-ce", "rate"), ("flips5000", "own"), ("apgd100-ce", "assg")]


def test_what_members_felled_stands_beside_what_an_earlier_protocol_left(script):
    table = script("_felled")["by_member"]
    mine = report(run("new", [-2, 0, 1, 1, 2, -1], *STRONG), run("other", [-2, 0, 0, 0, 0, 0], ("fgsm", "ste")))
    former = report(run("old", [-2, 0, 0, -1, -1, -1, -1], ("fgsm", "ste")), n=7)
    *_, adaptive, rate, flips, stand, before = table("new", [mine], ("old", [former])).splitlines()
    assert (adaptive, rate, flips) == ("| `adaptive434` | 1 |", "| `apgd100-ce@rate` | 2 |", "| `flips5000` | 1 |")
    assert stand == "| stand | 1 of 6 |" and before == "| under `old` | 3 |"
    other = report(*former["runs"], weights="b", n=7)
    assert table("new", [mine], ("old", [other])).endswith("| under `old` |  |")


def test_what_withstands_one_protocol_is_counted_by_what_fells_it_in_another(script):
    missed = script("_felled")["missed"]
    weak, strong = run("weak", [-2, 0, -1, -1, -1, -1], ("pgd20", "rate")), run("new", [-2, 0, 0, 3, 2, -1], *STRONG)
    *_, row = missed("weak", "new", [report(weak, strong), report(weak)]).splitlines()
    assert row == "| `m`, 8/255 | 4 | 1 | 1 | 1 | 1 |"
    unknown = run("new", [-2, 0, 0, -1, -1, -1], ("square", "own"))
    with pytest.raises(ValueError, match=r"no column for .*square"):
        missed("weak", "new", [report(weak, unknown)])
