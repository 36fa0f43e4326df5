"""The ledger: every evaluated program of a run, in an SQLite file that survives `kill -9`.

A batch is one transaction: it is in the ledger whole or not at all. What a repeated or resumed run must reproduce
(everything but timings) is summarised by `digest`. Each batch has a checksum, so that damage is noticed even where
SQLite would read on; `Ledger.open` then keeps the batches before it, from which the run goes on to the same end.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from optforge.primitives import Program, parse_program, print_program
from optforge.search.duplicates.cache import Verdict
from optforge.search.evolution.evolution import Candidate
from optforge.search.fitness.evaluator import Fitness, Part, Status
from optforge.search.ledger_file import (
    BATCH,
    PROGRAM,
    LedgerError,
    attach,
    checksum,
    connect,
    insert,
    lock_directory,
    write,
)


class Record(NamedTuple):
    """One evaluated program as the ledger holds it."""

    number: int
    batch: int
    parent: int
    mutations: tuple[str, ...]
    program: Program
    key: str
    fingerprint: str
    fitness: Fitness


class Ledger:
    """An open ledger. Use `create` for a new run and `open` for an existing one; both hold a lock until `close`.

    Attributes:
        config: what was given to `create`.
        notice: a sentence about damage that was mended in opening; empty otherwise.
    """

    FILE = "ledger.sqlite"

    def __init__(self, path: Path, db: sqlite3.Connection, config: Mapping[str, Any], lock: IO[bytes] | None) -> None:
        self._path, self._db, self.config, self._lock = path, db, dict(config), lock
        self.notice = ""

    @classmethod
    def create(cls, run_dir: Path, config: Mapping[str, Any]) -> Ledger:
        """Start a ledger in `run_dir`, which must not hold one; `config` (JSON) is kept in it.

        Raises:
            LedgerError: if there is one, the directory is in use, or it cannot be written.
        """
        path = run_dir / cls.FILE
        if not path.exists():
            lock = lock_directory(run_dir)
            if not path.exists():  # another process may have been quicker
                try:
                    write(path, config, (), ())
                    return cls(path, connect(path), config, lock)
                except (sqlite3.DatabaseError, OSError) as error:
                    lock.close()
                    raise LedgerError(f"{path} cannot be written: {error}") from None
            lock.close()
        raise LedgerError(f"{path} already exists; resume that run or choose another run directory")

    @classmethod
    def open(cls, run_dir: Path, *, read_only: bool = False) -> Ledger:
        """Open the ledger in `run_dir`; one that is damaged is replaced by what is sound, unless `read_only`.

        Raises:
            LedgerError: if there is none, it is in use, or not even its beginning can be read.
        """
        path = run_dir / cls.FILE
        if not path.exists():
            raise LedgerError(f"{run_dir} holds no search run (there is no {cls.FILE} in it)")
        lock = None if read_only else lock_directory(run_dir)
        try:
            db, config, notice = attach(path, read_only)
        except (sqlite3.DatabaseError, OSError, KeyError, ValueError, LedgerError) as error:
            if lock is not None:
                lock.close()
            if isinstance(error, LedgerError):
                raise
            hint = "--resume saves what can be saved" if read_only else "nothing can be saved, so begin a new run"
            raise LedgerError(f"{path} is not a readable ledger: {error}; {hint}") from None
        ledger = cls(path, db, config, lock)
        ledger.notice = notice
        return ledger

    def close(self) -> None:
        """Release the file and the run directory."""
        self._db.close()
        if self._lock is not None:
            self._lock.close()

    def append(
        self,
        batch: int,
        candidates: Sequence[Candidate],
        fitnesses: Sequence[Fitness],
        counts: Counter[Verdict],
        seconds: float,
        now: float,
    ) -> None:
        """Write one finished batch, atomically. Batches follow each other without gaps.

        Raises:
            LedgerError: if the file cannot be written; it is then as it was before.
        """
        programs = [_row(batch, c, f) for c, f in zip(candidates, fitnesses, strict=True)]
        row = (batch, programs[0][0], len(programs), *(counts[v] for v in Verdict))
        try:
            with self._db:
                insert(self._db, "batches", [(*row, checksum(row, programs), seconds, now)])
                insert(self._db, "programs", programs)
        except sqlite3.IntegrityError:
            raise  # a mistake of the caller
        except sqlite3.DatabaseError as error:
            raise LedgerError(
                f"{self._path} cannot be written: {error}; what is in it is kept, and --resume goes on from there"
            ) from None

    def __iter__(self) -> Iterator[Record]:
        """All evaluated programs in order of their numbers."""
        for row in self._query(f"select {PROGRAM} from programs order by number"):
            score = math.inf if row[9] is None else row[9]
            parts = tuple(Part(task, x, _rate(lr), _losses(rungs)) for task, x, lr, rungs in json.loads(row[13]))
            rungs = _losses(json.loads(row[12]))
            fitness = Fitness(score, Status[row[7].upper()], row[8], _rate(row[10]), rungs, bool(row[11]), parts=parts)
            mutations = tuple(row[3].split(","))
            yield Record(row[0], row[1], row[2], mutations, parse_program(row[4]), row[5], row[6], fitness)

    def counts(self) -> Counter[Verdict]:
        """Programs generated in the whole run, by verdict."""
        columns = ", ".join(f"total({v.value})" for v in Verdict)
        (totals,) = self._query(f"select {columns} from batches")
        return Counter({v: int(n) for v, n in zip(Verdict, totals, strict=True)})

    def seconds(self) -> float:
        """Time from handing a batch out to its result, waiting included, summed over batches that overlap."""
        ((total,),) = self._query("select total(seconds) from batches")
        return float(total)

    def digest(self) -> str:
        """SHA-256 over everything that a repeated or resumed run must reproduce; timings are left out."""
        sha = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for columns, table in ((PROGRAM, "programs"), (BATCH, "batches")):
            for row in self._query(f"select {columns} from {table} order by number"):
                sha.update(repr(row).encode())
        return sha.hexdigest()

    def _query(self, sql: str) -> Iterator[Any]:
        try:
            yield from self._db.execute(sql)
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{self._path} is damaged: {error}; --resume saves what can be saved") from None


def _row(batch: int, candidate: Candidate, fitness: Fitness) -> tuple[Any, ...]:
    number, parent, mutations, program, identity = candidate
    return (
        number, batch, parent, ",".join(mutations), print_program(program), identity.key, identity.fingerprint,
        fitness.status.name.lower(), fitness.reason, _finite(fitness.score), _finite(fitness.lr), int(fitness.edge),
        json.dumps([_finite(r) for r in fitness.rungs]),
        json.dumps([(p.task, p.score, _finite(p.lr), [_finite(r) for r in p.rungs]) for p in fitness.parts]),
        len(program.body), len(program.live.instructions), len(program.live_state),
    )  # fmt: skip


def _losses(stored: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.inf if x is None else x for x in stored)


def _rate(stored: float | None) -> float:
    return math.nan if stored is None else stored


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
