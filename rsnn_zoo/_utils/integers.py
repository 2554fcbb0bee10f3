"""Integers that users hand over."""

import operator
from typing import SupportsIndex

__all__ = ["checked_integer"]


def checked_integer(name: str, value: SupportsIndex, least: int) -> int:
    """Returns an integer, NumPy's too, as int.

    Args:
        name: Of the argument, for the error message.
        value: What was handed over.
        least: Below which it is refused.

    Raises:
        TypeError: If it is none; ``True`` is none.
        ValueError: If it is below ``least``.

    Example:
        >>> checked_integer("timesteps", 4, 1)
        4
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must {'not be negative' if least == 0 else f'be at least {least}'}, got {value}")
    return number
