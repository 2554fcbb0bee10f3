"""Verdicts of an evaluation while it runs: on disk after every batch, and merged among processes.

A sample has one verdict under each job (an attack at a radius); which process found it, and when, makes no difference.
More jobs and more samples may come later.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from rsnn_zoo.models.distributed import Ranks

__all__ = ["Ledger"]

_log = logging.getLogger(__name__)

_TABLES = (
    "CREATE TABLE IF NOT EXISTS about (id INTEGER PRIMARY KEY, fingerprint TEXT)",
    "CREATE TABLE IF NOT EXISTS sessions (environment TEXT UNIQUE)",
    "CREATE TABLE IF NOT EXISTS images (sample INTEGER PRIMARY KEY, sha256 TEXT)",
    "CREATE TABLE IF NOT EXISTS made (name TEXT PRIMARY KEY, value TEXT)",
    "CREATE TABLE IF NOT EXISTS batches (job TEXT, seconds REAL)",
    "CREATE TABLE IF NOT EXISTS samples (job TEXT, sample INT, verdict INT, image BLOB, PRIMARY KEY (job, sample))",
)


class Ledger:
    """A ledger of verdicts; every process of an evaluation opens it and makes the same calls in the same order.

    Args:
        path: SQLite file on a local disk; one for all processes of a machine; a missing folder is made. None keeps the
            verdicts in memory.
        fingerprint: What the verdicts depend on, as JSON.
        environment: What this evaluation runs on, as JSON.
        images: SHA-256 of each sample; the file may be of others, but of no sample with another one.

    Attributes:
        sessions: Other environments that earlier verdicts in the file were found in.

    Raises:
        ValueError: If the file is of another evaluation, or no such file.
        OSError: If there can be no file of that name.

    Example:
        >>> ledger = Ledger(None, {"seed": 0})
        >>> ledger.begin("pgd20")
        {}
        >>> ledger.add("pgd20", [(7, -1, None)], seconds=0.5)
        >>> ledger.merged("pgd20")
        ({7: -1}, 0.5)
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        fingerprint: dict[str, Any],
        environment: dict[str, Any] | None = None,
        images: Mapping[int, str] | None = None,
    ):
        self.ranks = Ranks.current()
        self._own: dict[str, set[int]] = {}  # samples that this process answers for, by job
        self._seconds: dict[str, float] = {}
        resumed = path is not None and os.path.exists(path)
        try:
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path or ":memory:", timeout=600, isolation_level=None)
        except (OSError, sqlite3.OperationalError) as error:
            raise OSError(
                f"the state of the evaluation cannot be kept in {path} ({error}): name a file that can be written"
            ) from None
        try:
            self._open(json.dumps(fingerprint), json.dumps(environment or {}), images or {}, path)
        except BaseException:
            self._database.close()
            raise
        if resumed and self.ranks.main:
            _log.info("resuming from %s", path)
        # gloo, since verdicts are on the CPU; and one process may be hours ahead of another
        several = self.ranks.size > 1
        self._group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=30)) if several else None

    def _open(
        self, fingerprint: str, environment: str, images: Mapping[int, str], path: str | os.PathLike[str] | None
    ) -> None:
        try:
            with self._transaction():
                for table in _TABLES:
                    self._run(table)
                self._run("INSERT OR IGNORE INTO about VALUES (0, ?)", fingerprint)
                ((found,),) = self._run("SELECT fingerprint FROM about")
                others = dict(self._run("SELECT sample, sha256 FROM images"))
                same = found == fingerprint and all(others.get(key, value) == value for key, value in images.items())
                if same:
                    self._run("INSERT OR IGNORE INTO sessions VALUES (?)", environment)
                    new = [row for row in images.items() if row[0] not in others]
                    self._database.executemany("INSERT INTO images VALUES (?, ?)", new)
                known = self._run("SELECT environment FROM sessions WHERE environment != ?", environment)
                self.sessions = [json.loads(row[0]) for row in known]
        except sqlite3.OperationalError as error:  # locked, or read-only: it may well be a good one
            raise OSError(f"the state of the evaluation cannot be kept in {path} ({error})") from None
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{path} is no state of an evaluation ({error}): delete it, or name another file"
            ) from None
        if not same:
            raise ValueError(
                f"{path} holds the state of another evaluation (model, data or settings differ): delete it, or name "
                "another file"
            )

    def close(self) -> None:
        """Closes the file and leaves the other processes."""
        self._database.close()
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def made(self, name: str, make: Callable[[], Any]) -> tuple[Any, float]:
        """What is made once, as JSON, the same for all processes and whenever the evaluation goes on; and its seconds.

        Args:
            name: What it is kept under.
            make: Makes it where it is not there yet; called in the main process alone.
        """
        rows = self._run("SELECT value FROM made WHERE name = ?", name)
        known = [value for value in self._gather(rows[0][0] if rows else None) if value is not None]
        started = time.perf_counter()
        value = known[0] if known else self._gather(json.dumps(make()) if self.ranks.main else None)[0]
        with self._transaction():
            self._run("INSERT OR IGNORE INTO made VALUES (?, ?)", name, value)
            if self.ranks.main and not known:
                self._run("INSERT INTO batches VALUES (?, ?)", name, time.perf_counter() - started)
        return json.loads(value), self._gather(self._spent(name))[0]

    def begin(self, job: str) -> dict[int, int]:
        """The verdicts by sample that any process knows already."""
        parts = self._gather(self._verdicts(job))
        self._own[job] = set(parts[self.ranks.rank]).difference(*parts[: self.ranks.rank])
        self._seconds[job] = self._spent(job) if self.ranks.main else 0.0
        return _union(parts)

    def share(self, samples: Sequence[int]) -> Sequence[int]:
        """This process's share of samples to judge."""
        return samples[self.ranks.rank :: self.ranks.size]

    def add(self, job: str, rows: Sequence[tuple[int, int, bytes | None]], seconds: float) -> None:
        """Writes (sample, verdict, image) of a batch down, and what it took."""
        with self._transaction():
            for row in rows:
                self._run("INSERT OR REPLACE INTO samples VALUES (?, ?, ?, ?)", job, *row)
            self._run("INSERT INTO batches VALUES (?, ?)", job, seconds)
        self._own[job].update(row[0] for row in rows)
        self._seconds[job] += seconds

    def merged(self, job: str) -> tuple[dict[int, int], float]:
        """The verdicts by sample of all processes, and the seconds that they took together."""
        own = {sample: verdict for sample, verdict in self._verdicts(job).items() if sample in self._own[job]}
        parts, seconds = zip(*self._gather((own, self._seconds[job])), strict=True)
        return _union(parts), sum(seconds)

    def images(self, job: str) -> dict[int, bytes]:
        """The images that were kept, by sample, of all processes."""
        rows = self._run("SELECT sample, image FROM samples WHERE job = ? AND image IS NOT NULL", job)
        return _union(self._gather({sample: image for sample, image in rows if sample in self._own[job]}))

    def _verdicts(self, job: str) -> dict[int, int]:
        return dict(self._run("SELECT sample, verdict FROM samples WHERE job = ?", job))

    def _spent(self, job: str) -> float:
        """Seconds so far, of all processes that write to this file."""
        return self._run("SELECT total(seconds) FROM batches WHERE job = ?", job)[0][0]

    def _gather(self, own: Any) -> list[Any]:
        """What each process passed, in the order of ranks."""
        if self._group is None:
            return [own]
        parts = [None] * self.ranks.size
        dist.all_gather_object(parts, own, self._group)
        return parts

    def _run(self, command: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._database.execute(command, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._run("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._run("ROLLBACK")
            raise
        self._run("COMMIT")


def _union(parts: Sequence[dict[int, Any]]) -> dict[int, Any]:
    return {sample: value for part in parts for sample, value in part.items()}
