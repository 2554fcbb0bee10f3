"""Verdicts of an evaluation while it runs: on disk after every batch, and merged among processes.

A sample has one verdict under each job (an attack at a radius); which process found it, and when, makes no difference.
More jobs and more samples may come later.
"""

from __future__ import annotations

import hashlib
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

from rsnn_zoo._utils.files import printable
from rsnn_zoo.models.distributed import Ranks

__all__ = ["Ledger"]

_log = logging.getLogger(__name__)

_CHECK = "sha256 TEXT"
_TABLES = {
    "about": f"CREATE TABLE about (id INTEGER PRIMARY KEY, fingerprint TEXT, {_CHECK})",
    "sessions": f"CREATE TABLE sessions (environment TEXT UNIQUE, {_CHECK})",
    "images": f"CREATE TABLE images (sample INTEGER PRIMARY KEY, image TEXT, {_CHECK})",
    "made": f"CREATE TABLE made (name TEXT PRIMARY KEY, value TEXT, {_CHECK})",
    "batches": f"CREATE TABLE batches (job TEXT, seconds REAL, {_CHECK})",
    "samples": f"CREATE TABLE samples (job TEXT, sample INT, verdict INT, image BLOB, {_CHECK}, "
    "PRIMARY KEY (job, sample))",
}
"""Each record holds the SHA-256 of its values and its table: a database notices a damaged page, not a wrong value."""


def _checksum(table: str, values: Sequence[Any]) -> str:
    found = hashlib.sha256(table.encode())
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode()
        found.update(f" {type(value).__name__} {len(data)} ".encode() + data)
    return found.hexdigest()


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
        ValueError: If the file is of another evaluation, damaged, or no such file; methods raise it too.
        OSError: If there can be no file of that name, or it cannot be written, as on a full disk; methods raise it too.

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
        self._path = path
        self._own: dict[str, set[int]] = {}  # samples that this process answers for, by job
        self._seconds: dict[str, float] = {}
        resumed = path is not None and os.path.exists(path)
        try:
            if path is not None:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path or ":memory:", timeout=600, isolation_level=None)
        except (OSError, ValueError, sqlite3.OperationalError) as error:  # of a zero byte in its name, the second
            raise OSError(
                f"the state of the evaluation cannot be kept in {printable(path)} ({error}): name a file that can be "
                "written"
            ) from None
        try:
            self._open(json.dumps(fingerprint), json.dumps(environment or {}), images or {})
        except BaseException:
            self._database.close()
            raise
        if resumed and self.ranks.main:
            _log.info("resuming from %s", path)
        # gloo, since verdicts are on the CPU; and one process may be hours ahead of another
        several = self.ranks.size > 1
        self._group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=30)) if several else None

    def _open(self, fingerprint: str, environment: str, images: Mapping[int, str]) -> None:
        with self._transaction():
            self._check_tables()
            about = self._rows("about", "1")
            if not about:
                self._insert("about", 0, fingerprint)
            others = dict(self._rows("images", "1"))
            if about not in ([], [(0, fingerprint)]) or any(others.get(key, one) != one for key, one in images.items()):
                raise ValueError(
                    f"{self._path} holds the state of another evaluation (model, data or settings differ): delete it, "
                    "or name another file"
                )
            known = [row[0] for row in self._rows("sessions", "1")]
            if environment not in known:
                self._insert("sessions", environment)
            for row in images.items():
                if row[0] not in others:
                    self._insert("images", *row)
            for table in ("made", "batches", "samples"):  # what is damaged is found before hours are spent
                for _ in self._checked(table, "1"):
                    pass
        self.sessions = [self._parsed(row) for row in known if row != environment]

    def _check_tables(self) -> None:
        """Makes the tables in a new file; refuses one that holds others, or what acts when it is read.

        Raises:
            ValueError: If it does.
        """
        self._run("PRAGMA trusted_schema = OFF")
        found = dict(self._run("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
        if not found:
            for table in _TABLES.values():
                self._run(table)
        elif found != _TABLES:
            raise self._damaged("its tables are of another version, or of something else")

    def _damaged(self, cause: object) -> ValueError:
        return ValueError(
            f"{self._path} is damaged, or no state of an evaluation ({cause}): delete it, or name another file"
        )

    def _parsed(self, text: str) -> Any:
        try:
            return json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise self._damaged(error) from None

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
        rows = self._rows("made", "name = ?", name)
        known = [value for value in self._gather(rows[0][1] if rows else None) if value is not None]
        started = time.perf_counter()
        value = known[0] if known else self._gather(json.dumps(make()) if self.ranks.main else None)[0]
        with self._transaction():
            self._insert("made", name, value, or_="IGNORE")
            if self.ranks.main and not known:
                self._insert("batches", name, time.perf_counter() - started)
        return self._parsed(value), self._gather(self._spent(name))[0]

    def begin(self, job: str) -> dict[int, int]:
        """The verdicts by sample that any process knows already."""
        parts = self._gather(self._verdicts(job))
        self._own[job] = set(parts[self.ranks.rank]).difference(*parts[: self.ranks.rank])
        self._seconds[job] = self._spent(job) if self.ranks.main else 0.0
        return _union(parts)

    def share(self, samples: Sequence[int]) -> Sequence[int]:
        """Return this process's share of samples to judge."""
        return samples[self.ranks.rank :: self.ranks.size]

    def add(self, job: str, rows: Sequence[tuple[int, int, bytes | None]], seconds: float) -> None:
        """Writes (sample, verdict, image) of a batch down, and what it took."""
        with self._transaction():
            for row in rows:
                self._insert("samples", job, *row, or_="REPLACE")
            self._insert("batches", job, seconds)
        self._own[job].update(row[0] for row in rows)
        self._seconds[job] += seconds

    def merged(self, job: str) -> tuple[dict[int, int], float]:
        """The verdicts by sample of all processes, and the seconds that they took together."""
        own = {sample: verdict for sample, verdict in self._verdicts(job).items() if sample in self._own[job]}
        parts, seconds = zip(*self._gather((own, self._seconds[job])), strict=True)
        return _union(parts), sum(seconds)

    def images(self, job: str) -> dict[int, bytes]:
        """The images that were kept, by sample, of all processes."""
        rows = self._checked("samples", "job = ? AND image IS NOT NULL", job)
        return _union(self._gather({sample: image for _, sample, _, image in rows if sample in self._own[job]}))

    def _verdicts(self, job: str) -> dict[int, int]:
        return {sample: verdict for _, sample, verdict, _ in self._checked("samples", "job = ?", job)}

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

    def _insert(self, table: str, *values: Any, or_: str = "ABORT") -> None:
        places = ", ".join("?" * (len(values) + 1))
        self._run(f"INSERT OR {or_} INTO {table} VALUES ({places})", *values, _checksum(table, values))

    def _rows(self, table: str, where: str, *values: Any) -> list[tuple[Any, ...]]:
        return list(self._checked(table, where, *values))

    def _checked(self, table: str, where: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """The records of a table, each once it is seen to be what was written.

        Raises:
            ValueError: If one is not.
        """
        with self._explained():
            for *row, found in self._database.execute(f"SELECT * FROM {table} WHERE {where}", values):
                if found != _checksum(table, row):
                    raise self._damaged(f"a record of {table} is not what was written")
                yield tuple(row)

    def _run(self, command: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._explained():
            return self._database.execute(command, values).fetchall()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns the errors of the database into documented ones."""
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.InternalError) as error:  # locked, full: it may well be a good one
            raise OSError(
                f"the state of the evaluation cannot be kept in {self._path} ({error}): free disk or lock and go "
                "on, or name another file"
            ) from None
        except (sqlite3.Error, UnicodeError, OverflowError) as error:
            raise self._damaged(error) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._run("BEGIN IMMEDIATE")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # else the database has rolled it back
                self._run("ROLLBACK")
            raise


def _union(parts: Sequence[dict[int, Any]]) -> dict[int, Any]:
    return {sample: value for part in parts for sample, value in part.items()}
