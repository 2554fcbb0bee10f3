"""A process that knows nothing of an evaluation: it branches off before the model is asked anything.

Whatever a model keeps of what it was asked, in itself, in a place that its copies share or in the interpreter, it keeps
in a process. Another one, that was the same until the first question, has nothing of it; and it may ask the model
itself where the evaluation, which is to leave the model as it is, asks copies.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor

__all__ = ["Witness"]

_log = logging.getLogger(__name__)

ANSWERS_WITHIN = 30.0
"""Seconds that an answer may take, beside ``TIMES_AS_LONG`` times as long as it took here: a fork may hang on a lock
that a thread of its parent held, and has one thread where the parent may have many."""
TIMES_AS_LONG = 20.0


class Witness:
    """A fork of this process, asleep until it is asked.

    Args:
        answer: Of images (B, C, H, W) on a CPU, their logits (B, K): called in the fork, with one thread, and with
            nothing compiled, since threads of a compiled kernel do not survive a fork.

    Example:
        >>> seen = []
        >>> def model(x):
        ...     seen.append(x)
        ...     return torch.full((len(x), 2), float(len(seen)))
        >>> witness = Witness(model)
        >>> _ = model(torch.zeros(1, 1)), model(torch.zeros(1, 1))
        >>> witness.logits(torch.zeros(1, 1), took=0.0)
        tensor([[1., 1.]], dtype=torch.float64)
        >>> witness.dismiss()
    """

    def __init__(self, answer: Callable[[Tensor], Tensor]):
        fork = multiprocessing.get_context("fork")
        here, there = fork.Pipe()
        process = fork.Process(target=_testify, args=(answer, there, here), daemon=True)
        with warnings.catch_warnings():  # Python warns that threads do not come along; the fork uses none of them
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        there.close()
        self._connection, self._process = here, process
        self.dismiss = weakref.finalize(self, _dismiss, process, here, os.getpid())
        """Ends the fork; nobody need call it."""

    @staticmethod
    def possible(device: torch.device) -> bool:
        """Whether there can be one: no GPU's memory comes along, daemons may have no child, few systems bear a fork."""
        return sys.platform == "linux" and device.type == "cpu" and not multiprocessing.current_process().daemon

    def logits(self, x: Tensor, took: float) -> Tensor | None:
        """Logits that it gives, in float64; None where it has none, as it broke off or needs far longer than the asker.

        Args:
            x: (B, C, H, W).
            took: Seconds that the same question took here.

        Raises:
            RuntimeError: If the model fails there, or ends the process.
        """
        if not self.dismiss.alive:
            return None
        try:
            # a pipe holds little, so who never listens would hold up who sends
            threading.Thread(target=_send, args=(self._connection, x.detach().numpy()), daemon=True).start()
            if self._connection.poll(ANSWERS_WITHIN + TIMES_AS_LONG * took):
                said = self._connection.recv()
                if isinstance(said, str):
                    raise RuntimeError(said)
                return torch.from_numpy(said)
            _log.warning("a fork of this process does not answer: whether the model remembers is seen by copies alone")
        except (OSError, EOFError):
            self._process.join(ANSWERS_WITHIN)
            if (self._process.exitcode or 0) >= 0:  # by itself, and not killed as where memory ends
                raise RuntimeError("the model ends the process that it is in") from None
            _log.warning("a fork of this process has died: whether the model remembers is seen by copies alone")
        self.dismiss()
        return None


def _testify(answer: Callable[[Tensor], Tensor], connection: Connection, of_parent: Connection) -> None:
    """The fork's life."""
    of_parent.close()  # else it would not see the parent die
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who stops the parent has stopped this
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the parent does of it
    os.environ["RSNN_ZOO_COMPILE"] = "0"
    torch.compiler.set_stance("force_eager")
    torch.set_num_threads(1)
    while (asked := _received(connection)) is not None:
        try:
            with torch.no_grad():
                said: Any = answer(torch.from_numpy(asked)).double().numpy()
        except Exception as error:  # of the model, in whatever way
            said = f"{type(error).__name__}: {error}"
        connection.send(said)


def _received(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (OSError, EOFError):
        return None


def _send(connection: Connection, asked: Any) -> None:
    with suppress(OSError):  # nobody listens any more, which who waits for the answer finds too
        connection.send(asked)


def _dismiss(process: BaseProcess, connection: Connection, owner: int) -> None:
    if os.getpid() == owner:  # other forks of the owner end too, with what they have of this
        process.kill()
        process.join()
    connection.close()
