"""Asking the Hugging Face Hub: with a deadline, and what goes wrong said with what to do about it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NoAnswer  # the builtin TimeoutError from Python 3.11 on
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rsnn_zoo.hub.errors import HubError

_T = TypeVar("_T")


def within(seconds: float, call: Callable[[], _T]) -> _T:
    """Call with a deadline: a client's own timeout starts anew for each of a host's addresses, and for each phase."""
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


_LOG_IN = "run `hf auth login` or set HF_TOKEN"
_CAUSES = (  # the first that fits is taken
    (HubError, "{error}"),
    (GatedRepoError, f"the repository is gated; accept its terms on its page, then {_LOG_IN}"),
    (RepositoryNotFoundError, f"there is no such repository, or it is private; check the name, or {_LOG_IN}"),
    (RevisionNotFoundError, "there is no such revision; see the repository's branches and tags"),
    (OfflineModeIsEnabled, "it is not in the download cache; unset HF_HUB_OFFLINE to download it once"),
    (LocalEntryNotFoundError, "the Hub broke off, and the file {file} is not in the download cache; try again"),
    (EntryNotFoundError, "the repository lacks the file {file}; ask its publisher"),
    (HfHubHTTPError, f"the Hub refused: {{error}}. Try again later, or {_LOG_IN}"),
    (
        (HTTPError, NoAnswer),
        "the Hub cannot be reached ({error!r}); check the connection, HTTPS_PROXY and HF_ENDPOINT, or copy the folder "
        "from elsewhere and load it as 'local-dir:path'",
    ),
    (RuntimeError, "{error} ({error.__cause__}); try again"),  # a large file that would not go up
    (OSError, "the download failed: {error}; try again, and see that the cache (HF_HOME, cache_dir) can be written"),
)


@contextmanager
def explained(place: str, file: str = "") -> Iterator[None]:
    """Turn whatever the client raises inside into a ``HubError`` that says what to do at ``place`` about a file."""
    try:
        yield
    except (HTTPError, NoAnswer, OSError, RuntimeError) as error:
        cause = next(text for kind, text in _CAUSES if isinstance(error, kind))
        raise HubError(" ".join(f"{place}: {cause.format(error=error, file=file)}".split())) from error
