"""The ledger: every evaluated program of a run, as tables in its store.

A batch is one transaction: it is in the ledger whole or not at all. What a repeated or resumed run must reproduce
(everything but timings) is summarised by `digest`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from filelock import FileLock
from sqlalchemy import Table, func, insert, select
from sqlalchemy.exc import IntegrityError

from optforge.primitives import Program, parse_program
from optforge.search.duplicates.cache import Verdict
from optforge.search.evolution.evolution import Candidate
from optforge.search.fitness.evaluator import Fitness, Status
from optforge.search.ledger_tables import BATCHES, PROGRAMS, REPEATS, finite, fitness_of, program_row, rate_of, score_of
from optforge.search.training.store import META, STORE_FILE, Identity, Store, StoreError, by_name, lock

_TIMINGS = ("seconds", "finished_at")  # the other columns are what a repeated run reproduces


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


class Summary(NamedTuple):
    """One evaluated program without what takes time to read.

    Attributes:
        number: of the program.
        parent: number of its parent.
        mutations: names of what made it of its parent.
        text: the program, not parsed.
        score: infinite where training failed.
        lr: learning rate of that score; NaN where there is none.
        status: how training ended.
        statements: number of statements, dead ones included.
        live: number of live statements.
        slots: number of live pieces of state.
    """

    number: int
    parent: int
    mutations: tuple[str, ...]
    text: str
    score: float
    lr: float
    status: Status
    statements: int
    live: int
    slots: int

    @property
    def program(self) -> Program:
        """The live part of the program."""
        return parse_program(self.text).pruned()


class Ledger:
    """An open ledger. Use `create` for a new run and `open` for an existing one; both hold a lock until `close`.

    Attributes:
        config: what was given to `create`.
        store: the store that the ledger is a part of.
    """

    FILE = STORE_FILE

    def __init__(self, store: Store, config: Mapping[str, Any], held: FileLock | None) -> None:
        self.store, self.config, self._held = store, dict(config), held

    @classmethod
    def create(cls, run_dir: Path, config: Mapping[str, Any], identity: Identity = by_name) -> Ledger:
        """Start a ledger in `run_dir`, which must not hold one; `config` (JSON) is kept in it.

        The store takes outcomes of trials, too, whose tasks `identity` tells from others of the same name.

        Raises:
            StoreError: if there is one, the directory is in use, or it cannot be written.
        """
        path = run_dir / cls.FILE
        taken = StoreError(f"{path} already exists; resume that run or choose another run directory")
        fresh = not path.exists()
        if not fresh and _begun(path):
            raise taken
        held = lock(run_dir)
        try:
            store = Store(path, identity)
            with store.writing() as db:
                db.execute(insert(META), {"name": "config", "value": json.dumps(config, sort_keys=True)})
        except IntegrityError:
            held.release()
            store.close()
            raise taken from None
        except StoreError:
            for part in run_dir.glob(f"{cls.FILE}*") if fresh else ():  # a disk without room for it
                part.unlink(missing_ok=True)
            held.release()
            raise
        return cls(store, config, held)

    @classmethod
    def open(cls, run_dir: Path, identity: Identity = by_name, *, read_only: bool = False) -> Ledger:
        """Open the ledger in `run_dir`; `identity` as for `create`.

        Raises:
            StoreError: if there is none, it is in use, damaged, or of another version.
        """
        path = run_dir / cls.FILE
        if not path.exists():
            raise StoreError(f"{run_dir} holds no search run (there is no {cls.FILE} in it)")
        held = None if read_only else lock(run_dir)
        try:
            store = Store(path, identity, read_only=read_only)
            with store.reading() as db:
                config = db.execute(select(META.c.value).where(META.c.name == "config")).scalar_one_or_none()
            if config is None:
                store.close()
                raise StoreError(f"{run_dir} holds no search run (nothing was begun in its {cls.FILE})")
            return cls(store, json.loads(config), held)
        except StoreError:
            if held is not None:
                held.release()
            raise

    def close(self) -> None:
        """Release the file and the run directory."""
        self.store.close()
        if self._held is not None:
            self._held.release()

    def append(
        self,
        batch: int,
        candidates: Sequence[Candidate],
        fitnesses: Sequence[Fitness],
        counts: Counter[Verdict],
        seconds: float,
        now: float,
        again: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        """Write one finished batch, atomically. Batches follow each other without gaps.

        Args:
            batch: its number.
            candidates, fitnesses: what was evaluated for the first time.
            counts: programs that were generated to find them, by verdict.
            seconds, now: how long it took, and when it ended.
            again: scores of earlier programs, by number, that were evaluated again.

        Raises:
            StoreError: if the file cannot be written; it is then as it was before.
        """
        programs = [program_row(batch, c, f) for c, f in zip(candidates, fitnesses, strict=True)]
        row = {"number": batch, "first": programs[0]["number"], "size": len(programs)}
        row |= {v.value: counts[v] for v in Verdict} | {"seconds": seconds, "finished_at": now}
        with self.store.writing() as db:
            db.execute(insert(BATCHES), row)
            db.execute(insert(PROGRAMS), programs)
            if again:
                db.execute(
                    insert(REPEATS), [{"batch": batch, "number": n, "score": finite(x)} for n, x in again.items()]
                )

    def __iter__(self) -> Iterator[Record]:
        """All evaluated programs in order of their numbers."""
        for row in self._rows(PROGRAMS):
            program, names = parse_program(row.program), tuple(row.mutations.split(","))
            yield Record(row.number, row.batch, row.parent, names, program, row.key, row.fingerprint, fitness_of(row))

    def repeats(self) -> Iterator[tuple[int, int, float]]:
        """Number, batch and score of every repeated evaluation, in order of batches."""
        with self.store.reading() as db:
            for row in db.execute(select(REPEATS).order_by(REPEATS.c.batch, REPEATS.c.number)):
                yield row.number, row.batch, score_of(row)

    def summaries(self) -> Iterator[Summary]:
        """All evaluated programs in order of their numbers, many times faster than by iteration."""
        for row in self._rows(PROGRAMS):
            names, status = tuple(row.mutations.split(",")), Status[row.status.upper()]
            sizes = (row.statements, row.live, row.slots)
            yield Summary(row.number, row.parent, names, row.program, score_of(row), rate_of(row.lr), status, *sizes)

    def batches(self) -> Iterator[tuple[int, Counter[Verdict]]]:
        """For each batch the number of evaluated programs, and of generated ones by verdict."""
        for row in self._rows(BATCHES):
            yield row.size, Counter({v: getattr(row, v.value) for v in Verdict})

    def counts(self) -> Counter[Verdict]:
        """Programs generated in the whole run, by verdict."""
        with self.store.reading() as db:
            totals = db.execute(select(*(func.sum(BATCHES.c[v.value]) for v in Verdict))).one()
        return Counter({v: int(n or 0) for v, n in zip(Verdict, totals, strict=True)})

    def seconds(self) -> float:
        """Time from handing a batch out to its result, waiting included, summed over batches that overlap."""
        with self.store.reading() as db:
            return float(db.execute(select(func.sum(BATCHES.c.seconds))).scalar_one() or 0.0)

    def digest(self) -> str:
        """SHA-256 over everything that a repeated or resumed run must reproduce; timings are left out."""
        sha = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for table in (PROGRAMS, BATCHES):
            for row in self._rows(table):
                sha.update(repr(tuple(row)).encode())
        for repeat in self.repeats():
            sha.update(repr(repeat).encode())
        return sha.hexdigest()

    def _rows(self, table: Table) -> Iterator[Any]:
        with self.store.reading() as db:
            columns = [column for column in table.c if column.name not in _TIMINGS]
            yield from db.execute(select(*columns).order_by(table.c.number))


def _begun(path: Path) -> bool:
    """Whether a file holds a run; not if its process was killed while it made the tables."""
    try:
        store = Store(path, read_only=True)
    except StoreError as error:
        return "no such table" not in str(error)
    with store.reading() as db:
        found = db.execute(select(META.c.value).where(META.c.name == "config")).first()
    store.close()
    return found is not None
