"""Small files: read within bounds, JSON strictly, and anything written atomically."""

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 2**20
MAX_JSON_DEPTH = 32
_MAX_CONTAINERS, _MAX_VALUES = 2**17, 2**21  # objects and lists, and commas: what parsing costs, besides bytes
_TEMPORARY = re.compile(r"\.(.+)\.(\d+)\.(tmp|new)")


class ConfigError(ValueError):
    """A ``config.json`` (or another JSON file of an entry) that cannot be used; names file, key, cause and remedy."""


def check_writable(path: str | os.PathLike[str]) -> None:
    """Makes the folder of a file that is to be written later, so that hours of work do not end at a wrong path.

    Args:
        path: Of the file; one that is there will be replaced.

    Raises:
        ValueError: If no file can be written there.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # the latter for a zero byte
        raise ValueError(f"{path} cannot be written: its folder cannot be made ({error}); name another path") from None
    if os.path.isdir(path):
        raise ValueError(f"{path} cannot be written: it is a folder; name a file in it")
    try:
        with suppress(FileNotFoundError):
            os.lstat(path.with_name(temporary_name(path.name)))
    except (OSError, ValueError) as error:  # nothing can be called so
        raise ValueError(f"{printable(path)} cannot be written ({str(error)[:40]}); name another path") from None
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path} cannot be written: {path.parent} is read-only for you; name another path")


def printable(path: str | os.PathLike[str] | None) -> str:
    """Return a path for a message, of a zero byte or an end of line in it what can be seen."""
    return repr(os.fspath(path or ""))[1:-1][:300]


def load_json(path: str | os.PathLike[str], limit: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of at most ``limit`` bytes strictly.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If the file is too large or ``parse_json`` refuses it.
    """
    return parse_json(read_bounded(path, limit), str(path), limit)


def at_home(path: str | os.PathLike[str]) -> Path:
    """Return a path in which ``~`` is the home folder.

    Raises:
        OSError: If nobody knows which folder that is.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OSError(f"{printable(path)}: {str(error).rstrip('.').lower()}; write the path out") from None


def open_regular(path: str | os.PathLike[str]) -> Any:
    """Open a file for reading bytes, and nothing else: a pipe would wait for ever, a device never end.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read, or is no regular file.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except ValueError as error:  # a zero byte in its name
        raise OSError(f"{printable(path)} cannot be opened ({error}): give the path of a file") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is no regular file: give the path of one")
    return open(handle, "rb", buffering=0)


def read_bounded(path: str | os.PathLike[str], limit: int) -> bytes:
    """Read a file, and of one that has more than ``limit`` bytes one byte more, for the caller to refuse.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        parts = []
        while limit >= 0 and (part := file.read(min(limit + 1, 2**20))):
            parts.append(part)
            limit -= len(part)
    return b"".join(parts)


def read_text(path: str | os.PathLike[str], limit: int) -> str:
    """Read a text file of at most ``limit`` bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If it cannot be read, or is no regular file.
        ConfigError: If it is larger, or not UTF-8.
    """
    data = read_bounded(path, limit)
    if len(data) > limit:
        raise ConfigError(f"{path} is larger than {limit:,} bytes; fetch or write the file again")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text ({error}); fetch or write the file again") from None


def parse_json(data: bytes, source: str, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON, refusing what ``json`` lets through: duplicate keys, NaN, infinities, and absurd sizes.

    Args:
        data: UTF-8.
        source: Where the bytes came from, for the error message.
        limit: The most bytes to accept.

    Raises:
        ConfigError: If the text is refused.
    """
    try:
        if len(data) > limit:
            raise ValueError(f"it is larger than {limit:,} bytes")
        if data.count(b"[") + data.count(b"{") > _MAX_CONTAINERS or data.count(b",") > _MAX_VALUES:
            raise ValueError(
                f"it holds more than {_MAX_CONTAINERS:,} objects and lists or {_MAX_VALUES:,} values, or is nested too "
                "deeply"
            )
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
        )
        _check_depth(value, MAX_JSON_DEPTH)
    except RecursionError:
        raise ConfigError(f"{source}: it is nested too deeply; fetch or write the file again") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError among them
        raise ConfigError(f"{source} is not usable JSON: {error}; fetch or write the file again") from None
    return value


def to_json(content: Any) -> bytes:
    """Return content as the UTF-8 text of a JSON file.

    Raises:
        ConfigError: If something inside is not JSON: a tensor, NaN, an infinity.
    """
    try:
        return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"Cannot write as JSON: {error}; pass only plain, finite values") from None


def write_through(path: str | os.PathLike[str], *parts: Any) -> None:
    """Write bytes to the disk itself: some disks tell only then that they are full.

    Raises:
        OSError: If they cannot be written.
    """
    with open(path, "wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; on success it takes the place of ``path``, on failure it is removed.

    Example:
        >>> with replacing("report.json") as temporary:  # doctest: +SKIP
        ...     temporary.write_text("{}")
    """
    path = Path(path)
    temporary = path.with_name(temporary_name(path.name))
    sweep(path.parent, path.name, ("tmp",))
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # or a power cut may leave an empty file under the new name
        os.replace(temporary, path)
        sweep(path.parent, path.name)  # what a commit that was cut short would have put there is old now
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(name: str, kind: str = "tmp") -> str:
    """Return the name under which this process writes a file; ``new`` is the kind of what a journal may have named."""
    return f".{name}.{os.getpid()}.{kind}"


def sweep(folder: Path, name: str | None, kinds: tuple[str, ...] = ("tmp", "new")) -> None:
    """Remove temporary files of processes that were killed while they wrote.

    Args:
        folder: Where.
        name: Of the file that they were to become; None for any.
        kinds: As of :func:`temporary_name`.
    """
    for found in filter(None, map(_TEMPORARY.fullmatch, os.listdir(folder))):
        if found[1] == (name or found[1]) and found[3] in kinds and _is_over(found[2]):
            with suppress(OSError):  # somebody else's: in nobody's way
                (folder / found[0]).unlink(missing_ok=True)


def _is_over(pid: str) -> bool:
    """Whether no process of that number runs, on this machine."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("an object holds the same key twice")
    return found


def _integer(text: str) -> int:
    if len(text) > 20:  # int() is quadratic in the number of digits
        raise ValueError(f"the integer {text[:20]}... is too long")
    return int(text)


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def _check_depth(value: Any, depth: int) -> None:
    if depth < 0:
        raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep")
    if isinstance(value, str):
        value.encode()  # half a surrogate pair parses, but can be neither shown nor written
    elif isinstance(value, (dict, list)):
        for child in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_depth(child, depth - 1)
