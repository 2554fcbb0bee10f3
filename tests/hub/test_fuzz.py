"""Whatever stands in an entry's files, loading it gives a network or a documented error, in bounded memory."""

import copy
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rsnn_zoo
from rsnn_zoo._utils.files import ConfigError
from rsnn_zoo.hub.publish import save_pretrained
from rsnn_zoo.hub.weights import WeightsError
from rsnn_zoo.models import Network
from tests.conftest import NAME, small_network

pytestmark = pytest.mark.usefixtures("eager")

DOCUMENTED = (ConfigError, WeightsError, FileNotFoundError)
EXAMPLES = (pytest.param(40, id="few"), pytest.param(1500, id="many", marks=pytest.mark.slow))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder, and the bytes of config and weights of a sound entry in it."""
    folder = tmp_path_factory.mktemp("entries") / NAME
    save_pretrained(small_network(), folder, name=NAME, training={"seed": 0})
    return folder, (folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes()


def write(folder: Path, config: bytes, weights: bytes | None) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(config)
    if weights is None:  # they are there
        return
    (folder / "model.safetensors").unlink(missing_ok=True)  # a network that was loaded before may still be mapped
    (folder / "model.safetensors").write_bytes(weights)


def survives(folder: Path, config: bytes, weights: bytes | None) -> None:
    """Load, or refuse by a documented error; ``None`` where the files of the weights are there."""
    write(folder, config, weights)
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    before = sorted(folder.parent.rglob("*"))
    try:
        network = rsnn_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    except DOCUMENTED as error:
        assert str(folder) in str(error)
    else:
        assert isinstance(network, Network) and sum(p.nbytes for p in network.parameters()) <= 2 * held
    assert sorted(folder.parent.rglob("*")) == before


def signed(config: dict, weights: bytes) -> bytes:
    """The config as text, vouching for these weights, so that the checksum hides nothing behind it."""
    if isinstance(record := config.get("rsnn_zoo"), dict) and isinstance(record.get("weights"), dict):
        record["weights"] |= {"sha256": hashlib.sha256(weights).hexdigest(), "size": len(weights)}
    return json.dumps(config).encode("utf-8", "surrogatepass")


nasty = (
    st.sampled_from([None, True, -1, 0, 10**30, -(10**400), 1e308, float("nan"), float("-inf"), "", "rsnn_vgg16"])
    | st.sampled_from(["../../x.safetensors", "/etc/passwd", "a" * 5000, "\ud800", "\x00", "t4\n", [], {}, [[[]]]])
    | st.recursive(st.integers() | st.floats() | st.text(max_size=9), lambda inner: st.lists(inner) | st.dictionaries(
        st.text(max_size=3), inner), max_leaves=5)
)  # fmt: skip


@st.composite
def configs(draw, original):
    """The original with a few values replaced, removed or added anywhere in it."""
    config = copy.deepcopy(original)
    for _ in range(draw(st.integers(0, 3))):
        section = config
        while True:
            key = draw(st.sampled_from([*section, "new"]))
            if not isinstance(section.get(key), dict) or not section[key] or draw(st.booleans()):
                break
            section = section[key]
        section[key] = draw(nasty)
        if draw(st.booleans()):
            del section[key]
    return config


@st.composite
def bytes_like(draw, original, most):
    """The original with a few of its first bytes changed, left out or doubled, or cut off somewhere."""
    data = bytearray(original)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, min(most, len(data))))
        data[at : at + draw(st.integers(0, 9))] = draw(st.binary(max_size=9))
    return bytes(data[: draw(st.none() | st.integers(0, len(data)))])


def fuzz(examples, strategy, check):
    settings(max_examples=examples, deadline=None, suppress_health_check=[*HealthCheck])(given(strategy)(check))()


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_values_in_a_config_load_or_are_refused(original, examples):
    folder, config, weights = original
    fuzz(examples, configs(json.loads(config)), lambda values: survives(folder, signed(values, weights), weights))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_bytes_in_a_config_load_or_are_refused(original, examples):
    folder, config, weights = original
    fuzz(examples, bytes_like(config, len(config)), lambda data: survives(folder, data, weights))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_bytes_in_the_weights_load_or_are_refused(original, examples):
    folder, config, weights = original
    header = 8 + int.from_bytes(weights[:8], "little")
    fuzz(examples, bytes_like(weights, header), lambda data: survives(folder, signed(json.loads(config), data), data))


INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00003.safetensors"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """A folder, and the content of a sound entry in shards in it."""
    folder = tmp_path_factory.mktemp("sharded") / NAME
    save_pretrained(small_network(), folder, name=NAME, dtype="bfloat16", shard_bytes=250_000)
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


def in_shards(folder: Path, files: dict[str, bytes], changed: str, data: bytes) -> None:
    """Load an entry of which one file was changed, and all that hold its checksum vouch for it."""
    files, record = files | {changed: data}, json.loads(files["config.json"])
    weights = record["rsnn_zoo"]["weights"]
    for one in weights["shards"]:
        one |= {"sha256": hashlib.sha256(files[one["file"]]).hexdigest(), "size": len(files[one["file"]])}
    if changed != INDEX:
        index = json.loads(files[INDEX])
        index["metadata"]["sha256"] = {one["file"]: one["sha256"] for one in weights["shards"]}
        files[INDEX] = json.dumps(index).encode()
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)
    survives(folder, signed(record, files[INDEX]), None)


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("changed", [INDEX, SHARD])
def test_any_bytes_in_an_index_or_a_shard_load_or_are_refused(sharded, examples, changed):
    folder, files = sharded
    header = 8 + int.from_bytes(files[changed][:8], "little") if changed == SHARD else len(files[changed])
    examples = examples // 2
    fuzz(examples, bytes_like(files[changed], header), lambda data: in_shards(folder, files, changed, data))


@pytest.mark.parametrize("examples", EXAMPLES)
def test_any_values_in_the_config_of_shards_load_or_are_refused(sharded, examples):
    folder, files = sharded
    for name, content in files.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)
    weights = json.loads(files["config.json"])
    fuzz(examples // 2, configs(weights), lambda values: survives(folder, signed(values, files[INDEX]), None))


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape: list[int], offsets: list[int]) -> dict:
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


HOSTILE_WEIGHTS = {
    "a header of terabytes": lambda: (2**42).to_bytes(8, "little") + b"{}",
    "a tensor of terabytes": lambda: file_of({"a": tensor([2**40], [0, 2**42])}, bytes(4)),
    "a shape beyond all integers": lambda: file_of({"a": tensor([2**62] * 8, [0, 4])}, bytes(4)),
    "a million tensors": lambda: file_of(b"{%s}" % b",".join(b'"%d":{}' % i for i in range(10**6))),
    "a deep header": lambda: file_of(b"[" * 10**6),
    "one tensor often": lambda: file_of(
        {str(i): tensor([10**6], [0, 4 * 10**6]) for i in range(9000)}, bytes(4 * 10**6)
    ),
}
HOSTILE_CONFIGS = {
    "a network of gigabytes": lambda config: json.dumps(
        config
        | {"architecture": "rsnn_vgg16", "num_classes": 10_000}
        | {"model_args": config["model_args"] | {"hidden_features": 16_384}}
        | {"rsnn_zoo": {"weights": config["rsnn_zoo"]["weights"]}}
    ).encode(),
    "a deep config": lambda config: b"[" * 10**6,
    "a long number": lambda config: b'{"num_classes": %s}' % (b"9" * 10**6),
    "many keys": lambda config: json.dumps({str(i): 0 for i in range(10**6)}).encode(),
}
REFUSE = """
import re, sys
from pathlib import Path
import rsnn_zoo
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
sound, *hostile = sys.argv[1:]
rsnn_zoo.create_model(f"local-dir:{sound}", pretrained=True)
before = peak()
for folder in hostile:
    try:
        rsnn_zoo.create_model(f"local-dir:{folder}", pretrained=True)
    except ValueError as error:
        assert type(error).__name__ in ("ConfigError", "WeightsError") and len(str(error)) < 2000, error
    else:
        raise SystemExit(f"{folder} was loaded")
    print(f"{peak() - before:.0f} MiB after {folder}")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_absurd_sizes_are_refused_in_little_memory(original, tmp_path):
    _, config, weights = original
    write(tmp_path / "sound", config, weights)
    for what, make in HOSTILE_WEIGHTS.items():
        write(tmp_path / what, signed(json.loads(config), data := make()), data)
    for what, make in HOSTILE_CONFIGS.items():
        write(tmp_path / what, make(json.loads(config)), weights)
    folders = [tmp_path / what for what in ("sound", *HOSTILE_WEIGHTS, *HOSTILE_CONFIGS)]
    done = subprocess.run([sys.executable, "-c", REFUSE, *folders], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1].split()[0]) <= 64, done.stdout
