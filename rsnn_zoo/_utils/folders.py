"""Several files of one folder that change together: one rename commits them all, and readers see old or new.

New files are staged under temporary names, then a journal that names them takes its place by one rename: from there
on the new files are the folder's, whether or not they have their own names yet. What was killed in between is finished
by the next writer, and read through the journal until then.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from rsnn_zoo._utils.files import ConfigError, load_json, replacing, sweep, temporary_name, to_json, write_through

try:
    import fcntl
except ImportError:  # Windows: one writer at a time is then the user's task
    fcntl = None  # type: ignore[assignment]

__all__ = ["commit", "current", "locked"]

JOURNAL = ".commit.json"

_log = logging.getLogger(__name__)


@contextmanager
def locked(folder: str | os.PathLike[str], shared: bool = False) -> Iterator[None]:
    """Hold a folder against writers of other processes, who wait; the lock ends with the process.

    Args:
        folder: An existing one. Where its file system knows no locks, nothing is held.
        shared: Other readers may hold it too.
    """
    handle = None
    with suppress(OSError, ValueError):  # the latter for a zero byte
        if fcntl:
            handle = os.open(folder, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for ever
            fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def current(folder: str | os.PathLike[str], name: str) -> Path:
    """Return where a file of a folder is: under its name, or where its commit was cut short, as it was staged."""
    folder = Path(folder)
    staged = _journal(folder).get(name)
    return folder / staged if staged and (folder / staged).is_file() else folder / name


def commit(folder: str | os.PathLike[str], make: Callable[[], Mapping[str, bytes | None]]) -> None:
    """Give files of a folder new content, all or none, whatever happens on the way.

    Args:
        folder: Made if absent.
        make: Gives the content by name, from what the folder holds: no other writer comes between. None removes a
            file; what is there already is not written again.

    Raises:
        OSError: If they cannot be written; the folder's files are then the old ones.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _finish(folder)
        sweep(folder, None)
        changed = {name: data for name, data in make().items() if not _holds(folder / name, data)}
        if not changed:
            return
        staged = {name: None if data is None else temporary_name(name, "new") for name, data in changed.items()}
        try:
            for name, new in staged.items():
                if new:
                    write_through(folder / new, changed[name])
            with replacing(folder / JOURNAL) as temporary:
                write_through(temporary, to_json(staged))
        except BaseException:
            for new in filter(None, staged.values()):
                (folder / new).unlink(missing_ok=True)
            raise
        try:
            _finish(folder)
        except OSError as error:  # they are committed: readers find them, and the next writer goes on
            _log.warning("files of %s keep temporary names until it is next written to: %s", folder, error)


def _finish(folder: Path) -> None:
    """Do what is left of a commit that was cut short."""
    for name, staged in _journal(folder).items():
        if staged is None:
            (folder / name).unlink(missing_ok=True)
        elif (folder / staged).is_file():
            os.replace(folder / staged, folder / name)
    (folder / JOURNAL).unlink(missing_ok=True)


def _journal(folder: Path) -> dict[str, str | None]:
    """Read what each file was staged as, None for one that goes, whoever wrote it; empty where there is no journal."""
    try:
        found = load_json(folder / JOURNAL)
    except (OSError, ConfigError):
        return {}
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: staged for name, staged in pairs if Path(name).name == name and _is_staged(name, staged)}


def _is_staged(name: str, staged: object) -> bool:
    if staged is None:
        return True
    return isinstance(staged, str) and Path(staged).name == staged and staged.startswith(f".{name}.")


def _holds(path: Path, data: bytes | None) -> bool:
    if data is None:
        return not path.exists()
    return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
