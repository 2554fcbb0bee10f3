"""Small files: JSON read strictly, and anything written atomically."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 2**20
MAX_JSON_DEPTH = 32


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
    except OSError as error:
        raise ValueError(f"{path} cannot be written: its folder cannot be made ({error}); name another path") from None
    if path.is_dir():
        raise ValueError(f"{path} cannot be written: it is a folder; name a file in it")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"{path} cannot be written: {path.parent} is read-only for you; name another path")


def load_json(path: str | os.PathLike[str], limit: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of at most ``limit`` bytes strictly.

    Raises:
        FileNotFoundError: If there is no such file.
        ConfigError: If the file is too large or ``parse_json`` refuses it.
    """
    try:
        with open(path, "rb") as file:
            return parse_json(file.read(limit + 1), str(path), limit)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())  # or a power cut may leave an empty file under the new name
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
