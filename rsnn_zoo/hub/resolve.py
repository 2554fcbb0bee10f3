"""Find the published entries: ``hub_configs/`` of the package, the download cache, the Hugging Face Hub.

The packaged ``config.json`` of an entry holds the SHA-256 of its weights, so wherever the bytes come from, a moved tag
or a mirror among them, they are the published ones or are refused (``weights.load_weights``). Entries that others
publish (``hf-hub:org/name@revision``) have their config validated, and all their files come from the same commit.
Finding an entry needs no torch; reading its weights does.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils.sha import git_hash

from rsnn_zoo._utils.files import MAX_JSON_BYTES, ConfigError, printable
from rsnn_zoo._utils.folders import current, locked
from rsnn_zoo.hub.asking import HubError, explained, within
from rsnn_zoo.spec.config import (  # noqa: F401 - of which users of 0.1.0 find some here
    CARD,
    CONFIG,
    EVIDENCE,
    MAX_WEIGHTS_BYTES,
    SHA256,
    WEIGHTS,
    ModelConfig,
    load_config,
)
from rsnn_zoo.spec.names import ModelName, UnknownNameError, is_model, near_matches

if TYPE_CHECKING:
    from torch import Tensor

    from rsnn_zoo.hub.shards import Form

_logger = logging.getLogger(__name__)

ORG = "rsnn-zoo"

PATIENCE = 4.0  # seconds for the first answer; huggingface_hub alone tries an unreachable Hub for 23
_SHA1 = re.compile("[0-9a-f]{40}")


class NotPublishedError(LookupError):
    """A name of the grid that has no published weights."""


@dataclass(frozen=True)
class Entry:
    """A found entry; its other files are fetched when they are first asked for.

    Attributes:
        config: Its checked config.
        origin: Where it was found, for logs and errors.
        get: Takes the name of a file and the most bytes it may have; gives its path, from the same folder or commit.
    """

    config: ModelConfig
    origin: str
    get: Callable[[str, int], Path]

    @cached_property
    def weights_path(self) -> Path:
        """The weights file, or the index of its shards, not verified yet."""
        weights = self.config.weights
        return self.get(weights.file, weights.size) if weights else self.get(WEIGHTS, MAX_WEIGHTS_BYTES)

    @property
    def sha256(self) -> str:
        """What the weights must hash to: as the config says, or where others wrote none, as the Hub does.

        Raises:
            HubError: If neither says it.
        """
        if self.config.weights:
            return self.config.weights.sha256
        own = self.weights_path.resolve().name  # the cache names a large file by the Hub's SHA-256 of it
        if not SHA256.fullmatch(own):
            raise HubError(f"{self.origin} has no checksum of {WEIGHTS}; ask its publisher to use rsnn_zoo.push_to_hub")
        return own

    def load(self) -> tuple[dict[str, Tensor], Form]:
        """Read and verify the weights; return them and how they are stored, see ``shards.load_files``."""
        from rsnn_zoo.hub.shards import Form, load_files
        from rsnn_zoo.hub.weights import load_weights

        if self.config.weights:
            return load_files(self.config.weights, lambda file: self.get(file.file, file.size))
        return load_weights(self.weights_path, self.sha256), Form()

    def load_weights(self) -> dict[str, Tensor]:
        """Read and verify the weights, see ``shards.load_files``."""
        return self.load()[0]


def entries_folder() -> Path:
    """Return ``hub_configs/``: inside the package of a wheel, beside it in a checkout or an editable install."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "hub_configs"
    return inside if inside.is_dir() else package.parent / "hub_configs"


def published_names() -> list[str]:
    """Return the names of all published entries, sorted."""
    return sorted(path.parent.name for path in entries_folder().glob(f"*/{CONFIG}"))


def entry_folder(name: str) -> Path:
    """Return the folder of a published entry.

    Raises:
        UnknownNameError: If the name is not of the grid.
        NotPublishedError: If nobody published it.
    """
    name = str(ModelName.parse(name))
    folder = entries_folder() / name
    if not current(folder, CONFIG).is_file():
        raise NotPublishedError(
            f"{name} is not published{near_matches(name, published_names())}. Build it with pretrained=False, "
            "train it with scripts/train.py, or name another publisher's weights as 'hf-hub:org/name'"
        )
    return folder


def is_packaged(name: Any, weights: bool) -> bool:
    """Whether it names a published entry, and whether its weights too are on this machine with the package."""
    if name not in published_names() or not weights:
        return name in published_names()
    folder = entries_folder() / name
    info = load_config(current(folder, CONFIG)).weights
    return info is not None and all(current(folder, file.file).is_file() for file in info.files)


def default_org() -> str:
    """Return the organisation on the Hub that holds the entries: ``RSNN_ZOO_ORG``, or ``ORG``."""
    return os.environ.get("RSNN_ZOO_ORG") or ORG


def resolve(
    name: str,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    endpoint: str | None = None,
) -> Entry:
    """Find an entry and check its config; the weights are downloaded when they are asked for.

    A name of the grid is looked for in the package, then in the download cache, then on the Hub at the revision that
    the packaged config pins; the packaged checksum holds in each case. Everything else is taken from one commit.

    Args:
        name: ``"resnet20_digits_trades_t4"``, ``"hf-hub:org/name"``, ``"hf-hub:org/name@revision"`` or
            ``"local-dir:path"``.
        revision: Tag, branch or commit on the Hub, instead of the pinned one.
        cache_dir: Download cache, instead of the one of ``huggingface_hub``.
        local_files_only: Never touch the network.
        endpoint: Address of the Hub or of a mirror, instead of ``HF_ENDPOINT``.

    Raises:
        UnknownNameError: If the name is not of the grid.
        NotPublishedError: If nobody published it.
        ConfigError: If the config cannot be used.
        FileNotFoundError: If a local folder lacks a file.
        HubError: If the Hub or the cache cannot give a file; says why and what to do.
        ValueError: If the repository or the source is misspelt.

    Example:
        >>> entry = resolve("resnet20_digits_trades_t4")  # doctest: +SKIP
        >>> state_dict = entry.load_weights()  # doctest: +SKIP
    """
    hub = _Hub(cache_dir, local_files_only, endpoint)
    source, colon, place = name.partition(":")
    if not colon:
        if os.path.isfile(Path(name) / CONFIG) and not is_model(name):
            raise UnknownNameError(f"{name} is a folder: say 'local-dir:{name}'")
        return _packaged(name, revision, hub)
    if source == "local-dir":
        if not os.path.isfile(current(place, CONFIG)):
            raise FileNotFoundError(f"{printable(place)} is not the folder of an entry: there is no {CONFIG} in it")
        return _folder(Path(place), name)
    if source == "hf-hub":
        repo, _, tag = place.partition("@")
        if revision and tag and revision != tag:
            raise ValueError(f"{name!r} names another revision than revision={revision!r}; give one of them")
        return _published(repo, revision or tag or "main", hub)
    raise ValueError(f"{name!r}: unknown source {source!r}{near_matches(source, ('hf-hub', 'local-dir'))}")


@contextmanager
def held(name: str) -> Iterator[None]:
    """Hold the folder of an entry against writers while several of its files are read; see :func:`resolve`."""
    source, colon, place = name.partition(":")
    with locked(entries_folder() / name if not colon else place if source == "local-dir" else "", shared=True):
        yield


def _packaged(name: str, revision: str | None, hub: _Hub) -> Entry:
    folder = entry_folder(name)
    entry = _folder(folder, f"packaged {folder.name}")
    if entry.config.name != folder.name:  # or two entries that changed places would both verify
        raise ConfigError(f"{folder / CONFIG}: rsnn_zoo.name is {entry.config.name!r}; restore the file")
    repo = f"{default_org()}/{folder.name}"
    if revision not in (None, entry.config.revision):
        return _published(repo, revision or "main", hub)
    pinned = entry.config.revision or "main"
    weights = entry.config.weights
    known = {file.file: file.sha256 for file in weights.files} if weights else {}

    def get(filename: str, limit: int) -> Path:
        path = current(folder, filename)
        return path if path.is_file() else hub.fetch(repo, filename, pinned, limit, known.get(filename))

    return Entry(entry.config, entry.origin, get)


def _folder(folder: Path, origin: str) -> Entry:
    config = load_config(current(folder, CONFIG))
    if config.weights is None:
        raise ConfigError(f"{folder / CONFIG}: rsnn_zoo.weights is missing; write the folder with save_pretrained")
    return Entry(config, origin, lambda filename, limit: current(folder, filename))


def _published(repo: str, revision: str, hub: _Hub) -> Entry:
    path = hub.fetch(repo, CONFIG, revision, MAX_JSON_BYTES)
    commit = path.parent.name  # the snapshot that the config came from; the branch may move on meanwhile
    config = load_config(path)
    return Entry(config, f"{repo}@{commit}", lambda filename, limit: hub.fetch(repo, filename, commit, limit))


@dataclass(frozen=True)
class _Hub:
    """Where and how to download."""

    cache_dir: str | Path | None
    local_files_only: bool
    endpoint: str | None

    def fetch(self, repo: str, filename: str, revision: str, limit: int, sha256: str | None = None) -> Path:
        """Return the path of a file in the cache, downloaded unless the cache surely holds the right one.

        Raises:
            HubError: If it cannot be had, has more than ``limit`` bytes, or is damaged.
        """
        path = self._find(repo, filename, revision, limit, sha256)
        own = path.resolve()
        # The cache names a small file by git's hash of it, which is checked here, a large one by its SHA-256, which is
        # checked where it is read.
        if _SHA1.fullmatch(own.name) and own.name != git_hash(own.read_bytes()):
            raise HubError(f"{own} is damaged; delete it, and it is downloaded anew when it is next needed")
        return path

    def _find(self, repo: str, filename: str, revision: str, limit: int, sha256: str | None) -> Path:
        cached = try_to_load_from_cache(repo, filename, self.cache_dir, revision)
        if not isinstance(cached, str):
            cached = None
        elif self.local_files_only or _SHA1.fullmatch(revision) or Path(cached).resolve().name == sha256:
            return Path(cached)
        if self.local_files_only:
            raise HubError(f"{repo}@{revision} is not in the download cache; load it once with local_files_only=False")
        try:
            with explained(f"{repo}@{revision}", filename):
                commit = self._ask(repo, filename, revision, limit)
                download = partial(hf_hub_download, repo, filename, cache_dir=self.cache_dir, endpoint=self.endpoint)
                path = download(revision=commit)
                if commit != revision:  # nothing is left to download, but the cache notes what the name stands for
                    download(revision=revision)
        except HubError as error:
            if cached is None:
                raise
            _logger.warning("%s. The copy in the download cache is used", error)
            path = cached
        return Path(path)

    def _ask(self, repo: str, filename: str, revision: str, limit: int) -> str:
        """Return the commit that a revision stands for, checking the file's size; quick where there is no Hub."""
        url = hf_hub_url(repo, filename, revision=revision, endpoint=self.endpoint)
        patience = PATIENCE
        if constants.HF_HUB_ETAG_TIMEOUT != constants.DEFAULT_ETAG_TIMEOUT:  # the user's own
            patience = constants.HF_HUB_ETAG_TIMEOUT
        found = within(patience, lambda: get_hf_file_metadata(url, timeout=patience))
        if found.commit_hash is None:
            raise HubError(f"what answers at {url} is not a Hub; check HF_ENDPOINT and the proxy")
        if found.size is not None and found.size > limit:
            raise HubError(
                f"{filename} has {found.size:,} bytes where at most {limit:,} are expected; ask its publisher"
            )
        return found.commit_hash
