"""Fields of tables that know their bounds, and dataclasses that hold to them.

Example:
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Pair(Checked):
    ...     share: float = number(0.5, 0.0, 1.0)
    >>> Pair(share=2)
    Traceback (most recent call last):
    rsnn_zoo.training.bounded.RecipeError: share is 2, must be a number from 0 to 1
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field, fields
from typing import Any

from rsnn_zoo.spec.names import near_matches

__all__ = ["Checked", "RecipeError", "number", "one_of"]


class RecipeError(ValueError):
    """A recipe that cannot be used; names file, key, cause and remedy."""


def number(default: float, low: float, high: float) -> Any:
    """A field from low to high; of integers where the default is one."""
    return field(default=default, metadata={"low": low, "high": high})


def one_of(default: str, known: Iterable[str]) -> Any:
    """A field of one of the names known."""
    return field(default=default, metadata={"known": known})


class Checked:
    """A frozen dataclass whose values are checked against their fields' bounds."""

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            RecipeError: If one is out of its bounds, or of another type than its default.
        """
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(item.default, str) and not isinstance(value, str):
                raise RecipeError(f"{item.name} is {value!r}, must be a string")
            if "known" in item.metadata and value not in item.metadata["known"]:
                raise RecipeError(f"{item.name} is {value!r}{near_matches(value, item.metadata['known'])}")
            if "low" in item.metadata:
                low, high, whole = item.metadata["low"], item.metadata["high"], isinstance(item.default, int)
                kinds = (int,) if whole else (int, float)
                if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                    wanted = "an integer" if whole else "a number"
                    raise RecipeError(f"{item.name} is {value!r}, must be {wanted} from {low:g} to {high:g}")
            elif isinstance(item.default, bool) and not isinstance(value, bool):
                raise RecipeError(f"{item.name} is {value!r}, must be true or false")
