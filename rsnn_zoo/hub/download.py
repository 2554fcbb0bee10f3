"""Download the files of an entry, or find them in the download cache of ``huggingface_hub``."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils.sha import git_hash

from rsnn_zoo.hub.asking import explained, within
from rsnn_zoo.hub.errors import HubError

_logger = logging.getLogger(__name__)

PATIENCE = 4.0  # seconds for the first answer; huggingface_hub alone tries an unreachable Hub for 23
_SHA1 = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True)
class Hub:
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
