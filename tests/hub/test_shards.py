"""Weights in shards: what was saved comes back however it is loaded, and one wrong file is refused by its name."""

import copy
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import load_torch_model
from torch import nn

import rsnn_zoo
from rsnn_zoo._utils.files import load_json, to_json
from rsnn_zoo.cli import main
from rsnn_zoo.hub import resolve as hub_module
from rsnn_zoo.hub.publish import push_to_hub, save_evidence, save_pretrained
from rsnn_zoo.hub.resolve import HubError, is_packaged, resolve
from rsnn_zoo.hub.shards import SHARD_BYTES, load_files, packed, published_dtype
from rsnn_zoo.hub.weights import WeightsError, check_state_dict, serialize, to_bytes
from rsnn_zoo.models import vgg11
from rsnn_zoo.spec.config import FileInfo, WeightsInfo, load_config, shard_names
from tests.conftest import NAME, evidence_for, small_network
from tests.hub.conftest import (
    IMAGES,
    INDEX,
    KILLED_AT_RENAME,
    ROOT,
    SHARD_LIMIT,
    SHARDS,
    load_folder,
    save_sharded,
    spoiled,
)
from tests.hub_server import TOKEN, File

pytestmark = pytest.mark.usefixtures("eager")


def rounded(network: nn.Module) -> dict[str, torch.Tensor]:
    """What is stored of it."""
    large = {name for name, one in network.named_parameters() if one.ndim > 1}
    return {name: one.bfloat16().float() if name in large else one for name, one in network.state_dict().items()}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    check_state_dict(found, expected)
    return all(torch.equal(found[name], tensor) for name, tensor in expected.items())


# --- saving and loading ---------------------------------------------------------------------------------------------


def test_shards_are_as_the_hub_has_them_and_within_their_limit(sharded):
    assert {path.name for path in sharded.iterdir()} == {"config.json", "README.md", "evaluation.json", INDEX, *SHARDS}
    assert all((sharded / name).stat().st_size <= SHARD_LIMIT for name in SHARDS)
    index = load_json(sharded / INDEX)
    assert set(index["weight_map"].values()) == set(SHARDS)
    assert index["metadata"]["total_size"] == sum(one.nbytes for one in torch_files(sharded).values())
    theirs = small_network(seed=1)
    load_torch_model(theirs, sharded, strict=True)  # the Hub's own client, which widens what it is given
    assert same(theirs.state_dict(), rounded(small_network()))


def torch_files(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for shard in SHARDS for name, tensor in load_file(folder / shard).items()}


def test_the_loaded_network_is_that_of_the_stored_weights(sharded):
    network, expected = load_folder(sharded), small_network()
    expected.load_state_dict(rounded(expected))
    assert same(network.state_dict(), expected.state_dict())
    assert torch.equal(network(IMAGES), expected(IMAGES))
    assert network.weights_sha256 == hashlib.sha256((sharded / INDEX).read_bytes()).hexdigest()
    theirs = timm.create_model(f"local-dir:{sharded}", pretrained=True).eval()
    assert same(theirs.state_dict(), expected.state_dict())
    assert theirs.pretrained_cfg["source"] == "local-dir" and "state_dict" not in theirs.pretrained_cfg
    assert load_folder(sharded, num_classes=7)(IMAGES).shape == (3, 7)
    assert timm.create_model(f"local-dir:{sharded}", pretrained=True, num_classes=7)(IMAGES).shape == (3, 7)


def test_what_is_loaded_saves_as_the_same_files_and_what_is_changed_as_others(sharded, tmp_path):
    network, config = load_folder(sharded), load_config(sharded / "config.json")
    files = {name: (sharded / name).read_bytes() for name in (INDEX, *SHARDS)}
    for one in (network, copy.deepcopy(network)):
        assert packed(one) == (files, config.weights)
    again = save_pretrained(network, tmp_path / NAME, name=NAME)
    assert again.weights == config.weights
    changed = copy.deepcopy(network)
    changed.fc.weight.data.mul_(1.001)  # which 16 bits cannot hold
    assert packed(changed)[1] == serialize(changed, "model.safetensors")[1]
    data = rsnn_zoo.load_dataset("digits", "test").select(4)
    assert rsnn_zoo.evaluate(network, data, "fgsm", 8 / 255, checks=0).weights_sha256 == config.weights.sha256


def test_one_file_may_be_of_16_bits_too_and_large_networks_are_published_so(tmp_path):
    folder = save_sharded(tmp_path / NAME, shard_bytes=SHARD_BYTES)
    config = load_config(folder / "config.json")
    assert (config.weights.file, config.weights.stored, config.weights.shards) == (
        "model.safetensors",
        "bfloat16",
        (),
    )
    assert same(load_folder(folder).state_dict(), rounded(small_network()))
    assert same(timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict(), rounded(small_network()))
    assert published_dtype(small_network()) is None
    with torch.device("meta"):
        assert published_dtype(rsnn_zoo.create_model("vgg11_cifar10_trades_t8")) == "bfloat16"


def test_without_rounding_shards_give_the_network_bit_for_bit(tmp_path):
    folder = save_sharded(tmp_path / NAME, dtype=None, shard_bytes=500_000)
    assert load_config(folder / "config.json").weights.stored is None
    assert same(load_folder(folder).state_dict(), small_network().state_dict())


def test_a_tensor_larger_than_a_shard_is_kept_in_parts(tmp_path):
    folder = save_sharded(tmp_path / NAME, shard_bytes=30_000)
    config = load_config(folder / "config.json")
    assert max(shard.size for shard in config.weights.shards) <= 30_000
    index = load_json(folder / INDEX)
    parts = {name for name in index["weight_map"] if name.startswith("layer3.2.conv2.weight")}
    assert parts == {f"layer3.2.conv2.weight#{number}of4" for number in (1, 2, 3, 4)}
    network = load_folder(folder)
    assert same(network.state_dict(), rounded(small_network())) and packed(network)[1] == config.weights
    index["weight_map"]["fc.bias"] = index["weight_map"]["conv1.weight"]
    with pytest.raises(WeightsError, match=r"differs in 'fc\.bias'"):
        load_folder(spoiled(folder, index))


def test_what_cannot_be_stored_so_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="float64 weights cannot be stored in bfloat16: choose float64"):
        packed(small_network().double(), "bfloat16")
    with pytest.raises(WeightsError, match="cannot be stored in float16"):
        packed(small_network(), "float16")
    tied = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
    tied[1].weight = tied[0].weight
    with pytest.raises(WeightsError, match=r"0\.weight and 1\.weight share memory"):
        packed(tied, "bfloat16")


PARTS = [  # by file, the tensors in it
    ([{"fc.weight#1of2": (3, 2)}, {"fc.weight#2of2": (3, 2)}], None),
    ([{"fc.weight#1of2": (3, 2)}, {"fc.weight#2of2": (2, 2)}], "does not fit the others"),
    ([{"fc.weight#1of2": (3, 2)}, {"fc.weight#2of3": (3, 2)}], "does not fit the others"),
    ([{"fc.weight": (6, 2)}, {"fc.weight#2of2": (3, 2)}], "does not fit the others"),
    ([{"fc.weight#1of2": (3, 2)}, {"fc.bias": (6,)}], "lacks parts of 'fc.weight'"),
    ([{"fc.weight#3of2": (3, 2)}, {"fc.bias": (6,)}], "it holds part 3 of 2"),
    ([{"fc.weight#0of2": (3, 2)}, {"fc.bias": (6,)}], "it holds part 0 of 2"),
    ([{"fc.weight#1of9999": (3, 2)}, {"fc.bias": (6,)}], "it holds part 1 of 9999"),
    ([{"fc.weight#1of2": ()}, {"fc.bias": (6,)}], "it holds part 1 of 2"),
]


@pytest.mark.parametrize(("held", "said"), PARTS)
def test_parts_make_one_tensor_or_are_refused(tmp_path, held, said):
    tensors = [{name: torch.rand(shape).bfloat16() for name, shape in one.items()} for one in held]
    names = shard_names(2)
    files = {name: to_bytes(one) for name, one in zip(names, tensors, strict=True)}
    shards = tuple(FileInfo(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items())
    weight_map = {key: name for name, one in zip(names, tensors, strict=True) for key in one}
    index = to_json({"metadata": {"sha256": {one.file: one.sha256 for one in shards}}, "weight_map": weight_map})
    info = WeightsInfo(INDEX, hashlib.sha256(index).hexdigest(), len(index), "float32", 18, "bfloat16", shards)
    for name, data in {INDEX: index, **files}.items():
        (tmp_path / name).write_bytes(data)
    if said:
        with pytest.raises(WeightsError, match=said):
            load_files(info, lambda file: tmp_path / file.file)
    else:
        found, form = load_files(info, lambda file: tmp_path / file.file)
        expected = torch.cat([one for part in tensors for one in part.values()]).float()
        assert torch.equal(found["fc.weight"], expected) and form.weight_map == weight_map


# --- one rename -----------------------------------------------------------------------------------------------------

SAVE = """
import sys
from pathlib import Path
from tests.conftest import NAME, save_pretrained, small_network
{before}
options = {{"dtype": "bfloat16", "shard_bytes": 250_000}} if sys.argv[2] == "shards" else {{}}
save_pretrained(small_network(seed=1), Path(sys.argv[1]), name=NAME, **options)
"""


@pytest.mark.parametrize(
    ("into", "renames"),
    [("shards", 1), *(pytest.param(into, n, marks=pytest.mark.slow) for into in ("shards", "one") for n in (0, 3))],
)
def test_a_save_that_is_killed_leaves_the_old_weights_or_the_new(tmp_path, renames, into):
    folder, one = tmp_path / NAME, {"dtype": None, "shard_bytes": SHARD_BYTES}
    save_sharded(folder, **(one if into == "shards" else {}))
    old = resolve(f"local-dir:{folder}").sha256
    program = SAVE.format(before=KILLED_AT_RENAME.format(renames=renames))
    environment = os.environ | {"RSNN_ZOO_COMPILE": "0"}
    done = subprocess.run([sys.executable, "-c", program, str(folder), into], cwd=ROOT, env=environment)
    assert done.returncode == -signal.SIGKILL
    left = resolve(f"local-dir:{folder}")
    assert left.load_weights() and (left.sha256 == old) == (renames == 0)
    save_sharded(folder, seed=1, **({} if into == "shards" else one))  # and saving again clears up
    weights = {path.name for path in folder.iterdir() if "model" in path.name}
    assert weights == ({INDEX, *SHARDS} if into == "shards" else {"model.safetensors"})
    assert same(
        load_folder(folder).state_dict(), (rounded if into == "shards" else nn.Module.state_dict)(small_network(1))
    )


# --- the Hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def published(sharded, hub, monkeypatch):
    """The entry on the Hub; its shards are too large for the package."""
    monkeypatch.setattr(hub_module, "entries_folder", lambda: sharded.parent)
    push_to_hub(sharded, token=TOKEN, endpoint=hub.url, tag="v1")
    assert is_packaged(NAME, weights=True)
    for name in SHARDS:
        (sharded / name).unlink()
    assert is_packaged(NAME, weights=False) and not is_packaged(NAME, weights=True)
    return hub.repos[f"rsnn-zoo/{NAME}"]


def test_shards_come_from_the_hub_where_the_package_has_none_and_then_from_the_cache(published, hub, tmp_path):
    where = {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}
    for name, more in ((NAME, {}), (NAME, {"local_files_only": True}), (f"hf-hub:rsnn-zoo/{NAME}", {})):
        network = rsnn_zoo.create_model(name, pretrained=True, **where, **more)
        assert same(network.state_dict(), rounded(small_network()))


def test_a_shard_that_the_hub_lacks_or_changed_is_named(published, hub, tmp_path):
    files = published.commits[published.tags["v1"]]
    hub.corrupt[files[SHARDS[2]].oid] = bytes(len(files[SHARDS[2]].data))
    with pytest.raises(WeightsError, match="has SHA-256"):
        rsnn_zoo.create_model(NAME, pretrained=True, endpoint=hub.url, cache_dir=tmp_path / "cache")
    del files[SHARDS[1]]
    with pytest.raises(HubError, match=f"the repository lacks the file {SHARDS[1]}; ask its publisher"):
        rsnn_zoo.create_model(NAME, pretrained=True, endpoint=hub.url, cache_dir=tmp_path / "other")


def test_a_push_takes_away_the_files_of_other_weights_and_leaves_the_rest(sharded, hub):
    push_to_hub(sharded, org="acme", token=TOKEN, endpoint=hub.url)
    repo = hub.repos[f"acme/{NAME}"]
    repo.commit(repo.commits[repo.branches["main"]] | {"notes.md": File(b"mine", lfs=False)})
    config = save_pretrained(small_network(), sharded, name=NAME)
    save_evidence(sharded, evidence_for(config))
    done = push_to_hub(sharded, org="acme", token=TOKEN, endpoint=hub.url)
    expected = {"config.json", "README.md", "evaluation.json", "model.safetensors", "notes.md"}
    assert set(repo.commits[done.commit]) == expected


# --- commands -------------------------------------------------------------------------------------------------------


def test_an_entry_in_shards_is_described_and_verified(sharded, capsys):
    data = rsnn_zoo.load_dataset("digits", "test").select(12)
    report = rsnn_zoo.evaluate(load_folder(sharded), data, "fgsm", 8 / 255, checks=0)
    save_evidence(sharded, report.to_json())
    assert main(["info", f"local-dir:{sharded}"]) == 0
    assert " parameters, 0.6 MiB in bfloat16.\n" in capsys.readouterr().out
    assert main(["verify", f"local-dir:{sharded}", "-n", "4", "--json"]) == 0
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["weights"]["said"].endswith("of an index and 3 shards") and checks["draw"]["holds"]


# --- memory ---------------------------------------------------------------------------------------------------------

MEASURE = """
import re, sys
import rsnn_zoo
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
warm, folder = sys.argv[1:]
rsnn_zoo.create_model(f"local-dir:{warm}", pretrained=True)
before = peak()
network = rsnn_zoo.create_model(f"local-dir:{folder}", pretrained=True)
print(peak() - before, sum(one.nbytes for one in network.state_dict().values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_loading_costs_little_more_than_the_network_in_memory(sharded, tmp_path, dtype):
    large = vgg11(num_classes=10, in_chans=1, img_size=8, timesteps=2, hidden_features=2000).eval()
    config = save_pretrained(large, tmp_path / "large", name="large", dtype=dtype, shard_bytes=20_000_000)
    assert len(config.weights.shards) > 1
    command = [sys.executable, "-c", MEASURE, str(sharded), str(tmp_path / "large")]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    used, network = map(int, done.stdout.split())
    assert network > 50e6
    shard = 0 if dtype is None else max(file.size for file in config.weights.files)  # which is read, then widened
    assert network / 2 < used <= 1.2 * network + shard
