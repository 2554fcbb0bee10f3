"""The download cache: damaged, shared by processes, full, read-only."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rsnn_zoo.hub.resolve import HubError
from rsnn_zoo.hub.weights import WeightsError
from tests.conftest import NAME, read_only
from tests.hub.conftest import REPO, WEIGHTS, assert_loads, downloads, flipped

ROOT = Path(__file__).resolve().parents[2]


# --- the cache --------------------------------------------------------------------------------------------------------


def test_bytes_changed_on_the_way_are_refused(published, find, hub):
    file = published.commits[published.tags["v1"]][WEIGHTS]
    hub.corrupt[file.oid] = flipped(file.data)
    with pytest.raises(WeightsError, match="has SHA-256"):
        find().load_weights()


@pytest.mark.parametrize("damage", [flipped, lambda data: data[:-1], lambda data: bytes(len(data)), lambda data: b""])
def test_a_damaged_cache_is_refused_and_heals_as_the_error_says(published, find, damage):
    path = find().weights_path
    path.resolve().write_bytes(damage(path.read_bytes()))
    with pytest.raises(WeightsError, match="downloaded anew when the model is next loaded") as refusal:
        find().load_weights()
    named = Path(str(refusal.value).split()[2])
    named.unlink()
    assert_loads(find())


def test_a_damaged_config_in_the_cache_is_refused_and_heals_as_the_error_says(published, find):
    name = f"hf-hub:{REPO}@v1"
    path = find(name).get("config.json", 2**20).resolve()
    path.write_bytes(path.read_bytes().replace(b'"hard"', b'"soft"'))
    with pytest.raises(HubError, match="is damaged; delete it") as refusal:
        find(name)
    Path(str(refusal.value).split()[0]).unlink()
    assert_loads(find(name))


def test_a_cache_that_cannot_be_written_is_an_error(published, find, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HubError, match=r"the download failed: .*HF_HOME, cache_dir. can be written"):
        find(cache_dir=tmp_path / "file" / "cache")


EAGER = {"RSNN_ZOO_COMPILE": "0", "OMP_NUM_THREADS": "1"}  # a process that ends at once need compile nothing


LOAD = """
{before}
from pathlib import Path
import torch
import rsnn_zoo, rsnn_zoo.hub.resolve
rsnn_zoo.hub.resolve.entries_folder = lambda: Path({folder!r})
network = rsnn_zoo.create_model({name!r}, pretrained=True, cache_dir={cache!r}, endpoint={url!r})
print(network(torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))).tolist())
"""


@pytest.fixture
def process(published, packaged, hub, tmp_path):
    """Loads in a process of its own, after the statements ``before``."""

    def start(before="", **environment):
        script = LOAD.format(
            before=before, folder=str(packaged.parent), name=NAME, cache=str(tmp_path / "cache"), url=hub.url
        )
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(
            [sys.executable, "-c", script], cwd=ROOT, env={**os.environ, **EAGER, **environment}, **pipes
        )

    return start


def test_two_processes_may_fill_the_cache_at_once(process, hub, find):
    hub.seconds_per_block = 0.05
    both = [process(), process()]
    ends = [one.communicate(timeout=300) for one in both]
    assert [one.returncode for one in both] == [0, 0], ends
    assert ends[0][0] == ends[1][0] != ""
    assert_loads(find(local_files_only=True))


def test_a_kill_in_the_middle_of_a_download_is_survived(process, hub, find):
    hub.seconds_per_block = 0.2
    killed = process()
    while not downloads(hub):
        time.sleep(0.02)
        assert killed.poll() is None, killed.communicate()
    time.sleep(0.3)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    killed.communicate()
    with pytest.raises(HubError, match="not in the download cache"):
        find(local_files_only=True)
    hub.seconds_per_block = 0.0
    assert_loads(find())


def test_a_full_disk_is_an_error_and_leaves_nothing_half_written(process, find, tmp_path):
    ended = process("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))")
    _, said = ended.communicate(timeout=300)
    assert ended.returncode == 1 and "HubError" in said and "the download failed" in said and "File too large" in said
    assert not list((tmp_path / "cache").rglob("*.incomplete"))
    assert_loads(find())


def test_a_read_only_cache_serves_what_it_holds_and_says_what_it_cannot_take(process, find, tmp_path):
    (tmp_path / "cache").mkdir()
    with read_only(tmp_path / "cache") as drop_rights:
        _, said = process(drop_rights).communicate(timeout=300)
    assert "HubError" in said and "see that the cache (HF_HOME, cache_dir) can be written" in said
    assert_loads(find())
    with read_only(tmp_path / "cache") as drop_rights:
        out, said = process(drop_rights).communicate(timeout=300)
    assert out and not said


@pytest.mark.slow
def test_the_environment_names_hub_and_offline_mode(process, published, hub):
    """HF_ENDPOINT and HF_HUB_OFFLINE are read when huggingface_hub is imported, hence the processes."""
    url, hub.url = hub.url, None
    ends = [
        process(HF_HUB_OFFLINE="1"),
        process(HF_ENDPOINT="http://127.0.0.1:9"),
    ]
    for one, said in zip(ends, ("unset HF_HUB_OFFLINE", "cannot be reached"), strict=True):
        assert said in one.communicate(timeout=300)[1]
    first = process(HF_ENDPOINT=url).communicate(timeout=300)
    again = process(HF_HUB_OFFLINE="1").communicate(timeout=300)
    assert first[0] == again[0] != ""
