"""Entries in a folder: what is saved and refused, and what a full disk or a kill leaves."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.utils.prune

import rsnn_zoo
from rsnn_zoo._utils.files import ConfigError, load_json, to_json
from rsnn_zoo.attacks.gradients import fold
from rsnn_zoo.conversion.conversion import convert
from rsnn_zoo.hub import publish
from rsnn_zoo.hub.publish import EvidenceError, save_pretrained
from rsnn_zoo.hub.resolve import resolve
from rsnn_zoo.hub.weights import WeightsError, check_state_dict
from rsnn_zoo.models import resnet20, vgg11
from rsnn_zoo.neurons.integrate_fire import Surrogate
from tests.conftest import NAME, read_only, small_network
from tests.hub.conftest import FILES, KILLED_AT_RENAME, ROOT

# --- saving -----------------------------------------------------------------------------------------------------------


def test_a_saved_network_is_an_entry_that_loads_bit_for_bit(entry):
    assert {path.name for path in entry.iterdir()} == FILES
    found = resolve(f"local-dir:{entry}")
    state = found.load_weights()
    expected = small_network().state_dict()
    check_state_dict(state, expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert found.config.model_args == {
        "in_chans": 1,
        "img_size": 8,
        "timesteps": 2,
        "reset": "hard",
        "leak": 1.0,
        "mean": [pytest.approx(0.3)],
        "std": [pytest.approx(0.4)],
    }


def test_timm_loads_the_folder_too(entry):
    network = timm.create_model(f"local-dir:{entry}", pretrained=True).eval()
    images = torch.rand(3, 1, 8, 8)
    assert network.timesteps == 2
    assert torch.equal(network(images), small_network()(images))
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=network))
    assert (network.pretrained_cfg["input_size"], len(transform.transforms)) == ((1, 8, 8), 4)


def test_a_vgg_of_another_width_loads_as_it_was_saved(tmp_path, eager):
    small = {"num_classes": 10, "in_chans": 1, "img_size": 8, "timesteps": 2}
    network = vgg11(**small, hidden_features=24).eval()
    assert save_pretrained(network, tmp_path / "x", name="x").hidden_features == 24
    images = torch.rand(3, 1, 8, 8)
    for create in (rsnn_zoo.create_model, timm.create_model):
        loaded = create(f"local-dir:{tmp_path / 'x'}", pretrained=True).eval()
        assert torch.equal(loaded(images), network(images))


def test_a_converted_resnet_loads_with_the_sums_it_was_saved_with(tmp_path, eager):
    images = torch.rand(6, 1, 8, 8)
    network = convert(resnet20(num_classes=10, in_chans=1, img_size=8).eval(), 2, images)
    assert network.layer1[0].sum.weight.shape == (2, 16)
    assert save_pretrained(network, tmp_path / "x", name="x").channel_sums
    for create in (rsnn_zoo.create_model, timm.create_model):
        loaded = create(f"local-dir:{tmp_path / 'x'}", pretrained=True).eval()
        assert torch.equal(loaded(images), network(images))


def test_training_goes_on_by_the_surrogate_that_was_saved(tmp_path):
    saved = resnet20(num_classes=10, in_chans=1, img_size=8, timesteps=2, reset="soft", leak=0.5, surrogate="exp_d-0.5")
    save_pretrained(saved, tmp_path / "x", name="x")
    for create in (rsnn_zoo.create_model, timm.create_model):
        loaded = create(f"local-dir:{tmp_path / 'x'}", pretrained=True)
        assert {(str(n.surrogate), n.reset, n.leak) for _, n in loaded.neurons()} == {("exp_d-0.5", "soft", 0.5)}


def test_saving_the_same_weights_again_keeps_their_evidence_valid(entry):
    content = load_json(entry / "config.json")
    content["rsnn_zoo"] |= {"created": "2020-01-01T00:00:00+00:00", "revision": "v1"}
    (entry / "config.json").write_bytes(to_json(content))
    config = save_pretrained(small_network(), entry, name=NAME, training={"note": "more is known now"})
    assert (config.created, config.revision) == ("2020-01-01T00:00:00+00:00", "v1")
    publish.check_evidence(config, load_json(entry / "evaluation.json"))
    config = save_pretrained(small_network(seed=1), entry, name=NAME)
    assert config.created > "2020-01-02" and config.revision is None


@pytest.mark.parametrize(
    ("kwargs", "error", "said"),
    [
        ({"name": "vgg11_digits_at_t2"}, ConfigError, "promises architecture vgg11"),
        ({"name": "../evil"}, ConfigError, "rsnn_zoo.name"),
        ({"name": NAME, "training": {"loss": float("nan")}}, ConfigError, "Cannot write as JSON"),
        ({"name": NAME, "evaluation": {"weights_sha256": "0"}}, EvidenceError, "made with other weights"),
    ],
)
def test_a_refused_save_leaves_the_folder_as_it_was(entry, kwargs, error, said):
    before = {path.name: path.read_bytes() for path in entry.iterdir()}
    with pytest.raises(error, match=said):
        save_pretrained(small_network(seed=1), entry, **kwargs)
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == before


def test_a_network_of_elsewhere_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match=r"^Only .*no attribute 'architecture'.*register_architecture"):
        save_pretrained(timm.create_model("resnet18"), tmp_path / "x", name="x")
    assert not (tmp_path / "x").exists()


def test_what_its_name_does_not_promise_is_to_be_changed_not_fetched(tmp_path):
    network = small_network()
    network.timesteps = 3
    with pytest.raises(ConfigError, match=r"promises timesteps 2, but timesteps is 3; change the network, .* its name"):
        save_pretrained(network, tmp_path / "x", name=NAME)
    assert not (tmp_path / "x").exists()


def test_neurons_that_no_config_can_describe_are_not_saved(tmp_path):
    """Loaded again they would be others, and the evidence would be of another network."""
    for key, value in {"leak": 0.8, "reset": "soft", "timesteps": 3, "surrogate": Surrogate("rect", 2.0)}.items():
        network = small_network()
        setattr(next(neuron for _, neuron in network.neurons()), key, value)
        with pytest.raises(ConfigError, match=rf"act1\.{key} is .* of the network it is"):
            save_pretrained(network, tmp_path / "x", name="x")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved_is_known_before_a_training():
    publish.check_saveable(small_network(), NAME)
    tied = small_network()
    tied.layer1[0].conv2.weight = tied.layer1[0].conv1.weight
    with pytest.raises(WeightsError, match="share memory") as refusal:
        publish.check_saveable(tied, NAME)
    assert "\n" not in str(refusal.value)
    masked = small_network()
    masked.register_buffer("mask", torch.ones(2, dtype=torch.bool))
    with pytest.raises(WeightsError, match="mask"):
        publish.check_saveable(masked, NAME)
    with pytest.raises(ConfigError, match="leak is 0"):
        publish.check_saveable(small_network(leak=0.0), NAME)


def test_weights_that_the_network_would_not_take_are_not_saved(entry):
    before = {path.name: path.read_bytes() for path in entry.iterdir()}
    pruned = small_network(seed=1)
    torch.nn.utils.prune.l1_unstructured(pruned.layer1[0].conv1, "weight", 0.5)
    for network in (fold(small_network(seed=1)), pruned):
        for save in (publish.check_saveable, lambda network, name: save_pretrained(network, entry, name=name)):
            with pytest.raises(WeightsError, match="does not fit the network"):
                save(network, NAME)
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == before
    save_pretrained(torch.compile(small_network(seed=1)), entry, name=NAME)  # what is inside
    loaded = rsnn_zoo.create_model(f"local-dir:{entry}", pretrained=True)
    check_state_dict(loaded.state_dict(), small_network().state_dict())


def test_a_converted_network_is_saved_with_its_origin(tmp_path, ann):
    snn = rsnn_zoo.convert(ann, 2, rsnn_zoo.load_dataset("digits", "train").pixels(slice(0, 16)))
    training = save_pretrained(snn, tmp_path / "x", name="x", training={"seed": 0}).training
    assert training == {"seed": 0, "ann": ann.pretrained_name, "ann_sha256": ann.weights_sha256}
    assert "ann" not in save_pretrained(ann, tmp_path / "y", name="y").training


SAVE = """
import os, sys
from tests.conftest import NAME, save_pretrained, small_network
{before}
save_pretrained(small_network(seed=1), sys.argv[1], name=NAME)
"""


def save_after(before, folder):
    """Save other weights in a process of its own, after the statements ``before``."""
    command = [sys.executable, "-c", SAVE.format(before=before), str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_full_disk_leaves_the_folder_as_it_was(entry):
    before = {path.name: path.read_bytes() for path in entry.iterdir()}
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))"
    ended = save_after(limit, entry)
    assert ended.returncode == 1 and "File too large" in ended.stderr
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == before


@pytest.mark.parametrize("full_at", [1, 2, 3])
def test_a_disk_that_tells_late_that_it_is_full_leaves_the_folder_as_it_was(entry, monkeypatch, full_at):
    """Some tell only when the files are to be on the disk itself."""
    before = {path.name: path.read_bytes() for path in entry.iterdir()}
    fsync, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) == full_at:
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(small_network(seed=1), entry, name=NAME)
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == before


def test_a_read_only_folder_is_an_error_and_stays_as_it_was(entry):
    before = {path.name: path.read_bytes() for path in entry.iterdir()}
    with read_only(entry) as drop_rights:
        ended = save_after(drop_rights, entry)
    assert ended.returncode == 1 and "PermissionError" in ended.stderr
    assert {path.name: path.read_bytes() for path in entry.iterdir()} == before


@pytest.mark.parametrize("renames", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, 2, 3))])
def test_a_kill_in_the_middle_of_a_save_leaves_the_old_entry_or_the_new_one(entry, renames):
    old = resolve(f"local-dir:{entry}").sha256
    assert save_after(KILLED_AT_RENAME.format(renames=renames), entry).returncode == -signal.SIGKILL
    left = resolve(f"local-dir:{entry}")
    assert left.load_weights() and (left.sha256 == old) == (renames == 0)
    save_pretrained(small_network(seed=1), entry, name=NAME)  # and saving again clears up
    assert resolve(f"local-dir:{entry}").load_weights()
    assert {path.name for path in entry.iterdir()} == {
        "README.md",
        "config.json",
        "evaluation.json",
        "model.safetensors",
    }


def test_files_that_cannot_get_their_names_are_there_all_the_same(tmp_path, monkeypatch):
    renamed = []

    def replace(source, target, rename=os.replace):
        if len(renamed) == 2:
            raise OSError("the disk is gone")
        renamed.append(Path(target).name)
        rename(source, target)

    config = save_pretrained(small_network(), tmp_path / NAME, name=NAME)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        new = save_pretrained(small_network(seed=1), tmp_path / NAME, name=NAME)
    found = resolve(f"local-dir:{tmp_path / NAME}")
    assert found.config == new != config and found.load_weights()
