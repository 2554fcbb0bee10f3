"""A run that stops, for whatever reason, is taken up where it was or refused with what differs."""

import itertools
import json
import os
import signal
from dataclasses import asdict, replace

import pytest
import torch

from rsnn_zoo.training import checkpoints
from rsnn_zoo.training.checkpoints import load_checkpoint, save_checkpoint
from rsnn_zoo.training.recipe import Conversion, Neuron
from rsnn_zoo.training.train import DivergedError, OtherRunError, TrainingInterrupted
from tests.training.conftest import ROBUST, STAGE, run, same

# Compiling takes longer than these runs; the kernels' numbers are those of eager mode, see test_neurons.py.
pytestmark = pytest.mark.usefixtures("eager")

# --- never lost -------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_stops_and_says_where(tmp_path, data, validation):
    with pytest.raises(DivergedError, match=r"epoch \d+, batch \d+ of 4: lower lr"):
        run(data, validation, tmp_path, replace(STAGE, lr=100.0, warmup=0.0, momentum=0.99, epochs=20))


def test_another_run_in_the_folder_is_refused_with_what_differs(tmp_path, data, validation):
    run(data, validation, tmp_path, replace(STAGE, epochs=1))
    with pytest.raises(OtherRunError, match=r"seed is 0 there, 1 here; stage\.lr is 0\.05 there, 0\.1 here"):
        run(data, validation, tmp_path, replace(STAGE, epochs=1, lr=0.1), seed=1)
    with pytest.raises(OtherRunError, match="train_sha256"):
        run(data.select(range(1, 64)), validation, tmp_path, replace(STAGE, epochs=1))


def test_a_run_of_a_version_that_knew_fewer_settings_goes_on(tmp_path, data, validation):
    about = {"neuron": asdict(Neuron()), "conversion": asdict(Conversion())}
    run(data, validation, tmp_path, replace(STAGE, epochs=1), about=about)
    state = load_checkpoint(tmp_path)
    for table, key in (("stage", "compile"), ("stage", "clip"), ("neuron", "initial"), ("conversion", "max_pool")):
        del state["settings"][table][key]
    del state["settings"]["stage"]["augmentation"]["cutout"], state["settings"]["network_sha256"]
    save_checkpoint(tmp_path, state)
    run(data, validation, tmp_path, replace(STAGE, epochs=1), about=about)
    with pytest.raises(
        OtherRunError, match=r"neuron\.initial is 0\.0 there, 0\.5 here; stage\.clip is 0\.0 there, 1\.0"
    ):
        about["neuron"]["initial"] = 0.5
        run(data, validation, tmp_path, replace(STAGE, epochs=1, clip=1.0), about=about)


def test_a_run_of_another_network_is_not_taken_up(tmp_path, data, validation):
    run(data, validation, tmp_path, replace(ROBUST, epochs=1), timesteps=2)
    with pytest.raises(OtherRunError, match="network_sha256"):
        run(data, validation, tmp_path, replace(ROBUST, epochs=1), timesteps=3)


def test_a_log_that_was_not_written_is_written_when_the_run_is_taken_up(tmp_path, data, validation):
    _, result = run(data, validation, tmp_path)
    (tmp_path / "log.jsonl").unlink()
    run(data, validation, tmp_path)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == result.history


def test_a_finished_run_gives_its_result_at_once(tmp_path, data, validation):
    model, result = run(data, validation, tmp_path)
    again, found = run(data, validation, tmp_path)
    assert same(model, again) and found.history == result.history and found.record == result.record


class Killed(BaseException):
    pass


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("timesteps", [None, 2])
def test_a_run_killed_after_any_batch_ends_with_the_same_weights(
    tmp_path, data, validation, timesteps, ema, monkeypatch
):
    stage = replace(ROBUST, ema=ema, channels_last=bool(ema))
    expected, whole = run(data, validation, tmp_path / "whole", stage, timesteps)
    steps = iter(range(100))
    real = torch.optim.SGD.step

    def killed(*arguments, **keywords):
        if next(steps) % 3 == 2:
            raise Killed
        return real(*arguments, **keywords)

    monkeypatch.setattr(torch.optim.SGD, "step", killed)
    for _ in range(20):
        try:
            found, result = run(data, validation, tmp_path / "killed", stage, timesteps, interval=0.0)
            break
        except Killed:
            continue
    assert same(found, expected)
    drop = ("seconds", "images_per_second", "peak_memory")
    assert [{k: v for k, v in r.items() if k not in drop} for r in result.history] == [
        {k: v for k, v in r.items() if k not in drop} for r in whole.history
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, data, validation, monkeypatch, number):
    expected, _ = run(data, validation, tmp_path / "whole", replace(STAGE, epochs=8))
    steps, real = itertools.count(), torch.optim.SGD.step

    def signalled(*arguments, **keywords):
        if next(steps) == 12:
            os.kill(os.getpid(), number)
        return real(*arguments, **keywords)

    monkeypatch.setattr(torch.optim.SGD, "step", signalled)
    handler = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted, match=rf"stopped by {number.name} .* run the same command again"):
        run(data, validation, tmp_path / "stopped", replace(STAGE, epochs=8))
    assert signal.getsignal(number) is handler
    found, _ = run(data, validation, tmp_path / "stopped", replace(STAGE, epochs=8))
    assert same(found, expected)


def test_a_damaged_checkpoint_costs_only_what_came_after_the_one_before(tmp_path, data, validation, caplog):
    expected, _ = run(data, validation, tmp_path / "whole")
    run(data, validation, tmp_path / "damaged", interval=0.0)
    path = tmp_path / "damaged" / checkpoints.CURRENT
    path.write_bytes(path.read_bytes()[:-5])
    found, _ = run(data, validation, tmp_path / "damaged")
    assert same(found, expected) and "falling back to the one before" in caplog.text


def test_what_is_finished_stays_the_work_of_where_it_was_done(tmp_path, data, validation, monkeypatch, caplog):
    def record():
        return json.loads((tmp_path / "run.json").read_text())

    run(data, validation, tmp_path)
    before = record()
    monkeypatch.setattr("rsnn_zoo.training.run.environment", lambda device: {"cpu": "another"})
    run(data, validation, tmp_path)
    assert record() == before and "another environment" not in caplog.text


def test_a_disk_that_is_full_for_a_while_costs_nothing(tmp_path, data, validation, monkeypatch, caplog):
    expected, _ = run(data, validation, tmp_path / "whole")
    calls = []
    real = save_checkpoint

    def sometimes_full(folder, state):
        calls.append(state["epoch"])
        if len(calls) < 4:
            raise OSError(28, "No space left on device")
        real(folder, state)

    monkeypatch.setattr("rsnn_zoo.training.checkpoints.save_checkpoint", sometimes_full)
    found, _ = run(data, validation, tmp_path / "full", interval=0.0)
    assert same(found, expected) and "trying again later: [Errno 28] No space left" in caplog.text


def test_a_disk_that_stays_full_ends_in_an_error(tmp_path, data, validation, monkeypatch):
    def full(folder, state):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rsnn_zoo.training.checkpoints.save_checkpoint", full)
    with pytest.raises(OSError, match="No space left"):
        run(data, validation, tmp_path)
