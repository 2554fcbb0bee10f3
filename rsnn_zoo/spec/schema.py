"""Checked reading of a JSON object: a getter returns a value within its bounds, or says what is wrong. Free of torch.

Example:
    >>> Section({"epochs": 3}, "run.json").integer("epochs", 1, 100)
    3
"""

import re
import reprlib
from typing import Any

from rsnn_zoo._utils.files import ConfigError
from rsnn_zoo.spec.names import near_matches

_REQUIRED: Any = object()
REMEDY = "; correct the file or fetch it again"


class Section:
    """A JSON object with its path, whose getters return a checked value or raise a ``ConfigError`` naming the key."""

    def __init__(self, content: Any, source: str, path: str = "") -> None:
        self.source, self.path, self.content = source, path, content
        if not isinstance(content, dict):
            raise ConfigError(f"{source}: {path.rstrip('.') or 'the file'} must be a JSON object{REMEDY}")

    def error(self, key: str, cause: str) -> ConfigError:
        """Return the error to raise about a key."""
        return ConfigError(f"{self.source}: {self.path}{key} {cause}{REMEDY}")

    def value(self, key: str, default: Any = _REQUIRED) -> Any:
        """Return whatever stands there; only a key with a default may be absent."""
        value = self.content.get(key, default)
        if value is _REQUIRED:
            raise self.error(key, f"is missing{near_matches(key, self.content)}")
        return value

    def section(self, key: str, optional: bool = False) -> "Section":
        """Return the JSON object that stands there."""
        return Section(self.value(key, {} if optional else _REQUIRED), self.source, f"{self.path}{key}.")

    def sections(self, key: str) -> "list[Section]":
        """Return the JSON objects of the list that stands there; none where the key is absent."""
        values = self.value(key, [])
        if not isinstance(values, list):
            raise self.error(key, "must be a list")
        return [Section(value, self.source, f"{self.path}{key}[{i}].") for i, value in enumerate(values)]

    def number(self, key: str, low: float, high: float, default: Any = _REQUIRED, kind: Any = (int, float)) -> Any:
        """Return a number from ``low`` to ``high``; ``True`` is none."""
        value = self.value(key, default)
        if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
            wanted = "an integer" if kind is int else "a number"
            raise self.error(key, f"is {reprlib.repr(value)}, must be {wanted} from {low:,} to {high:,}")
        return value

    def flag(self, key: str) -> bool:
        """True or false, and false where it is absent."""
        if not isinstance(found := self.value(key, False), bool):
            raise self.error(key, f"is {found!r:.100}, must be true or false")
        return found

    def integer(self, key: str, low: int, high: int) -> int:
        """Return an integer from ``low`` to ``high``."""
        return self.number(key, low, high, kind=int)

    def numbers(self, key: str, length: int, low: float, high: float) -> tuple[float, ...]:
        """Return ``length`` numbers from ``low`` to ``high``."""
        values = self.value(key)
        if not isinstance(values, list) or len(values) != length:
            raise self.error(key, f"must be a list of {length} numbers")
        return tuple(Section({key: v}, self.source, self.path).number(key, low, high) for v in values)

    def text(self, key: str, pattern: re.Pattern[str], default: Any = _REQUIRED) -> Any:
        """Return a string that matches the whole pattern, or the default."""
        value = self.value(key, default)
        if value is not default and not (isinstance(value, str) and pattern.fullmatch(value)):
            raise self.error(key, f"is {reprlib.repr(value)}, must match {pattern.pattern}")
        return value

    def one_of(self, key: str, known: tuple[str, ...], default: Any = _REQUIRED) -> Any:
        """Return one of the known strings, or the default."""
        value = self.value(key, default)
        if value is not default and value not in known:
            raise self.error(key, f"is {reprlib.repr(value)}{near_matches(str(value), known)}")
        return value
