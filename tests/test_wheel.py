"""What an installation holds: all entries, but the weights of large ones, which come from the Hub."""

import shutil
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]
MAX_WHEEL_BYTES = 30e6


@pytest.fixture
def checkout(tmp_path):
    """A small checkout: one entry as it is, one with large weights, one with large weights in several files."""
    copy = tmp_path / "checkout"
    for file in ("pyproject.toml", "README.md", "LICENSE", "rsnn_zoo/__init__.py", "scripts/_hatch_build.py"):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, copy / file)
    shutil.copytree(ROOT / "hub_configs" / "resnet20_digits_trades_t4", copy / "hub_configs" / "small")
    for name, files in (("large", {"model": 6}), ("sharded", {"model-00001-of-00002": 3, "model-00002-of-00002": 3})):
        folder = copy / "hub_configs" / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / ".model.safetensors.1.tmp").write_bytes(b"left behind")
        for file, megabytes in files.items():
            (folder / f"{file}.safetensors").write_bytes(bytes(megabytes * 10**6))
    return copy


def wheel_of(root, folder):
    with zipfile.ZipFile(next(WheelBuilder(str(root)).build(directory=str(folder), versions=["standard"]))) as wheel:
        return {info.filename: info.file_size for info in wheel.infolist()}


def test_the_weights_of_large_entries_are_left_to_the_hub(checkout, tmp_path):
    held = wheel_of(checkout, tmp_path / "wheels")
    entries = {name.removeprefix("rsnn_zoo/hub_configs/") for name in held if "hub_configs" in name}
    small = {f"small/{path.name}" for path in (checkout / "hub_configs" / "small").iterdir()}
    assert entries == small | {"large/config.json", "sharded/config.json"}
    assert "small/model.safetensors" in entries and "rsnn_zoo/__init__.py" in held


def test_the_wheel_of_this_checkout_is_small_and_knows_every_entry(tmp_path):
    held = wheel_of(ROOT, tmp_path)
    names = {path.parent.name for path in (ROOT / "hub_configs").glob("*/config.json")}
    for name in names:
        assert f"rsnn_zoo/hub_configs/{name}/config.json" in held
        assert f"rsnn_zoo/hub_configs/{name}/evaluation.json" in held
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
