"""What the command line prints, and how a command says that it failed."""

from __future__ import annotations

import os
import sys

from rsnn_zoo.hub.resolve import NotPublishedError

__all__ = ["ERRORS", "CommandFailed", "Outcome", "complain", "enough", "say"]

Outcome = tuple[str, object, int]
"""What a command prints, what --json prints in its place, and the exit status."""


class CommandFailed(Exception):
    """Ends a command with status 1 and one line on stderr."""


# what the library raises where something outside it is wrong; any other exception is a fault of ours, with its trace
ERRORS = (CommandFailed, NotPublishedError, OSError, ValueError, ArithmeticError, ImportError)


def say(text: str, *, error: bool = False) -> None:
    """Print a line or a table at once, for whoever waits for the rest."""
    if text:
        print(text, file=sys.stderr if error else sys.stdout, flush=True)


def complain(about: str, error: Exception) -> int:
    """Say in one line on stderr what went wrong; give the exit status."""
    say(f"rsnn-zoo: {about}: {' '.join(str(error).split())}", error=True)
    return 1


def enough() -> None:
    """Let the rest of the output go nowhere: ``rsnn-zoo list | head`` has seen enough."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
