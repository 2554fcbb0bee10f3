"""Strict JSON and atomic writing."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsnn_zoo._utils.files import MAX_JSON_BYTES, ConfigError, load_json, parse_json, replacing, to_json

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)  # fmt: skip


@given(plain)
def test_what_is_written_reads_back(value):
    assert parse_json(to_json(value), "x") == value


@given(st.binary(max_size=300) | st.text('[]{}":,0123456789.eE+-nulltrueNaIfiy\\ ', max_size=60).map(str.encode))
def test_any_bytes_are_refused_or_are_json(data):
    try:
        value = parse_json(data, "x")
    except ConfigError:
        return
    assert value == json.loads(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not usable JSON"),
        ('{"a": NaN}', "NaN is not a finite number"),
        ("-Infinity", "not a finite number"),
        ("1e999", "1e999 is not a finite number"),
        ("9" * 5000, "is too long"),
        ('{"a": 1, "a": 2}', "the same key twice"),
        ("[" * 40 + "]" * 40, "nested more than 32 deep"),
        ("[" * 500_000, "nested too deeply"),
        (r'{"a": "\ud800"}', "surrogates not allowed"),
        ('"' + "a" * MAX_JSON_BYTES + '"', "larger than 1,048,576 bytes"),
        ("\ufeff{}", "BOM"),
    ],
)
def test_a_refusal_names_source_cause_and_remedy(text, said):
    with pytest.raises(ConfigError, match=rf"^some\.json.*{said}.*again$"):
        parse_json(text.encode("utf-8", "surrogatepass"), "some.json")


def test_reading_stops_at_the_limit(tmp_path):
    with open(tmp_path / "huge.json", "wb") as file:
        file.truncate(1 << 40)  # sparse: a terabyte that takes no space, and no memory unless read
    with pytest.raises(ConfigError, match="larger than"):
        load_json(tmp_path / "huge.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x", object()])
def test_what_is_not_json_is_not_written(value):
    with pytest.raises(ConfigError, match="Cannot write as JSON"):
        to_json({"training": value})


def test_replacing_writes_all_or_nothing(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="broken off"), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("broken off")
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_pipe_is_no_file(tmp_path):
    """Opened, it would wait for ever."""
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(OSError, match="is no regular file"):
        load_json(tmp_path / "config.json")


@pytest.mark.parametrize("text", [b"[" + b"{}," * 200_000 + b"{}]", b"[" + b"1," * 2_200_000 + b"1]"])
def test_more_values_than_anybody_needs_are_not_parsed(text):
    with pytest.raises(ConfigError, match="it holds more than"):
        parse_json(text, "x", 2**24)
