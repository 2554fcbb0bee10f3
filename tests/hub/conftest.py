"""What several test files of this folder share."""

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune

import rsnn_zoo
from rsnn_zoo._utils.files import load_json, to_json
from rsnn_zoo.hub import resolve as hub_module
from rsnn_zoo.hub.publish import push_to_hub, save_evidence, save_pretrained
from rsnn_zoo.hub.resolve import resolve
from tests.conftest import NAME, evidence_for, make_entry, small_network
from tests.hub_server import TOKEN

ROOT = Path(__file__).resolve().parents[2]


REPO = f"rsnn-zoo/{NAME}"


WEIGHTS = "model.safetensors"


FILES = {"config.json", "README.md", WEIGHTS, "evaluation.json"}


IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


"""Of the digits' shape."""


KILLED_AT_RENAME = """
import os, signal
rename, left = os.replace, [{renames}]
def replace(*args):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    rename(*args)
os.replace = replace
"""


"""Statements after which a process renames so many files and is then killed."""


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """The only published entry, in a ``hub_configs/`` of its own."""
    monkeypatch.setattr(hub_module, "entries_folder", lambda: tmp_path / "hub_configs")
    return make_entry(tmp_path / "hub_configs")


def flipped(data):
    """The bytes with one bit in the middle changed."""
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.fixture
def published(packaged, hub):
    """The same entry on the Hub, released as v1; its weights are too large for the package."""
    push_to_hub(packaged, token=TOKEN, endpoint=hub.url, tag="v1")
    (packaged / WEIGHTS).unlink()
    hub.requests.clear()
    return hub.repos[REPO]


@pytest.fixture
def find(hub, tmp_path):
    """``resolve`` on the local Hub, with a cache of its own, and the weights fetched at once."""

    def call(name=NAME, **kwargs):
        entry = resolve(name, **{"endpoint": hub.url, "cache_dir": tmp_path / "cache"} | kwargs)
        assert entry.weights_path and entry.sha256
        return entry

    return call


def assert_loads(entry, seed=0):
    state, expected = entry.load_weights(), small_network(seed).state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)


def downloads(hub):
    return sum(method == "GET" and path.startswith("/cdn/") for method, path, _ in hub.requests)


SHARD_LIMIT = 250_000


INDEX = "model.safetensors.index.json"


SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def save_sharded(folder: Path, seed: int = 0, **kwargs) -> Path:
    """An entry in shards with evidence of a kind."""
    options = {"name": NAME, "training": {"seed": seed}, "dtype": "bfloat16", "shard_bytes": SHARD_LIMIT, **kwargs}
    config = save_pretrained(small_network(seed), folder, **options)
    save_evidence(folder, evidence_for(config))
    return folder


@pytest.fixture
def sharded(tmp_path):
    return save_sharded(tmp_path / "hub_configs" / NAME)


def load_folder(folder: Path, **kwargs):
    return rsnn_zoo.create_model(f"local-dir:{folder}", pretrained=True, **kwargs)


def spoiled(folder: Path, index: dict) -> Path:
    """The folder with another index, for which the config vouches."""
    content, data = load_json(folder / "config.json"), to_json(index)
    (folder / INDEX).write_bytes(data)
    content["rsnn_zoo"]["weights"] |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (folder / "config.json").write_bytes(to_json(content))
    return folder
