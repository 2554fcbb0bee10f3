"""Finding and loading entries: the package, the cache, and a Hub on this machine, with the real client."""

import shutil
from dataclasses import replace

import pytest

from rsnn_zoo._utils.files import ConfigError, load_json, parse_json, to_json
from rsnn_zoo.hub.publish import push_to_hub
from rsnn_zoo.hub.resolve import HubError, NotPublishedError, entry_folder, published_names, resolve
from rsnn_zoo.hub.weights import WeightsError
from rsnn_zoo.report.card import check_card
from rsnn_zoo.report.evidence import MAX_EVIDENCE_BYTES, load_evidence, published_runs
from rsnn_zoo.spec.config import load_config, parse_config
from rsnn_zoo.spec.names import UnknownNameError
from tests.conftest import NAME, make_entry
from tests.hub.conftest import REPO, WEIGHTS, assert_loads, downloads
from tests.hub_server import TOKEN, File

# --- the package ------------------------------------------------------------------------------------------------------


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
    keys += ("hidden_features", "channel_sums")
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


# --- downloading what the package pins --------------------------------------------------------------------------------


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


# --- entries of others ------------------------------------------------------------------------------------------------


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


# --- who may read -----------------------------------------------------------------------------------------------------


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
