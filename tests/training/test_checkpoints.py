"""Checkpoints: one comes back, and a damaged or interrupted one gives way to the one before."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsnn_zoo.training import checkpoints
from rsnn_zoo.training.checkpoints import CheckpointError, load_checkpoint, save_checkpoint

# Compiling takes longer than these runs; the kernels' numbers are those of eager mode, see test_neurons.py.
pytestmark = pytest.mark.usefixtures("eager")

# --- checkpoints ------------------------------------------------------------------------------------------------------


STATE = {"settings": {}, "environment": {}, "history": []}


def test_a_checkpoint_comes_back(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for number in range(3):
        save_checkpoint(tmp_path, {**STATE, "number": number, "tensor": torch.full((3,), number)})
    assert load_checkpoint(tmp_path)["tensor"].tolist() == [2, 2, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]


@settings(deadline=None, max_examples=30)
@given(position=st.floats(0, 0.999), kind=st.sampled_from(["flip", "cut", "empty"]))
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path_factory, position, kind):
    folder = tmp_path_factory.mktemp("run")
    for number in range(2):
        save_checkpoint(folder, {**STATE, "number": number})
    path = folder / checkpoints.CURRENT
    content = bytearray(path.read_bytes())
    at = int(position * len(content))
    content[at] ^= 1
    path.write_bytes({"flip": content, "cut": content[:at], "empty": b""}[kind])
    assert load_checkpoint(folder)["number"] == 0


def test_two_damaged_checkpoints_are_an_error_that_says_what_to_do(tmp_path):
    for number in range(2):
        save_checkpoint(tmp_path, {**STATE, "number": number})
    for path in tmp_path.iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"damaged.*start the run anew"):
        load_checkpoint(tmp_path)


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, {**STATE, "number": 0})
    real = os.replace

    def killed(source, target):
        if Path(target).name == checkpoints.CURRENT:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {**STATE, "number": 1})
    assert load_checkpoint(tmp_path)["number"] == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_checkpoints_as_they_are(tmp_path, monkeypatch):
    for number in range(2):
        save_checkpoint(tmp_path, {**STATE, "number": number})
    monkeypatch.setattr("rsnn_zoo._utils.files.os.getpid", lambda: "full")
    (tmp_path / ".checkpoint.pt.full.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, {**STATE, "number": 2})
    assert load_checkpoint(tmp_path)["number"] == 1
    (tmp_path / checkpoints.CURRENT).unlink()
    assert load_checkpoint(tmp_path)["number"] == 0
