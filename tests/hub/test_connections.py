"""A Hub that is away, silent, slow or not one: what fails, how soon, and what the cache still gives."""

import logging
import socket
import time

import pytest
from huggingface_hub import close_session, constants

from rsnn_zoo.hub import download as hub_module
from rsnn_zoo.hub.resolve import HubError
from tests.hub.conftest import REPO, assert_loads, downloads

# --- bad connections --------------------------------------------------------------------------------------------------


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
