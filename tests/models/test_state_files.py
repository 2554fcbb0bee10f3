"""State dicts as people keep them: found in their wrappers, without running what a pickle would run."""

import argparse
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rsnn_zoo.models.state_files import read_state_dict


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.ReLU(), nn.Linear(2, 3)))


STATE = network().state_dict()
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def prefixed(prefix, state=STATE):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def same(found, expected=STATE):
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "module.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "model.",
        "model._orig_mod.",
        "network.",
        "net.",
    ],
)
def test_prefixes_of_wrappers_go(prefix):
    assert same(read_state_dict(prefixed(prefix)))


def test_what_torch_itself_writes_is_read(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(nn.DataParallel(torch.compile(network())))
    inner = network()
    inner[2] = torch.compile(inner[2])  # a part alone
    for number, module in enumerate((averaged, inner)):
        torch.save({"state_dict": module.state_dict(), "epoch": 3}, tmp_path / f"{number}.pth")
        assert same(read_state_dict(tmp_path / f"{number}.pth"))


@pytest.mark.parametrize(
    "key", ["state_dict_ema", "model_ema", "ema", "params", "network", "state_dict", "model", "net"]
)
def test_keys_of_wrappers_are_known(key):
    assert same(read_state_dict({"epoch": 1, key: prefixed("module."), "optimizer": {"lr": 0.1}}))


def test_which_of_several_is_taken_is_said_and_can_be_chosen(caplog):
    several = {"state_dict": STATE, "state_dict_ema": OTHER, "mine": STATE}
    assert same(read_state_dict(several), OTHER)
    assert "took state_dict_ema of state_dict_ema, state_dict; key=" in caplog.text
    caplog.clear()
    assert same(read_state_dict(several, key="state_dict")) and same(read_state_dict(several, key="mine"))
    assert not caplog.text
    with pytest.raises(ValueError, match="no state dict under 'emma'; there are state_dict, state_dict_ema, mine"):
        read_state_dict(several, key="emma")
    with pytest.raises(ValueError, match=r"not a state dict.*there are mine: name one by key="):
        read_state_dict({"mine": STATE, "epoch": 3})


def test_lightning_s_metrics_are_left_out_and_said(caplog):
    lightning = {"pytorch-lightning_version": "2.5", "state_dict": prefixed("model.") | {"loss.weight": torch.ones(3)}}
    assert same(read_state_dict(lightning)) and "left out 1 tensors" in caplog.text


def test_the_robustness_library_s_copies_are_left_out(caplog):
    copies = prefixed("module.model.") | prefixed("module.attacker.model.", OTHER)
    copies |= {"module.normalizer.new_mean": torch.zeros(3), "module.attacker.normalize.new_std": torch.ones(3)}
    assert same(read_state_dict({"model": copies, "epoch": 3})) and "left out" in caplog.text


def test_a_prefix_that_the_network_itself_has_is_left():
    own = prefixed("model.")
    assert same(read_state_dict(prefixed("module.", own), names=own), own)
    assert same(read_state_dict(own, names=own), own)
    assert same(read_state_dict(own, names=STATE))
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert list(read_state_dict(mixed)) == ["module.a", "b"]


def test_numbers_of_numpy_and_a_namespace_may_stand_beside_the_weights(tmp_path, monkeypatch):
    numbers = [np.float64(93.2), np.float32(1.5), np.int64(7), np.bool_(True), np.array([2.0], ">f8")[0]]
    content = {"net": STATE, "acc": numbers, "args": argparse.Namespace(lr=0.1, layers=[1, 2], best=np.float64(0.5))}
    torch.save(content, tmp_path / "full.pth")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same(read_state_dict("~/full.pth"))


class OfNumpy1(pickle._Pickler):
    """Writes NumPy scalars as NumPy 1 did."""

    def save_global(self, obj, name=None):
        if getattr(obj, "__module__", "").startswith("numpy._core"):
            self.write(f"c{obj.__module__.replace('._core', '.core')}\n{obj.__name__}\n".encode())
            self.memoize(obj)
        else:
            super().save_global(obj, name)


OfNumpy1.dispatch = {**pickle._Pickler.dispatch}


def test_files_of_numpy_1_are_read(tmp_path):
    module = type("module", (), {"Pickler": OfNumpy1, "__name__": "pickle", "dumps": staticmethod(pickle.dumps)})
    torch.save({"net": STATE, "acc": np.float64(93.2)}, tmp_path / "old.pth", pickle_module=module)
    assert b"numpy.core" in (tmp_path / "old.pth").read_bytes()
    assert same(read_state_dict(tmp_path / "old.pth"))


class Crafted:
    """A NumPy scalar of objects, which would make a pointer of the bytes of a file."""

    def __reduce__(self):
        return np.float64(1).__reduce__()[0], (np.dtype("O"), b"\x01" * 8)


class Odd:
    """Of a module that the reader may not even have."""


@pytest.mark.parametrize(("content", "said"), [(Odd(), r"test_state_files\.Odd\)"), (Crafted(), "NumPy scalars")])
def test_nothing_else_may(tmp_path, content, said):
    torch.save({"net": STATE, "more": content}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=f"odd.pth is damaged, or holds more than .*{said}.*a pickle can run code"):
        read_state_dict(tmp_path / "odd.pth")


def test_the_tensors_stay_when_the_file_is_overwritten(tmp_path):
    for suffix, write in ((".safetensors", save_file), (".pth", torch.save)):
        path, other = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
        write(STATE, path)
        write(OTHER, other)
        found = read_state_dict(path)
        with open(path, "r+b") as file:  # as cp does
            file.write(other.read_bytes())
        assert same({name: found[name] for name in STATE})


def test_a_checkpoint_that_swells_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("rsnn_zoo._utils.archives.SMALL", 10_000)
    torch.save({"x": torch.zeros(10**5)}, tmp_path / "plain.pth")
    packed = zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert read_state_dict(tmp_path / "plain.pth")["x"].shape == (10**5,)
    with pytest.raises(ValueError, match=r"small\.pth: its .* would unpack to .* write it uncompressed"):
        read_state_dict(tmp_path / "small.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_pipe_is_no_file(tmp_path, suffix):
    """Opened, it would wait for ever."""
    os.mkfifo(tmp_path / f"x{suffix}")
    with pytest.raises(OSError, match="is no regular file"):
        read_state_dict(tmp_path / f"x{suffix}")


def test_a_checkpoint_that_holds_itself_has_an_end(tmp_path):
    holder = {"epoch": 1}
    holder["state_dict"] = holder
    torch.save(holder, tmp_path / "it.pth")
    with pytest.raises(ValueError, match="not a state dict"):
        read_state_dict(tmp_path / "it.pth")


@pytest.mark.parametrize("state", [{1: torch.ones(1)}, {("a",): torch.ones(1)}, {}, {"state_dict": {}}])
def test_what_has_no_names_is_no_state_dict(state):
    with pytest.raises(ValueError, match="not a state dict"):
        read_state_dict(state)


def test_what_was_compiled_twice_is_read():
    assert [*read_state_dict({"a._orig_mod._orig_mod.b": torch.ones(1)})] == ["a.b"]


@pytest.mark.parametrize("averaged", [{"decay": 0.9, "shadow": {"w": torch.ones(1)}}, {"module": {"w": torch.ones(1)}}])
def test_averaged_weights_may_have_a_wrapper_of_their_own(averaged):
    assert read_state_dict({"model": {"w": torch.zeros(1)}, "ema": averaged})["w"] == 1
