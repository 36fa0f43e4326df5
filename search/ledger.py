"""The ledger: every evaluated program of a run, in an SQLite file that survives `kill -9`.

A batch is one transaction: it is in the ledger whole or not at all. What a repeated or resumed run must reproduce
(everything but timings) is summarised by `digest`.
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

from primitives import Program, parse_program, print_program
from search.cache import Verdict
from search.evolution import Candidate
from search.fitness import Fitness, Status

VERSION = 1
_SCHEMA = """
create table meta (name text primary key, value text not null) without rowid;
create table batches (
    number integer primary key, same_key integer not null, ignores_gradient integer not null,
    not_finite integer not null, same_behaviour integer not null, new integer not null,
    seconds real not null, finished_at real not null);
create table programs (
    number integer primary key, batch integer not null references batches (number), parent integer not null,
    mutations text not null, program text not null, key text not null, fingerprint text not null,
    status text not null, reason text not null, score real, lr real, edge integer not null, rungs text not null,
    statements integer not null, live integer not null, slots integer not null);
"""
_DETERMINISTIC = (
    "select number, batch, parent, mutations, program, key, fingerprint, status, reason, score, lr, edge, rungs "
    "from programs order by number",
    "select number, same_key, ignores_gradient, not_finite, same_behaviour, new from batches order by number",
)


class LedgerError(RuntimeError):
    """A ledger cannot be used; the message says why and what to do."""


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
    """An open ledger. Use `create` for a new run and `open` for an existing one; both hold a lock until `close`."""

    FILE = "ledger.sqlite"

    def __init__(self, connection: sqlite3.Connection, config: dict[str, Any], lock: IO[bytes] | None) -> None:
        self._db, self.config, self._lock = connection, config, lock

    @classmethod
    def create(cls, run_dir: Path, config: Mapping[str, Any]) -> Ledger:
        """Start a ledger in `run_dir`, which must not hold one; `config` (JSON) is kept in it."""
        path = run_dir / cls.FILE
        if path.exists():
            raise LedgerError(f"{path} already exists; resume that run or choose another run directory")
        lock = _lock(run_dir)
        # made under another name, so that a ledger which exists is complete
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        db = _connect(draft)
        db.execute("pragma journal_mode = wal")  # a commit is one append, and readers do not disturb the run
        db.executescript(_SCHEMA)
        with db:
            db.execute("insert into meta values ('version', ?)", (str(VERSION),))
            db.execute("insert into meta values ('config', ?)", (json.dumps(config, sort_keys=True),))
        db.close()
        draft.rename(path)
        return cls(_connect(path), dict(config), lock)

    @classmethod
    def open(cls, run_dir: Path, *, read_only: bool = False) -> Ledger:
        """Open the ledger in `run_dir`; raises `LedgerError` if there is none, or it is unreadable or in use."""
        path = run_dir / cls.FILE
        if not path.exists():
            raise LedgerError(f"{run_dir} holds no search run (there is no {cls.FILE} in it)")
        ledger = cls(_connect(path, read_only), {}, None if read_only else _lock(run_dir))
        try:
            meta = dict(ledger._db.execute("select name, value from meta"))
            if meta.get("version") != str(VERSION):
                raise LedgerError(f"{path} has version {meta.get('version')}; this program reads version {VERSION}")
            ledger.config = json.loads(meta["config"])
            return ledger
        except (sqlite3.DatabaseError, KeyError, ValueError) as error:
            ledger.close()
            raise LedgerError(f"{path} is not a readable ledger: {error}") from None
        except LedgerError:
            ledger.close()
            raise

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
        """Write one finished batch, atomically. Batches follow each other without gaps."""
        row = (batch, *(counts[v] for v in Verdict), seconds, now)
        with self._db:
            self._db.execute(
                "insert into batches (number, same_key, ignores_gradient, not_finite, same_behaviour, new, seconds,"
                " finished_at) values (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            self._db.executemany(
                "insert into programs values (" + ", ".join("?" * 16) + ")",
                [_row(batch, c, f) for c, f in zip(candidates, fitnesses, strict=True)],
            )

    def __iter__(self) -> Iterator[Record]:
        """All evaluated programs in order of their numbers."""
        columns = "number, batch, parent, mutations, program, key, fingerprint, status, reason, score, lr, edge, rungs"
        for row in self._db.execute(f"select {columns} from programs order by number"):
            rungs = tuple(math.inf if r is None else r for r in json.loads(row[12]))
            score = math.inf if row[9] is None else row[9]
            lr = math.nan if row[10] is None else row[10]
            fitness = Fitness(score, Status(row[7]), row[8], lr, rungs, bool(row[11]))
            mutations = tuple(row[3].split(","))
            yield Record(row[0], row[1], row[2], mutations, parse_program(row[4]), row[5], row[6], fitness)

    def counts(self) -> Counter[Verdict]:
        """Programs generated in the whole run, by verdict."""
        columns = ", ".join(f"total({v.value})" for v in Verdict)
        totals = self._db.execute(f"select {columns} from batches").fetchone()
        return Counter({v: int(n) for v, n in zip(Verdict, totals, strict=True)})

    def seconds(self) -> float:
        """Time spent evaluating, summed over batches, in seconds."""
        return float(self._db.execute("select total(seconds) from batches").fetchone()[0])

    def digest(self) -> str:
        """SHA-256 over everything that a repeated or resumed run must reproduce; timings are left out."""
        sha = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for query in _DETERMINISTIC:
            for row in self._db.execute(query):
                sha.update(repr(row).encode())
        return sha.hexdigest()


def _connect(path: Path, read_only: bool = False) -> sqlite3.Connection:
    if read_only:
        return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
    return sqlite3.connect(path, isolation_level="IMMEDIATE")


def _lock(run_dir: Path) -> IO[bytes]:
    """Hold the run directory until the returned file is closed or the process ends, however it ends."""
    file = (run_dir / "lock").open("ab")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # no such locks on this system: two processes then meet in SQLite's own lock
        pass
    except OSError:
        file.close()
        raise LedgerError(
            f"{run_dir} is in use by another process; wait for it or choose another run directory"
        ) from None
    return file


def _row(batch: int, candidate: Candidate, fitness: Fitness) -> tuple[Any, ...]:
    number, parent, mutations, program, identity = candidate
    return (
        number, batch, parent, ",".join(mutations), print_program(program), identity.key, identity.fingerprint,
        fitness.status.value, fitness.reason, _finite(fitness.score), _finite(fitness.lr), int(fitness.edge),
        json.dumps([_finite(r) for r in fitness.rungs]), len(program.body), len(program.live.instructions),
        len(program.live_state),
    )  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
