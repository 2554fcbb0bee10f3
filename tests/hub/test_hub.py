"""Finding and loading entries: the package, the cache, and a Hub on this machine, with the real client."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import close_session, constants

from rsnn_zoo._utils.files import ConfigError, load_json, parse_json, to_json
from rsnn_zoo.hub import resolve as hub_module
from rsnn_zoo.hub.publish import push_to_hub
from rsnn_zoo.hub.resolve import HubError, NotPublishedError, entry_folder, published_names, resolve
from rsnn_zoo.hub.weights import WeightsError
from rsnn_zoo.report.card import check_card
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES, load_evidence, published_runs
from rsnn_zoo.spec.config import load_config, parse_config
from rsnn_zoo.spec.names import UnknownNameError
from tests.conftest import NAME, make_entry, read_only, small_network
from tests.hub_server import TOKEN, File

ROOT = Path(__file__).resolve().parents[2]
REPO = f"rsnn-zoo/{NAME}"
WEIGHTS = "model.safetensors"


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A packaged entry, in a ``hub_configs/`` of its own."""
    monkeypatch.setattr(hub_module, "entries_folder", lambda: tmp_path / "hub_configs")
    return make_entry(tmp_path / "hub_configs")


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


# The package


def test_a_packaged_entry_loads_without_a_network(packaged):
    entry = resolve(NAME, endpoint="http://127.0.0.1:9")
    assert_loads(entry)
    assert entry.config == load_config(packaged / "config.json")
    assert entry.weights_path == packaged / WEIGHTS


def test_the_published_names_are_the_folders(packaged):
    make_entry(packaged.parent, "resnet20_digits_at_t2.linf8")
    (packaged.parent / "notes").mkdir()
    assert published_names() == ["resnet20_digits_at_t2.linf8", NAME]
    assert entry_folder(NAME) == packaged


@pytest.mark.parametrize("name", published_names())
def test_every_entry_of_this_repository_is_sound(name):
    entry = resolve(name, local_files_only=True)
    assert entry.load_weights()
    evidence = load_evidence(entry.get("evaluation.json", MAX_EVIDENCE_BYTES), entry.config)
    assert published_runs(evidence) and "energy" in evidence
    check_card(entry.get("README.md", 2**20).read_text(encoding="utf-8"), entry.config, evidence)


def test_a_flipped_bit_in_a_packaged_config_changes_no_network(packaged):
    """The config has no checksum: JSON, bounds, the promises of the name and the weights stand in for one."""
    data = (packaged / "config.json").read_bytes()
    keys = ("architecture", "num_classes", "in_chans", "img_size", "timesteps", "reset", "leak", "initial", "surrogate")
    keys += ("hidden_features",)
    sound = parse_config(parse_json(data, "x"), "x")
    flipped = bytearray(data)
    for bit in range(8 * len(data)):
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            config = parse_config(parse_json(bytes(flipped), "x"), "x")
        except ConfigError:
            pass
        else:
            same = all(getattr(config, key) == getattr(sound, key) for key in keys)
            assert same or config.name != NAME, bytes(flipped)  # and resolve wants the folder's name
        flipped[bit // 8] ^= 1 << bit % 8
    assert {"normalize.mean", "normalize.std"} < resolve(NAME).load_weights().keys()  # so the config's do not count


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("resnet20_digits_trade_t2", UnknownNameError, "did you mean trades"),
        ("resnet20_digits_trades_t3", NotPublishedError, f"not published .did you mean {NAME}.*train it with"),
        ("../../etc", UnknownNameError, "four parts"),
        ("hf_hub:x/y", ValueError, "unknown source 'hf_hub' .did you mean hf-hub"),
        ("hf-hub:x/y@v1", ValueError, "another revision than revision='v2'"),
        ("hf-hub:a/b/c", ValueError, "a/b/c"),
    ],
)
def test_a_wrong_name_is_refused_at_once(packaged, name, error, said):
    with pytest.raises(error, match=said):
        resolve(name, revision="v2" if "@" in name else None, endpoint="http://127.0.0.1:9")


def test_two_entries_that_changed_places_are_refused(packaged):
    other = make_entry(packaged.parent, "resnet20_digits_at_t2", seed=1)
    for name in ("config.json", WEIGHTS):
        shutil.copy(other / name, packaged / name)
    with pytest.raises(ConfigError, match=r"config\.json: rsnn_zoo\.name is 'resnet20_digits_at_t2'; restore"):
        resolve(NAME)


def test_a_flipped_bit_in_the_package_is_refused(packaged):
    data = bytearray((packaged / WEIGHTS).read_bytes())
    data[len(data) // 2] ^= 1
    (packaged / WEIGHTS).write_bytes(data)
    with pytest.raises(WeightsError, match=r"model\.safetensors has SHA-256 .*git restore"):
        resolve(NAME).load_weights()


def test_a_local_folder_needs_a_checksum(packaged):
    content = load_json(packaged / "config.json")
    del content["rsnn_zoo"]["weights"]
    (packaged / "config.json").write_bytes(to_json(content))
    with pytest.raises(ConfigError, match=r"rsnn_zoo\.weights is missing; write the folder with save_pretrained"):
        resolve(f"local-dir:{packaged}")
    with pytest.raises(FileNotFoundError):
        resolve(f"local-dir:{packaged}/nowhere")


# Downloading what the package pins


def test_weights_come_from_the_hub_once_and_then_from_the_cache(published, find, hub):
    assert_loads(find())
    assert downloads(hub) == 1
    hub.requests.clear()
    assert_loads(find())
    assert_loads(find(endpoint="http://127.0.0.1:9"))
    assert_loads(find(local_files_only=True))
    assert not hub.requests


def test_the_pinned_release_is_loaded_though_the_branch_moved_on(published, find, packaged):
    published.commit({})
    assert_loads(find())


def test_a_tag_moved_to_other_weights_is_refused(published, find, packaged, hub, tmp_path):
    other = make_entry(tmp_path / "other", NAME, seed=1)
    oid = published.commit({WEIGHTS: File((other / WEIGHTS).read_bytes(), lfs=True)})
    hub.lfs[published.commits[oid][WEIGHTS].oid] = (other / WEIGHTS).read_bytes()
    published.tags["v1"] = oid
    with pytest.raises(WeightsError, match="SHA-256"):
        find().load_weights()


def test_larger_weights_than_the_config_says_are_not_downloaded(published, find, hub):
    published.commits[published.tags["v1"]][WEIGHTS] = File(bytes(5_000_000), lfs=True)
    with pytest.raises(HubError, match=r"has 5,000,000 bytes where at most 1,\d+,\d+ are expected"):
        find()
    assert not downloads(hub)


def test_new_weights_on_an_unpinned_branch_are_fetched_not_taken_from_the_cache(packaged, find, hub, tmp_path):
    push_to_hub(packaged, token=TOKEN, endpoint=hub.url)
    (packaged / WEIGHTS).unlink()
    assert_loads(find())
    shutil.rmtree(packaged)  # as an upgrade of rsnn_zoo does
    make_entry(packaged.parent, seed=1)
    push_to_hub(packaged, token=TOKEN, endpoint=hub.url)
    (packaged / WEIGHTS).unlink()
    assert_loads(find(), seed=1)


def test_another_revision_brings_its_own_config_and_weights(published, packaged, find, hub):
    shutil.rmtree(packaged)
    make_entry(packaged.parent, seed=1)
    push_to_hub(packaged, token=TOKEN, endpoint=hub.url, tag="v2")
    assert_loads(find(), seed=1)
    assert_loads(find(revision="v1"))
    assert_loads(find(f"hf-hub:{REPO}@v1"))
    assert_loads(find(f"hf-hub:{REPO}@{published.tags['v1']}"))
    assert_loads(find(f"hf-hub:{REPO}"), seed=1)
    with pytest.raises(HubError, match=f"{REPO}@v3: there is no such revision"):
        find(revision="v3")


def test_the_organisation_is_the_users_choice(published, find, hub, monkeypatch):
    hub.repos[f"lab/{NAME}"] = hub.repos.pop(REPO)
    with pytest.raises(HubError, match=f"{REPO}@v1: there is no such repository"):
        find()
    monkeypatch.setenv("RSNN_ZOO_ORG", "lab")
    assert_loads(find())


# Entries of others


def test_config_and_weights_come_from_the_same_commit(published, find, hub, tmp_path):
    other = make_entry(tmp_path / "other", NAME, seed=1)

    def overtake(method, path):
        if method == "GET" and path.endswith("/config.json"):
            hub.before = lambda method, path: None
            push_to_hub(other, token=TOKEN, endpoint=hub.url)

    hub.before = overtake
    assert_loads(find(f"hf-hub:{REPO}"))
    assert_loads(find(f"hf-hub:{REPO}"), seed=1)


def test_without_our_checksum_the_hubs_own_is_used(published, find, hub, tmp_path):
    files = published.commits[published.branches["main"]]
    content = parse_json(files["config.json"].data, "config.json")
    del content["rsnn_zoo"]
    files["config.json"] = File(to_json(content), lfs=False)
    assert_loads(find(f"hf-hub:{REPO}"))
    hub.corrupt[files[WEIGHTS].oid] = bytes(len(files[WEIGHTS].data))
    with pytest.raises(WeightsError, match="SHA-256"):
        find(f"hf-hub:{REPO}", cache_dir=tmp_path / "another").load_weights()


def test_without_any_checksum_weights_are_refused(published, find):
    files = published.commits[published.branches["main"]]
    content = parse_json(files["config.json"].data, "config.json")
    del content["rsnn_zoo"]
    files["config.json"] = File(to_json(content), lfs=False)
    files[WEIGHTS] = replace(files[WEIGHTS], lfs=False)
    with pytest.raises(HubError, match=r"has no checksum of model\.safetensors"):
        find(f"hf-hub:{REPO}")


def test_a_huge_config_is_not_downloaded(published, find, hub):
    published.commits[published.branches["main"]]["config.json"] = File(b" " * 2_000_000, lfs=False)
    with pytest.raises(HubError, match=r"config\.json has 2,000,000 bytes where at most 1,048,576"):
        find(f"hf-hub:{REPO}")
    assert not any(method == "GET" for method, _, _ in hub.requests)


def test_a_hostile_config_is_refused_before_any_weights(published, find, hub):
    files = published.commits[published.branches["main"]]
    content = parse_json(files["config.json"].data, "config.json")
    content["rsnn_zoo"]["weights"]["file"] = "../../../evil.safetensors"
    files["config.json"] = File(to_json(content), lfs=False)
    with pytest.raises(ConfigError, match=r"rsnn_zoo\.weights\.file"):
        find(f"hf-hub:{REPO}")
    assert not downloads(hub)


def test_a_repository_without_weights_says_so(published, find):
    del published.commits[published.branches["main"]][WEIGHTS]
    with pytest.raises(HubError, match="the repository lacks the file"):
        find(f"hf-hub:{REPO}")


# Who may read


def test_a_private_repository_needs_the_token_which_stays_with_the_hub(published, find, hub, monkeypatch):
    published.private = True
    with pytest.raises(HubError, match="no such repository, or it is private; check the name, or run `hf auth login`"):
        find()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match="private"):
        find()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.requests.clear()
    assert_loads(find())
    assert all(token != path.startswith("/cdn/") for _, path, token in hub.requests)


def test_a_gated_repository_says_where_to_ask_and_lets_in_who_was_granted(published, find, monkeypatch):
    published.gated = True
    for token in ("", "hf_another"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HubError, match="is gated; accept its terms on its page"):
            find()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert_loads(find())


# Bad connections


def test_an_unreachable_hub_fails_at_once(published, find):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    start = time.monotonic()
    with pytest.raises(HubError, match=r"cannot be reached .*HF_ENDPOINT.*local-dir:path"):
        find(endpoint=f"http://127.0.0.1:{port}")
    assert time.monotonic() - start < 4


def test_a_silent_hub_fails_within_five_seconds(published, find):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, never answers
        start = time.monotonic()
        with pytest.raises(HubError, match="cannot be reached"):
            find(endpoint=f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - start < 5


def test_a_host_of_many_dead_addresses_takes_no_longer(published, find, monkeypatch):
    """A client's timeout starts anew for each address; on clusters that drop packets there are a dozen."""
    monkeypatch.setattr(hub_module, "PATIENCE", 0.5)
    hosts = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{last}", 80)) for last in range(1, 13)]

    def swallow(self, address):
        time.sleep(self.gettimeout())
        raise TimeoutError

    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: hosts)
    monkeypatch.setattr(socket.socket, "connect", swallow)
    start = time.monotonic()
    with pytest.raises(HubError, match="cannot be reached"):
        find(endpoint="http://hub.test")
    assert time.monotonic() - start < 4


def test_the_users_own_patience_counts(published, find, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    hub.delay = 0.4
    with pytest.raises(HubError, match="cannot be reached"):
        find()
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 9)
    assert_loads(find())


def test_a_cached_branch_is_used_and_said_where_the_hub_is_away(published, find, hub, caplog):
    assert_loads(find(f"hf-hub:{REPO}"))
    with caplog.at_level(logging.WARNING):
        assert_loads(find(f"hf-hub:{REPO}", endpoint="http://127.0.0.1:9"))
    assert "The copy in the download cache is used" in caplog.text


def test_a_proxy_of_the_environment_is_used(published, find, hub, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", hub.url)
    monkeypatch.setenv("NO_PROXY", "")
    close_session()  # the client reads the environment when it is made
    try:
        assert_loads(find(endpoint="http://hub.test"))  # a name that no resolver knows
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        close_session()
        with pytest.raises(HubError, match=r"cannot be reached .*HTTPS_PROXY"):
            find(revision="main", endpoint="http://hub.test")
    finally:
        monkeypatch.undo()
        close_session()


def test_a_login_page_is_not_taken_for_a_hub(published, find, hub):
    with pytest.raises(HubError, match="is not a Hub; check HF_ENDPOINT and the proxy"):
        find(endpoint=f"{hub.url}/portal")


def test_a_slow_connection_is_waited_for(published, find, hub):
    hub.seconds_per_block = 0.1
    assert_loads(find())


def test_a_dropping_connection_is_resumed(published, find, hub):
    hub.drop_after, hub.drops = 300_000, 1
    assert_loads(find())
    assert downloads(hub) == 2


@pytest.mark.slow
def test_a_connection_that_always_drops_is_an_error_and_leaves_nothing(published, find, hub, tmp_path):
    hub.drop_after, hub.drops = 0, 99
    with pytest.raises(HubError, match=f"{REPO}@v1: "):
        find()
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_offline_mode_uses_the_cache_or_says_how_to_fill_it(published, find, hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    start = time.monotonic()
    with pytest.raises(HubError, match=f"{REPO}@v1: it is not in the download cache; unset HF_HUB_OFFLINE"):
        find()
    with pytest.raises(HubError, match="load it once with local_files_only=False"):
        find(local_files_only=True)
    assert time.monotonic() - start < 4 and not hub.requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    find()
    find(f"hf-hub:{REPO}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert_loads(find())
    assert_loads(find(f"hf-hub:{REPO}"))
    assert not hub.requests


# The cache


def test_bytes_changed_on_the_way_are_refused(published, find, hub):
    file = published.commits[published.tags["v1"]][WEIGHTS]
    hub.corrupt[file.oid] = flipped(file.data)
    with pytest.raises(WeightsError, match="has SHA-256"):
        find().load_weights()


def flipped(data):
    return data[:-1] + bytes([data[-1] ^ 1])


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
