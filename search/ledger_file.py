"""The file beneath a ledger: its tables, the lock on its directory, checksums, and what is saved from a damaged one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from optforge.search.duplicates.cache import Verdict

VERSION = 3
_SCHEMA = f"""
create table meta (name text primary key, value text not null) without rowid;
create table batches (
    number integer primary key, first integer not null, size integer not null,
    {" ".join(f"{v.value} integer not null," for v in Verdict)}
    checksum text not null, seconds real not null, finished_at real not null);
create table programs (
    number integer primary key, batch integer not null references batches (number), parent integer not null,
    mutations text not null, program text not null, key text not null, fingerprint text not null,
    status text not null, reason text not null, score real, lr real, edge integer not null, rungs text not null,
    parts text not null, statements integer not null, live integer not null, slots integer not null);
"""
# what a repeated run reproduces; the other columns are timings
BATCH = "number, first, size, " + ", ".join(v.value for v in Verdict)
PROGRAM = (
    "number, batch, parent, mutations, program, key, fingerprint, status, reason, score, lr, edge, rungs, parts, "
    "statements, live, slots"
)


class LedgerError(RuntimeError):
    """A ledger cannot be used; the message says why and what to do."""


def write(
    path: Path, config: Mapping[str, Any], batches: Iterable[tuple[Any, ...]], programs: Iterable[tuple[Any, ...]]
) -> None:
    """Make a ledger, under another name at first, so that one which exists is complete."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    db = connect(draft)
    try:
        db.execute("pragma journal_mode = wal")  # a commit is one append, and readers do not disturb the run
        db.executescript(_SCHEMA)
        with db:
            meta = {"version": str(VERSION), "config": json.dumps(config, sort_keys=True)}
            insert(db, "meta", list(meta.items()))
            insert(db, "batches", list(batches))
            insert(db, "programs", list(programs))
        db.execute("pragma wal_checkpoint(truncate)").fetchall()  # closing would not say that the disk is full
    finally:
        db.close()
    draft.replace(path)


def salvage(path: Path) -> str:
    """Replace a damaged ledger by its first sound batches and keep the damaged file; what was done, as a sentence."""
    scratch, wal = path.with_suffix(".scratch"), path.with_name(f"{path.name}-wal")
    _copy(path, scratch)
    data = scratch.read_bytes()[:32]
    size = int.from_bytes(data[16:18], "big") * int.from_bytes(data[28:32], "big")
    with scratch.open("ab") as file:  # SQLite refuses a file that is shorter than it should be
        file.truncate(max(size, path.stat().st_size))
    db = connect(scratch)
    try:
        config = read_config(path, db)
        batches = [_read(db, "batches", "*", n, n)[0] for n in range(sound_batches(db) or 0)]
        programs = [row for b in batches for row in _read(db, "programs", "*", b[1], b[1] + b[2] - 1)]
    finally:
        db.close()
        scratch.unlink()
        scratch.with_name(f"{scratch.name}-wal").unlink(missing_ok=True)
    kept = next(p for n in range(1, 10_000) if not (p := path.with_name(f"damaged-{n}.sqlite")).exists())
    _copy(path, kept)
    wal.unlink(missing_ok=True)  # it belongs to the damaged file
    write(path, config, batches, programs)
    return (
        f"{path} was damaged: {len(programs)} programs in {len(batches)} batches were saved, and the damaged file is "
        f"kept as {kept.name}"
    )


def _copy(path: Path, to: Path) -> None:
    """A database with what was committed to it last."""
    shutil.copyfile(path, to)
    wal = path.with_name(f"{path.name}-wal")
    if wal.exists():
        shutil.copyfile(wal, to.with_name(f"{to.name}-wal"))


def attach(path: Path, read_only: bool) -> tuple[sqlite3.Connection, dict[str, Any], str]:
    """An existing ledger, its configuration, and what was said of its damage, which is mended unless `read_only`."""
    try:
        db = connect(path, read_only)
        try:
            config = read_config(path, db)
            if read_only or sound_batches(db) is None:
                return db, config, ""
        except BaseException:
            db.close()
            raise
        db.close()
    except (sqlite3.DatabaseError, KeyError, ValueError):
        if read_only:
            raise
    notice = salvage(path)
    db = connect(path)
    return db, read_config(path, db), notice


def read_config(path: Path, db: sqlite3.Connection) -> dict[str, Any]:
    """What the run was begun with. Raises `LedgerError` for another version's file, `KeyError` if it is not there."""
    meta = dict(db.execute("select name, value from meta"))
    if meta["version"] != str(VERSION):
        raise LedgerError(f"{path} has version {meta['version']}, and this program reads version {VERSION} only")
    return dict(json.loads(meta["config"]))


def sound_batches(db: sqlite3.Connection) -> int | None:
    """How many batches from the first on can be read and are what was written; None if the whole file is sound."""
    try:
        ((verdict, *_), *_) = db.execute("pragma quick_check(1)")
        ((last,),) = db.execute("select max(number) from batches")
    except sqlite3.DatabaseError:
        verdict = last = None
    number = 0
    width = BATCH.count(",") + 1
    while True:
        try:
            ((*row, written),) = _read(db, "batches", f"{BATCH}, checksum", number, number)
            programs = _read(db, "programs", PROGRAM, row[1], row[1] + row[2] - 1)
        except (sqlite3.DatabaseError, ValueError, TypeError):
            break
        if len(row) != width or checksum(row, programs) != written:
            break
        number += 1
    return None if verdict == "ok" and number == (-1 if last is None else last) + 1 else number


def _read(db: sqlite3.Connection, table: str, columns: str, first: int, last: int) -> list[tuple[Any, ...]]:
    """Rows by number: pages that they are not on may be damaged."""
    return db.execute(f"select {columns} from {table} where number between ? and ?", (first, last)).fetchall()


def insert(db: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write rows, within the caller's transaction."""
    if rows:
        db.executemany(f"insert into {table} values ({', '.join('?' * len(rows[0]))})", rows)


def checksum(batch: Sequence[Any], programs: Sequence[tuple[Any, ...]]) -> str:
    """Of a batch's deterministic columns and its programs' rows."""
    return hashlib.sha256(repr((tuple(batch), programs)).encode()).hexdigest()[:32]


def connect(path: Path, read_only: bool = False) -> sqlite3.Connection:
    """A connection that waits for locks and, on a full disk or damage, raises `sqlite3.DatabaseError`."""
    if read_only:
        # where nothing can be written, nobody writes; without being told, SQLite would want to make files of its own
        still = not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
        return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro{'&immutable=1' * still}", uri=True)
    db = sqlite3.connect(path, isolation_level="IMMEDIATE")
    try:
        db.execute("pragma synchronous = normal")  # only a power failure may cost batches: the last ones
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db


def lock_directory(run_dir: Path) -> IO[bytes]:
    """Hold the run directory until the returned file is closed or the process ends, however it ends."""
    try:
        file = (run_dir / "lock").open("ab")
    except OSError as error:
        raise LedgerError(f"{run_dir} cannot be written: {os.strerror(error.errno or 0)}") from None
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # no such locks on this system: two processes then meet in SQLite's own lock
        pass
    except BlockingIOError:
        file.close()
        raise LedgerError(
            f"{run_dir} is in use by another process; wait for it or choose another run directory"
        ) from None
    except OSError as error:
        file.close()
        raise LedgerError(f"{run_dir} cannot be locked: {error.strerror}; choose one on another file system") from None
    return file
