"""The state of an evaluation: shared by processes, resumed after a kill, asked for more later, damaged."""

import copy
import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from rsnn_zoo.attacks.adaptive import Adaptive
from rsnn_zoo.attacks.signed import SignAttack
from rsnn_zoo.evaluation.evaluation import evaluate
from tests import tiny
from tests.evaluation.conftest import QUIET, comparable

pytestmark = pytest.mark.usefixtures("eager")

PROGRAM = """
import os, sys, torch
import torch.distributed as dist
from rsnn_zoo.evaluation.evaluation import evaluate
from tests import tiny
torch.set_num_threads(1)
several = int(os.environ.get("WORLD_SIZE", 1)) > 1
if several:
    dist.init_process_group("gloo")
attack, state, output, adversarial = sys.argv[1:5]
data = tiny.digits().select(60)
report = evaluate(tiny.network(True), data, attack, [8 / 255, 24 / 255], batch_size=5, chunk=16, state=state or None,
                  adversarial=adversarial or None)
if not several or dist.get_rank() == 0:
    report.save(output)
if several:
    dist.destroy_process_group()
"""


def start(ranks, *arguments):
    """Starts an evaluation in so many processes, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"RSNN_ZOO_COMPILE": "0", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    here |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return [subprocess.Popen(command, env={**os.environ, **here, "RANK": str(rank)}) for rank in range(ranks)]


def known(state):
    """How many verdicts a state holds."""
    try:
        with sqlite3.connect(f"file:{state}?mode=ro", uri=True) as database:
            return database.execute("SELECT count(*) FROM samples WHERE job != 'clean'").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def contents(path):
    """What is in a safetensors file, whose header has no fixed order."""
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name).tolist() for name in file.keys()}  # noqa: SIM118


@pytest.mark.slow
def test_shards_and_one_process_make_the_same_report(tmp_path):
    reports, files = [], []
    for ranks in (1, 2, 3):
        output, adversarial = tmp_path / f"{ranks}.json", tmp_path / f"{ranks}.safetensors"
        assert [p.wait() for p in start(ranks, "ensemble-pgd5", "", output, adversarial)] == [0] * ranks
        reports.append(comparable(json.loads(output.read_text())))
        files.append(contents(adversarial))
    assert reports[0] == reports[1] == reports[2] and reports[0]["flags"]
    assert files[0] == files[1] == files[2]


@pytest.mark.slow
def test_killed_and_resumed_with_other_ranks_it_makes_the_same_report(tmp_path):
    names = ("state", "report.json", "adversarial.safetensors")
    state, output, adversarial = (tmp_path / name for name in names)
    for kill_all, ranks in ((True, 1), (False, 2), (True, 3)):
        processes, before = start(ranks, "ensemble-pgd8", state, output, adversarial), known(state)
        while known(state) < before + 6:
            assert all(process.poll() is None for process in processes), "it ended before it was killed"
            time.sleep(0.005)
        processes[-1].send_signal(signal.SIGKILL)
        time.sleep(0 if kill_all else 0.3)  # the others go on, until they wait for what will never come
        for process in processes:
            process.kill()
            process.wait()
    assert not output.exists() and not adversarial.exists()
    assert [p.wait() for p in start(2, "ensemble-pgd8", state, output, adversarial)] == [0, 0]

    straight = tmp_path / "straight.json", tmp_path / "straight.safetensors"
    assert [p.wait() for p in start(1, "ensemble-pgd8", "", *straight)] == [0]
    assert comparable(json.loads(output.read_text())) == comparable(json.loads(straight[0].read_text()))
    assert contents(adversarial) == contents(straight[1])


def test_a_finished_state_gives_the_report_without_any_attack(tmp_path, monkeypatch):
    settings = {"attack": "pgd3", "eps": 16 / 255, "state": tmp_path / "state"}
    first = evaluate(tiny.network(), tiny.digits(), **settings)
    monkeypatch.setattr("rsnn_zoo.attacks.signed.SignAttack.__call__", None)
    monkeypatch.setattr("rsnn_zoo.attacks.queries.Square.__call__", None)
    again = evaluate(tiny.network(), tiny.digits(), **settings)
    assert comparable(again.to_json()) == comparable(first.to_json())
    assert again.runs[0].seconds == first.runs[0].seconds > 0


def test_what_the_ensemble_learned_beforehand_takes_time_too(tmp_path, monkeypatch):
    def slowly(self, victim, pilot):
        time.sleep(1)
        return replace(self, bars=(math.inf,) * 4)

    monkeypatch.setattr("rsnn_zoo.attacks.adaptive.Adaptive.learned", slowly)
    settings = QUIET | {"state": tmp_path / "state"}
    for _ in range(2):  # the second time it is known, as is what it took
        (run,) = evaluate(tiny.network(), tiny.digits().select(4), "adaptive31", **settings).runs
        assert 1 < run.seconds < 100


def test_more_samples_attacks_and_radii_are_asked_of_a_state_later(tmp_path, monkeypatch):
    """Among them the adaptive ensemble, which learns something else from more samples."""
    snn, few, more = tiny.network(True), tiny.digits().select(30), tiny.digits().select(90)
    settings = {"adversarial": tmp_path / "examples", **QUIET}
    attacks = {"pgd3": [24 / 255, 32 / 255], "adaptive31": 24 / 255}
    evaluate(snn, few, ["pgd3", "adaptive31"], 24 / 255, state=tmp_path / "state", **settings)
    judged, attack = [], SignAttack.__call__
    with monkeypatch.context() as patched:
        patched.setattr(SignAttack, "__call__", lambda *args: judged.extend(args[2].index) or attack(*args))
        grown = evaluate(snn, more, attacks, state=tmp_path / "state", **settings)
    correct = [sample for sample, right in enumerate(grown.correct) if right]
    assert sorted(judged) == sorted([*correct, *(sample for sample in correct if sample >= 30)])
    found = contents(tmp_path / "examples")
    assert comparable(grown.to_json()) == comparable(evaluate(snn, more, attacks, **settings).to_json())
    assert contents(tmp_path / "examples") == found
    again = evaluate(snn, few, "pgd3", 24 / 255, state=tmp_path / "state", **settings)
    assert again.runs[0].verdicts == grown.runs[0].verdicts[:30]


def test_what_an_adaptive_ensemble_learned_is_kept_and_may_be_given(tmp_path, monkeypatch):
    """So an evaluation that goes on elsewhere, and one that repeats a part of it, follow the same order and bars."""
    snn, settings = tiny.network(True), {"attack": "adaptive62", "eps": 24 / 255, **QUIET}
    (whole,) = evaluate(snn, tiny.digits().select(150), state=tmp_path / "state", **settings).runs
    (part,) = evaluate(snn, tiny.digits().select(20), **settings).runs
    assert part.learned != whole.learned
    monkeypatch.setattr(Adaptive, "learned", None)  # it learns no more
    (again,) = evaluate(snn, tiny.digits().select(150), state=tmp_path / "state", **settings).runs
    taught = {"adaptive62/own": json.loads(json.dumps(whole.learned[0]))}
    (given,) = evaluate(snn, tiny.digits().select(20), **settings, taught=taught).runs
    assert again.learned == given.learned == whole.learned and again.verdicts == whole.verdicts
    assert given.verdicts == whole.verdicts[:20]


def test_a_foreign_state_is_refused(tmp_path):
    settings = {"attack": "fgsm", "state": tmp_path / "state", **QUIET}
    evaluate(tiny.network(), tiny.digits().select(4), **settings)
    slower = copy.deepcopy(tiny.network(True))
    slower.activation.timesteps = 8
    with_t4 = tmp_path / "spiking"
    evaluate(tiny.network(True), tiny.digits().select(4), **settings | {"state": with_t4})
    with pytest.raises(ValueError, match="another evaluation"):  # the same weights
        evaluate(slower, tiny.digits().select(4), **settings | {"state": with_t4})
    before = (tmp_path / "state").read_bytes()
    for changed in ({"seed": 1}, {"adversarial": tmp_path / "adversarial"}, {"precision": "bfloat16"}):
        with pytest.raises(ValueError, match="another evaluation"):
            evaluate(tiny.network(), tiny.digits().select(4), **settings, **changed)
    for other in (tiny.network(True), slower):
        with pytest.raises(ValueError, match="another evaluation"):
            evaluate(other, tiny.digits().select(4), **settings)
    images, labels = tiny.digits().pixels(slice(0, 4)), tiny.digits().labels[:4]
    for data in ((images.flip(0), labels), (images, labels.flip(0))):  # of the same numbers
        with pytest.raises(ValueError, match="another evaluation"):
            evaluate(tiny.network(), data, **settings)
    assert (tmp_path / "state").read_bytes() == before
    (tmp_path / "state").write_text('{"verdicts": {}}')
    with pytest.raises(ValueError, match="no state of an evaluation"):
        evaluate(tiny.network(), tiny.digits().select(4), **settings)


def test_a_state_has_its_folder_made_or_is_refused(tmp_path):
    settings = {"attack": "fgsm", **QUIET}
    evaluate(tiny.network(), tiny.digits().select(4), state=tmp_path / "missing" / "too" / "state", **settings)
    assert known(tmp_path / "missing" / "too" / "state")
    (tmp_path / "file").touch()
    for state in (tmp_path, tmp_path / "file" / "state"):
        with pytest.raises(OSError, match=f"cannot be kept in {state} .*: name a file that can be written"):
            evaluate(tiny.network(), tiny.digits().select(4), state=state, **settings)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE samples SET verdict = -1 - verdict",
        "UPDATE samples SET sample = sample + 1000",
        "UPDATE batches SET seconds = seconds + 1",
        "UPDATE about SET fingerprint = 'x'",
        "DROP TABLE samples",
        "CREATE VIEW other AS SELECT 1",
    ],
)
def test_a_damaged_state_is_noticed(tmp_path, damage):
    data, state = tiny.digits().select(8), tmp_path / "state"
    evaluate(tiny.network(), data, "fgsm", state=state, checks=0)
    with closing(sqlite3.connect(state)) as database, database:
        database.execute(damage)
    with pytest.raises(ValueError, match="is damaged, or no state of an evaluation"):
        evaluate(tiny.network(), data, "fgsm", state=state, checks=0)
