"""Weights files: what was saved comes back, and anything else is refused before a tensor is used."""

import hashlib
import json
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rsnn_zoo.hub.weights import WeightsError, check_state_dict, load_weights, serialize

SMALL = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3))
DATA, INFO = serialize(SMALL, "model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


def load(folder: Path, data: bytes, sha256: str | None = None, size: int | None = None) -> dict[str, torch.Tensor]:
    path = folder / "model.safetensors"
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return load_weights(path, sha256 or hashlib.sha256(data).hexdigest(), size)


def file_of(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # as the format has it, so that the tensors are aligned
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_was_saved_comes_back_bit_for_bit(folder, dtype):
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).to(dtype)
    data, info = serialize(model, "model.safetensors")
    loaded = load(folder, data, info.sha256, info.size)
    check_state_dict(loaded, model.state_dict())
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.items())
    assert (info.size, info.dtype, info.num_parameters) == (len(data), str(dtype)[6:], 30)


@given(st.integers(0, 8 * len(DATA) - 1))
def test_a_flipped_bit_anywhere_is_refused(folder, bit):
    flipped = bytearray(DATA)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WeightsError, match=r"has SHA-256 .* Delete it and get it again"):
        load(folder, bytes(flipped), INFO.sha256, INFO.size)


def test_truncation_at_any_place_is_refused(folder):
    for length in range(len(DATA)):
        with pytest.raises(WeightsError, match=f"has {length:,} bytes"):
            load(folder, DATA[:length], INFO.sha256, INFO.size)
        with pytest.raises(WeightsError):  # and also where the checksum is of the truncated file
            load(folder, DATA[:length])


def test_a_swapped_file_of_the_same_size_is_refused(folder):
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3))
    with pytest.raises(WeightsError, match=r"model\.safetensors has SHA-256"):
        load(folder, serialize(other, "x")[0], INFO.sha256, INFO.size)


def test_a_pickle_is_refused_and_never_run(folder):
    class Evil:
        def __reduce__(self):
            return Path.touch, (folder / "ran",)

    with pytest.raises(WeightsError, match="not a safetensors file"):
        load(folder, pickle.dumps(Evil()))
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xff" * 8 + b"{}", "claims more bytes"),
        ((2**40).to_bytes(8, "little") + b"{}", "claims more bytes"),
        (file_of(b""), "not usable JSON"),
        (file_of([]), "not a safetensors"),
        (file_of({"a": 1}), "not a safetensors"),
        (file_of({"a": {}}), "data_offsets"),
        (file_of({"a": entry("F4")}, bytes(4)), "F4"),
        (file_of({"a": entry(shape=[2**40], offsets=[0, 2**42])}, bytes(4)), "reaches beyond the end"),
        (file_of({"a": entry(shape=[-1], offsets=[0, -4])}, bytes(4)), "has shape"),
        (file_of({"a": entry(shape=[True])}, bytes(4)), "has shape"),
        (file_of({"a": entry(shape=[1] * 9)}, bytes(4)), "has shape"),
        (file_of({"a": entry(shape="1")}, bytes(4)), "has shape"),
        (file_of({"a": entry(shape=[10**19] * 8, offsets=[0, 4])}, bytes(4)), "do not follow"),
        (file_of({"a": entry(offsets=[4, 8])}, bytes(8)), "do not follow"),
        (file_of({"a": entry(offsets=[4, 0])}, bytes(4)), "do not follow"),
        (file_of({"a": entry(), "b": entry()}, bytes(4)), "do not follow"),
        (file_of({"a": entry(), "b": entry(offsets=[2, 6])}, bytes(6)), "do not follow"),
        (file_of({"a": entry()}, bytes(5)), "left over"),
        (file_of({"a": entry("F16", [1], [0, 2]), "b": entry(offsets=[2, 6])}, bytes(6)), "not a safetensors"),
        (file_of(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)), "same key twice"),
        (file_of({str(i): entry(shape=[0], offsets=[0, 0]) for i in range(10**5)}), "larger than"),
    ],
)
def test_a_header_that_lies_is_refused_even_with_a_right_checksum(folder, data, said):
    with pytest.raises(WeightsError, match=said):
        load(folder, data)


def test_a_huge_header_is_not_even_copied(folder):
    data = file_of(b" " * 2**25)
    tracemalloc.start()
    with pytest.raises(WeightsError, match="larger than"):
        load(folder, data)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


headers = st.dictionaries(
    st.text(max_size=3),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "I64", "X"]),
            "shape": st.lists(st.integers(-1, 4), max_size=3) | st.integers(),
            "data_offsets": st.lists(st.integers(-2, 40), max_size=3) | st.none(),
        }
    )
    | st.none(),
    max_size=3,
)


@given(st.binary(max_size=64) | st.builds(file_of, headers, st.binary(max_size=40)))
def test_any_bytes_give_tensors_within_the_file_or_a_refusal(folder, data):
    try:
        tensors = load(folder, data)
    except WeightsError:
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) <= len(data)


@settings(max_examples=300)
@given(st.data())
def test_any_change_to_a_real_header_is_survived(folder, data):
    length = 8 + int.from_bytes(DATA[:8], "little")
    changed = bytearray(DATA)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    try:
        tensors = load(folder, bytes(changed))
    except WeightsError:
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) == len(DATA) - length


def test_the_file_may_be_replaced_or_deleted_while_its_tensors_are_used(folder):
    loaded = load(folder, DATA, INFO.sha256)
    load(folder, file_of({"a": entry()}, bytes(4)))
    assert all(torch.equal(value, SMALL.state_dict()[key]) for key, value in loaded.items())


def test_changing_a_loaded_tensor_leaves_the_file_alone(folder):
    loaded = load(folder, DATA, INFO.sha256)
    loaded["0.weight"].zero_()
    assert (folder / "model.safetensors").read_bytes() == DATA


def test_a_network_that_took_the_loaded_tensors_over_saves_as_the_same_bytes(folder):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3))
    network.load_state_dict(load(folder, DATA, INFO.sha256), assign=True)
    assert serialize(network, "model.safetensors") == (DATA, INFO)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from Linux's /proc")
def test_loading_costs_little_more_than_the_file_in_memory(folder):
    size = 64 * 2**20
    path = folder / "large.safetensors"
    path.write_bytes(file_of({"a": entry(shape=[size // 4], offsets=[0, size])}, bytes(size)))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    script = f"""
import re
from rsnn_zoo.hub.weights import load_weights
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = peak()
loaded = load_weights({str(path)!r}, {digest!r})
print(peak() - before)"""
    root = Path(__file__).resolve().parents[2]
    used = subprocess.run([sys.executable, "-c", script], cwd=root, check=True, capture_output=True, text=True).stdout
    assert size / 2 < int(used) * 1024 <= 1.2 * size


def test_a_state_dict_of_another_network_is_refused_with_what_differs():
    expected = SMALL.state_dict()
    found = {**expected, "extra": torch.zeros(1), "2.bias": torch.zeros(4), "0.bias": torch.zeros(2).half()}
    del found["2.weight"]
    with pytest.raises(WeightsError) as refusal:
        check_state_dict(found, expected, "model.safetensors")
    for said in (
        "model.safetensors does not fit",
        "missing: 2.weight",
        "unexpected: extra",
        "wrong shape: 2.bias (4,) instead of (3,)",
        "wrong dtype: 0.bias torch.float16 instead of torch.float32",
    ):
        assert said in str(refusal.value)
    check_state_dict(dict(expected), nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 3)).state_dict())


def test_what_could_not_be_loaded_again_is_not_saved():
    with pytest.raises(WeightsError, match=r"Cannot save .*complex64"):
        serialize(nn.Linear(2, 2, dtype=torch.complex64), "x")
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    with pytest.raises(WeightsError, match="share memory"):
        serialize(tied, "x")
