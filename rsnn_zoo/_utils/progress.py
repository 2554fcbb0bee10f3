"""A progress bar on a terminal; in a file, a line now and then."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from tqdm import tqdm

__all__ = ["bar"]

EVERY = 60.0
"""Seconds between two lines in a file, where each refresh of a bar would be one."""


class _Bar(tqdm):
    """A bar whose lock is of its process alone: tqdm's is shared with forks, lost to all if its holder is killed."""


def _new_lock() -> None:
    _Bar.set_lock(threading.RLock())


_new_lock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_lock)


class _Lines(_Bar):
    """Writes whole lines: the first as soon as there is something to say, the last at the end."""

    _told: float = 0.0
    _began: bool = False

    def __init__(self, *args: Any, **kwargs: Any):
        self._told = time.monotonic()
        super().__init__(*args, **{"mininterval": EVERY / 10, **kwargs})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        now = time.monotonic()
        first = bool(self.postfix) and not self._began
        if now - self._told < EVERY and not first:
            return False
        self._told, self._began = now, self._began or first
        self.fp.write(f"{msg or self}\n")
        self.fp.flush()
        return True

    def close(self) -> None:
        if not self.disable:
            self.leave = False  # else an empty line would follow
            self._told = -EVERY
            self.display()
        self.disable = True


def bar(*args: Any, **kwargs: Any) -> tqdm:
    """A tqdm bar on standard error; in a file, lines at the beginning, at the end, and each minute.

    Example:
        >>> for _ in bar(range(3), disable=True):
        ...     pass
    """
    return (_Bar if sys.stderr.isatty() else _Lines)(*args, **kwargs)
