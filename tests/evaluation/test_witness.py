"""A process that branches off and answers later: of what it knows, and of what becomes of it."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from rsnn_zoo.evaluation import witness
from rsnn_zoo.evaluation.evaluation import evaluate
from rsnn_zoo.evaluation.witness import Witness
from tests import tiny

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not Witness.possible(CPU), reason="nothing branches off there")


def test_it_answers_as_the_model_did_before_and_with_the_same_bits():
    model = tiny.network(spiking=True).eval()
    images = tiny.digits().select(32).pixels()
    with torch.no_grad():
        before = model(images)  # on as many threads as there are, which do not come along
        asked = Witness(model)
        for weight in model.parameters():
            weight.zero_()
    assert torch.equal(asked.logits(images, 0.0).to(before), before) and not torch.allclose(model(images), before)


def test_a_question_that_it_cannot_answer_leaves_it_alive():
    asked = Witness(tiny.network().eval())
    with pytest.raises(RuntimeError, match="shape"):
        asked.logits(torch.zeros(1, 5, 3, 3), 0.0)
    assert asked.logits(tiny.digits().select(2).pixels(), 0.0).shape == (2, 10)


def test_a_model_that_leaves_is_told_from_one_that_is_killed():
    with pytest.raises(RuntimeError, match="ends the process"):
        Witness(lambda x: os._exit(0)).logits(torch.zeros(1, 1), 0.0)


@pytest.mark.parametrize("ends", [lambda x: time.sleep(60), lambda x: os.kill(os.getpid(), signal.SIGKILL)])
def test_one_that_hangs_or_dies_is_given_up_with_a_word(ends, monkeypatch, caplog):
    monkeypatch.setattr(witness, "ANSWERS_WITHIN", 1.0)
    asked = Witness(ends)
    assert asked.logits(torch.zeros(1, 1), 0.0) is None and "copies alone" in caplog.text
    assert asked.logits(torch.zeros(1, 1), 0.0) is None  # at once
    assert not asked.dismiss.alive


def test_one_that_never_listens_holds_nobody_up(monkeypatch, caplog):
    monkeypatch.setattr(witness, "ANSWERS_WITHIN", 1.0)
    monkeypatch.setattr(witness, "_testify", lambda *_: time.sleep(60))
    assert Witness(tiny.network()).logits(torch.zeros(1, 1 << 21), 0.0) is None  # more than a pipe holds
    assert "copies alone" in caplog.text


def test_another_fork_that_ends_leaves_it_alive():
    asked = Witness(lambda x: x + 1)
    if not (child := os.fork()):
        asked.dismiss()
        os._exit(0)
    os.waitpid(child, 0)
    assert asked.logits(torch.zeros(1, 1), 0.0) == 1


def test_it_ends_with_who_asks_however_that_ends():
    script = """
import os, signal, torch
from rsnn_zoo.evaluation.witness import Witness
pid = Witness(lambda x: torch.tensor([float(os.getpid())])).logits(torch.zeros(1), 0.0)
kept = Witness(lambda x: torch.tensor([float(os.getpid())]))
print(int(pid), int(kept.logits(torch.zeros(1), 0.0)), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert told.returncode == -signal.SIGKILL, told.stderr
    deadline = time.monotonic() + 20
    for pid in map(int, told.stdout.split()):
        while _runs(pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _evaluated(connection):
    report = evaluate(tiny.network(), tiny.digits().select(4), "fgsm", 8 / 255, chunk=16)
    connection.send([flag.name for flag in report.flags])


def test_an_evaluation_needs_none_where_processes_have_no_children():
    here, there = multiprocessing.Pipe()
    daemon = multiprocessing.get_context("spawn").Process(target=_evaluated, args=(there,), daemon=True)
    daemon.start()
    there.close()
    assert "inconsistent" in here.recv()
    daemon.join()


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
