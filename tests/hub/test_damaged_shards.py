"""Shards that are damaged, missing, exchanged or not those of the config are refused by what is wrong."""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from rsnn_zoo._utils.files import load_json, to_json
from rsnn_zoo.hub.publish import push_to_hub
from rsnn_zoo.hub.weights import WeightsError
from rsnn_zoo.verify_entry import verify
from tests.hub.conftest import INDEX, SHARDS, load_folder, save_sharded, spoiled

pytestmark = pytest.mark.usefixtures("eager")

# --- a wrong file ---------------------------------------------------------------------------------------------------

FAULTS = {
    "missing": (lambda folder, name, other: (folder / name).unlink(), "there is no file"),
    "truncated": (lambda folder, name, other: os.truncate(folder / name, 300), "has 300 bytes"),
    "flipped": (lambda folder, name, other: flip(folder / name), "has SHA-256"),
    "foreign": (lambda folder, name, other: shutil.copy(other / name, folder / name), "has SHA-256|bytes"),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [INDEX, SHARDS[1]])
def test_a_wrong_file_is_refused_by_its_name(sharded, tmp_path, fault, name):
    spoil, said = FAULTS[fault]
    spoil(sharded, name, save_sharded(tmp_path / "other", seed=1))
    for use in (load_folder, lambda folder: push_to_hub(folder, dry_run=True)):
        with pytest.raises((WeightsError, FileNotFoundError), match=said) as refusal:
            use(sharded)
        assert name in str(refusal.value)
    checks = {check.what: check for check in verify(f"local-dir:{sharded}", 1)}
    assert not checks["weights"].holds and name in checks["weights"].said


def test_shards_that_changed_places_are_refused_by_name(sharded):
    first, second = (sharded / name for name in SHARDS[:2])
    data = first.read_bytes(), second.read_bytes()
    first.write_bytes(data[1])
    second.write_bytes(data[0])
    with pytest.raises(WeightsError, match=SHARDS[0]):
        load_folder(sharded)


def vouch(folder: Path, index: bool = True) -> None:
    """Make the config, and the index too, vouch for the files that are there."""
    content, said = load_json(folder / "config.json"), load_json(folder / INDEX)
    weights = content["rsnn_zoo"]["weights"]
    for shard in weights["shards"]:
        data = (folder / shard["file"]).read_bytes()
        shard |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        if index:
            said["metadata"]["sha256"][shard["file"]] = shard["sha256"]
    (folder / INDEX).write_bytes(to_json(said))
    weights |= {"sha256": hashlib.sha256(to_json(said)).hexdigest(), "size": len(to_json(said))}
    (folder / "config.json").write_bytes(to_json(content))


def test_the_checksum_of_the_index_is_the_checksum_of_every_shard(sharded, tmp_path):
    shutil.copy(save_sharded(tmp_path / "other", seed=1) / SHARDS[0], sharded)
    vouch(sharded, index=False)  # as one would who wants the published checksum for weights of his own
    with pytest.raises(WeightsError, match=f"{INDEX} is not of the {SHARDS[0]} that config.json names"):
        load_folder(sharded)


def test_a_shard_with_other_tensors_than_the_index_says_is_refused_by_name(sharded):
    shutil.copy(sharded / SHARDS[1], sharded / SHARDS[0])
    vouch(sharded)
    with pytest.raises(WeightsError, match=f"{SHARDS[0]} is not what {INDEX} says"):
        load_folder(sharded)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index.pop("weight_map"), "is no index of ours"),
        (lambda index: index.update(weight_map=[1]), "is no index of ours"),
        (lambda index: index["weight_map"].update({"fc.bias": "../../x"}), "names '../../x'"),
        (lambda index: index["weight_map"].update({"fc.bias": ["x"]}), "is no index of ours"),
        (lambda index: index["weight_map"].update({"more": SHARDS[0]}), "differs in 'more'"),
        (lambda index: index.update(metadata={}), "is no index of ours"),
        (lambda index: index["metadata"].update(sha256=3), "is no index of ours"),
    ],
)
def test_an_index_that_lies_is_refused(sharded, change, said):
    index = load_json(sharded / INDEX)
    change(index)
    with pytest.raises(WeightsError, match=said):
        load_folder(spoiled(sharded, index))
