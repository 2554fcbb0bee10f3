"""Whatever lies where a file should be, each loader says so by the error that it documents, and none waits for ever."""

import os
import signal
from pathlib import Path

import pytest

import rsnn_zoo
from rsnn_zoo._utils.files import ConfigError, check_writable, load_json, read_text
from rsnn_zoo._utils.folders import locked
from rsnn_zoo.data.folders import _read_torchvision
from rsnn_zoo.evaluation.ledger import Ledger
from rsnn_zoo.hub.weights import WeightsError, load_weights, read_tensors
from rsnn_zoo.models.state_files import read_state_dict
from rsnn_zoo.report.results_file import read_rows
from rsnn_zoo.spec.config import load_config
from rsnn_zoo.spec.datasets import DATASETS
from rsnn_zoo.training.checkpoints import CURRENT, PREVIOUS, CheckpointError, load_checkpoint, save_checkpoint
from rsnn_zoo.training.recipe import load_recipe

LOADERS = {  # the end of a file's name, and what reads it
    "config": (".json", load_config),
    "evidence": (".json", load_json),
    "card": (".md", lambda path: read_text(path, 100)),
    "weights": (".safetensors", lambda path: load_weights(path, "0" * 64)),
    "examples": (".safetensors", read_tensors),
    "state dict": (".pth", read_state_dict),
    "recipe": (".toml", lambda path: load_recipe(path, "at")),
    "images": (".npz", rsnn_zoo.load_dataset),
    "ledger": (".partial", lambda path: Ledger(path, {})),
    "entry": ("", lambda path: rsnn_zoo.create_model(f"local-dir:{path}", pretrained=True)),
    "results": (".csv", lambda path: read_rows(Path(path))),
    "checkpoint": (".pt", lambda path: load_checkpoint(_as_checkpoint(path))),
}


def _as_checkpoint(path: str) -> Path:
    """A folder in which this is the checkpoint."""
    Path(path).rename(Path(path).with_name(CURRENT))
    return Path(path).parent


THINGS = {
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
    "a device": lambda path: os.symlink("/dev/zero", path),
    "a link to itself": lambda path: os.symlink(path, path),
}


@pytest.fixture
def patience():
    """Ends what waits for ever."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it waits for ever"))
    signal.alarm(20)
    yield
    signal.alarm(0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("thing", THINGS)
@pytest.mark.parametrize("what", LOADERS)
def test_what_is_no_file_is_refused(tmp_path, patience, what, thing):
    ending, load = LOADERS[what]
    path = str(tmp_path / f"it{ending}")
    THINGS[thing](path)
    if thing == "a link to itself" and what in ("results", "checkpoint"):
        return  # which leads nowhere: there is none yet
    with pytest.raises((OSError, ValueError), match=r".{20}"):
        load(path)


@pytest.mark.parametrize("what", [what for what in LOADERS if what != "checkpoint"])
def test_a_name_that_no_file_can_have_is_told(what):
    ending, load = LOADERS[what]
    for name in (f"a\0b{ending}", "x" * 300 + ending):
        if (what, name[0]) == ("results", "a"):
            continue  # nothing is there, and what cannot be written is found out before the attacks
        with pytest.raises((OSError, ValueError), match=r"a\\?.*b|x{50}") as refused:
            load(name)
        assert len(str(refused.value)) > 30, "it says little"


@pytest.mark.parametrize("name", ["a\0b.json", "x" * 300 + ".json"])
def test_what_cannot_be_written_is_known_before_the_work(tmp_path, name):
    with pytest.raises(ValueError, match=r"cannot be written.*name another path"):
        check_writable(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_the_place_of_a_folder_is_not_waited_for(tmp_path, patience):
    os.mkfifo(tmp_path / "pipe")
    with locked(tmp_path / "pipe"), locked("a\0b"):
        pass


@pytest.mark.parametrize("place", ["current", "both"])
def test_a_checkpoint_that_cannot_be_opened_gives_way_to_the_one_before(tmp_path, place):
    state = {"settings": {}, "environment": {}, "history": []}
    for epoch in range(2):
        save_checkpoint(tmp_path, {**state, "epoch": epoch})
    for name in (CURRENT, PREVIOUS)[: 1 + (place == "both")]:
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
    if place == "current":
        assert load_checkpoint(tmp_path)["epoch"] == 0
    else:
        with pytest.raises(CheckpointError, match=r"cannot be read.* and .*cannot be read.*start the run anew"):
            load_checkpoint(tmp_path)


def test_empty_files_are_refused(tmp_path):
    for number, (what, (ending, load)) in enumerate(LOADERS.items()):
        if what in ("card", "recipe", "ledger", "results", "entry"):
            continue  # of these nothing is something
        (folder := tmp_path / str(number)).mkdir()
        (folder / f"it{ending}").touch()
        with pytest.raises((ConfigError, WeightsError, ValueError)):
            load(str(folder / f"it{ending}"))


def test_torchvision_s_files_cut_short_are_told(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{name}-ubyte").write_bytes(b"\0\0\x08\x07junk")
    with pytest.raises(FileNotFoundError, match=r"missing or damaged"):
        _read_torchvision(DATASETS["fmnist"], tmp_path, True, False)
