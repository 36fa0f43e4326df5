"""The store: outcomes by trial, in a database that survives `kill -9` and that many processes may share.

A batch of outcomes is one transaction. Before a process trains, it claims the trials for a while (a lease that it
renews), so that others train something else; what a dead process has claimed is free again once its lease is over.
SQLite in WAL mode for one machine, a PostgreSQL address for many.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Event, Thread
from typing import Any

from filelock import FileLock, Timeout
from sqlalchemy import Column, Float, MetaData, String, Table, Text, create_engine, delete, event, insert, select
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import QueuePool

from optforge.search.training.trial import Outcome, Status, Trial

STORE_FILE = "store.sqlite"
"""Name of the store in a run directory."""

VERSION = 1
LEASE = 60.0
"""Seconds for which a claim holds; it is renewed three times as often."""

_LOCK_WAIT = 60  # seconds for which SQLite waits for another process
_MANY = 500  # keys in one query

TABLES = MetaData()
META = Table("meta", TABLES, Column("name", String(40), primary_key=True), Column("value", Text, nullable=False))
OUTCOMES = Table(
    "outcomes",
    TABLES,
    Column("key", String(64), primary_key=True),
    Column("trial", Text, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("finished_at", Float, nullable=False),
)
CLAIMS = Table(
    "claims",
    TABLES,
    Column("key", String(64), primary_key=True),
    Column("owner", String(32), nullable=False),
    Column("until", Float, nullable=False),
)


Identity = Callable[[Trial], str]
"""Text that tells a trial's task from others of the same name."""


def by_name(trial: Trial) -> str:
    """The identity of tasks that their names tell apart."""
    return ""


class StoreError(RuntimeError):
    """A store cannot be used; the message says why and what to do."""


class Store:
    """Outcomes of trials.

    Args:
        where: path of an SQLite file, or the address of a database (``postgresql+psycopg://user@host/name``).
        identity: text that tells a trial's task from others of the same name, such as hashes of its data.
        read_only: open a file that exists, and change nothing.

    Raises:
        StoreError: if the database cannot be used, is damaged, or is of another version.
    """

    def __init__(self, where: Path | str, identity: Identity = by_name, *, read_only: bool = False) -> None:
        self.name = str(where).split("@")[-1]
        self.owner = uuid.uuid4().hex
        self._identity = identity
        self.key = lru_cache(maxsize=4096)(self._key)
        """The trial's name in the store: equal for equal trials of equal tasks."""
        self._engine = _engine(where, read_only)
        with self._answering("cannot be used"):
            if not read_only:
                _create(self._engine)
            with self._engine.connect() as db:
                if self._engine.dialect.name == "sqlite":
                    (found,) = db.exec_driver_sql("pragma quick_check(1)").one()
                    if found != "ok":
                        raise ValueError(f"it is damaged ({str(found).splitlines()[-1]}); restore it from a backup")
                version = db.execute(select(META.c.value).where(META.c.name == "version")).scalar_one_or_none()
        if version is None:  # somebody else creates it at this moment
            self.close()
            raise StoreError(f"{self.name} holds nothing yet")
        if version != str(VERSION):
            self.close()
            raise StoreError(f"{self.name} has version {version}, and this program reads version {VERSION} only")

    def close(self) -> None:
        """Release the database."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for queries. Raises `StoreError` where the database cannot be read."""
        with self._answering("cannot be read"), self._engine.connect() as db:
            yield db

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A connection with one transaction, all of which is written, or nothing.

        Raises:
            StoreError: if the database cannot be written.
            IntegrityError: for rows that are there already.
        """
        with self._answering("cannot be written"), self._engine.begin() as db:
            yield db

    def _key(self, trial: Trial) -> str:
        said = json.dumps([trial.as_json(), self._identity(trial)], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()

    def get(self, trials: Sequence[Trial]) -> dict[Trial, Outcome]:
        """The outcomes that are known."""
        keys = {self.key(trial): trial for trial in trials}
        found: dict[Trial, Outcome] = {}
        with self.reading() as db:
            for some in _pieces(list(keys)):
                rows = db.execute(select(OUTCOMES.c.key, OUTCOMES.c.outcome).where(OUTCOMES.c.key.in_(some)))
                found |= {keys[key]: Outcome.from_json(json.loads(text)) for key, text in rows}
        return found

    def put(self, outcomes: Mapping[Trial, Outcome]) -> None:
        """Keep outcomes and give up their claims, in one transaction.

        Those that FAILED say nothing of the trial: they are not kept, and it is trained again the next time.
        """
        keys = {trial: self.key(trial) for trial in outcomes}
        now = time.time()
        rows = [
            {"key": keys[t], "trial": json.dumps(t.as_json()), "outcome": json.dumps(o.as_json()), "finished_at": now}
            for t, o in outcomes.items()
            if o.status is not Status.FAILED
        ]
        with self.writing() as db:
            known: set[str] = set()
            for some in _pieces(list(keys.values())):
                known.update(db.execute(select(OUTCOMES.c.key).where(OUTCOMES.c.key.in_(some))).scalars())
                db.execute(delete(CLAIMS).where(CLAIMS.c.key.in_(some)))
            if new := [row for row in rows if row["key"] not in known]:
                db.execute(insert(OUTCOMES), new)

    def claim(self, trials: Sequence[Trial]) -> bool:
        """Whether this process may train these trials: all of them, or, if another one has any, none."""
        keys = [self.key(trial) for trial in trials]
        now = time.time()
        rows = [{"key": key, "owner": self.owner, "until": now + LEASE} for key in keys]
        try:
            with self.writing() as db:
                db.execute(delete(CLAIMS).where(CLAIMS.c.until < now))
                db.execute(insert(CLAIMS), rows)
        except IntegrityError:
            return False
        return True

    def release(self) -> None:
        """Give up all claims, whoever made them; only while nobody else is at work."""
        with self.writing() as db:
            db.execute(delete(CLAIMS))

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Renew this process's claims while this lasts, in a thread, so that they do not end during long batches."""
        done = Event()

        def renew() -> None:
            while not done.wait(LEASE / 3):
                try:
                    with self._engine.begin() as db:
                        mine = CLAIMS.c.owner == self.owner
                        db.execute(CLAIMS.update().where(mine).values(until=time.time() + LEASE))
                except SQLAlchemyError:
                    continue  # busy; the next one may get through, and otherwise somebody else trains the same

        thread = Thread(target=renew, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            with self.writing() as db:
                db.execute(delete(CLAIMS).where(CLAIMS.c.owner == self.owner))

    @contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except (SQLAlchemyError, OSError, ValueError, KeyError, TypeError) as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            said = str(cause).strip().splitlines()
            reason = said[0][:200] if said else type(cause).__name__
            raise StoreError(f"{self.name} {what}: {reason}; what was finished before is kept") from None


def _engine(where: Path | str, read_only: bool) -> Engine:
    if isinstance(where, Path):
        # a path is no part of an address, in which ?, % and braces mean something
        engine = create_engine("sqlite://", creator=lambda: _connect(where.resolve(), read_only), poolclass=QueuePool)
    else:
        try:
            engine = create_engine(where, pool_pre_ping=True)
        except (SQLAlchemyError, ImportError) as error:
            hint = "; PostgreSQL needs a driver: pip install 'psycopg[binary]', and postgresql+psycopg://user@host/name"
            said = str(error).splitlines()[0]
            told = hint if where.startswith("postgresql") else ""
            raise StoreError(f"{where.split('@')[-1]} is no database that can be used: {said}{told}") from None
    if engine.dialect.name == "sqlite" and not read_only:

        @event.listens_for(engine, "connect")
        def wal(connection: Any, record: Any) -> None:
            connection.execute("pragma journal_mode = wal")  # a commit is one append, and readers disturb nobody
            connection.execute("pragma synchronous = normal")  # only a power failure may cost the last batches

    return engine


def _connect(file: Path, read_only: bool) -> sqlite3.Connection:
    options: dict[str, Any] = {"timeout": _LOCK_WAIT, "check_same_thread": False}
    if not read_only:
        return sqlite3.connect(file, **options)
    # where nothing can be written, nobody writes; without being told, SQLite would want to make files of its own
    still = not os.access(file.parent, os.W_OK) and not file.with_name(f"{file.name}-wal").exists()
    return sqlite3.connect(f"{file.as_uri()}?mode=ro{'&immutable=1' * still}", uri=True, **options)


def lock(folder: Path) -> FileLock:
    """Hold a run directory until the lock is released or the process ends, however it ends.

    Raises:
        StoreError: if another process holds it, or nothing can be written there.
    """
    held = FileLock(folder / "lock", thread_local=False)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise StoreError(
            f"{folder} is in use by another process; wait for it or choose another run directory"
        ) from None
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror}") from None
    return held


def _create(engine: Engine) -> None:
    """Make the tables, where another process may do the same at this moment."""
    end = time.monotonic() + 20
    while True:
        try:
            with engine.begin() as db:
                TABLES.create_all(db)
                _say_version(db)
            return
        except SQLAlchemyError as error:
            named = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not named or time.monotonic() > end:
                raise
        time.sleep(0.1)


def _say_version(db: Connection) -> None:
    if db.execute(select(META.c.value).where(META.c.name == "version")).first() is None:
        db.execute(insert(META), {"name": "version", "value": str(VERSION)})


def _pieces(keys: list[str]) -> Iterator[list[str]]:
    for first in range(0, len(keys), _MANY):
        yield keys[first : first + _MANY]


__all__ = ["META", "STORE_FILE", "TABLES", "Store", "StoreError", "lock"]
