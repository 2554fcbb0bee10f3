"""Find the published entries: ``hub_configs/`` of the package, the download cache, the Hugging Face Hub.

The packaged ``config.json`` of an entry holds the SHA-256 of its weights, so wherever the bytes come from, a moved tag
or a mirror among them, they are the published ones or are refused (``weights.load_weights``). Entries that others
publish (``hf-hub:org/name@revision``) have their config validated, and all their files come from the same commit.
Finding an entry needs no torch; reading its weights does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsnn_zoo._utils.files import MAX_JSON_BYTES, ConfigError, printable
from rsnn_zoo._utils.folders import current, locked
from rsnn_zoo.hub.errors import HubError, NotPublishedError
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

    from rsnn_zoo.hub.download import Hub
    from rsnn_zoo.hub.shards import Form

ORG = "rsnn-zoo"


def __getattr__(name: str) -> Any:
    if name == "PATIENCE":  # which users of 0.1.0 find here
        from rsnn_zoo.hub.download import PATIENCE

        return PATIENCE
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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

    def hub() -> Hub:
        from rsnn_zoo.hub.download import Hub  # the client's import, which a packaged entry does without

        return Hub(cache_dir, local_files_only, endpoint)

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


def _packaged(name: str, revision: str | None, hub: Callable[[], Hub]) -> Entry:
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
        return path if path.is_file() else hub().fetch(repo, filename, pinned, limit, known.get(filename))

    return Entry(entry.config, entry.origin, get)


def _folder(folder: Path, origin: str) -> Entry:
    config = load_config(current(folder, CONFIG))
    if config.weights is None:
        raise ConfigError(f"{folder / CONFIG}: rsnn_zoo.weights is missing; write the folder with save_pretrained")
    return Entry(config, origin, lambda filename, limit: current(folder, filename))


def _published(repo: str, revision: str, hub: Callable[[], Hub]) -> Entry:
    path = hub().fetch(repo, CONFIG, revision, MAX_JSON_BYTES)
    commit = path.parent.name  # the snapshot that the config came from; the branch may move on meanwhile
    config = load_config(path)
    return Entry(config, f"{repo}@{commit}", lambda filename, limit: hub().fetch(repo, filename, commit, limit))
