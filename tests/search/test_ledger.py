"""The ledger under damage, full disks and readers without permission: said in a sentence, and nothing lost twice."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.searches import run

from optforge.experiments.errors import UserError
from optforge.experiments.searching.run import digest
from optforge.search.ledger import Ledger, LedgerError

PROGRAMS = 96  # in batches of 8


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("ledger") / "whole"
    return folder, run(folder, PROGRAMS)


def damaged(whole: Path, folder: Path, change: object) -> Path:
    shutil.copytree(whole, folder)
    path = folder / Ledger.FILE
    data = bytearray(path.read_bytes())
    change(data)  # type: ignore[operator]
    path.write_bytes(data)
    return folder


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_ledger_is_noticed_and_salvaged_and_goes_on_to_the_same_end(
    whole: tuple[Path, str], tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)

    def change(data: bytearray) -> None:
        begin = rng.randrange(4 * 4096, len(data))  # behind the page of the configuration
        if seed % 3 == 0:
            del data[begin:]  # truncated
        elif seed % 3 == 1:
            data[begin : begin + 4096] = rng.randbytes(len(data[begin : begin + 4096]))
        else:  # one letter, which SQLite cannot notice
            at = data.index(b"lerp", 4 * 4096 + rng.randrange(20_000))
            data[at : at + 4] = b"lurp"

    folder = damaged(whole[0], tmp_path / "run", change)
    before = (folder / Ledger.FILE).read_bytes()
    ledger = Ledger.open(folder)
    records = list(ledger)
    ledger.close()
    assert f"{len(records)} programs in {len(records) // 8} batches were saved" in ledger.notice
    assert len(records) < PROGRAMS
    assert (folder / "damaged-1.sqlite").read_bytes() == before
    assert run(folder, PROGRAMS) == whole[1]
    again = Ledger.open(folder)
    again.close()
    assert again.notice == ""


def test_a_change_of_any_deterministic_value_is_noticed(whole: tuple[Path, str], tmp_path: Path) -> None:
    import sqlite3

    for sql, saved in (
        (
            "update programs set score = score + 1e-9 where number in (95, 94, 93)",
            11,
        ),
        ("update programs set lr = null where number = 3", 0),
        ("delete from programs where number = 17", 2),
        ("update batches set same_key = same_key + 1 where number = 5", 5),
        ("delete from batches where number = 7", 7),
    ):
        folder = tmp_path / str(saved) / sql.split()[0]
        shutil.copytree(whole[0], folder)
        with sqlite3.connect(folder / Ledger.FILE) as db:
            db.execute(sql)
        db.close()
        ledger = Ledger.open(folder)
        ledger.close()
        assert f"in {saved} batches were saved" in ledger.notice


def test_nothing_can_be_saved_from_what_is_no_database(whole: tuple[Path, str], tmp_path: Path) -> None:
    empty = damaged(whole[0], tmp_path / "empty", bytearray.clear)
    for folder in (
        empty,
        damaged(whole[0], tmp_path / "noise", lambda data: data.__setitem__(slice(0, 100), b"x" * 100)),
    ):
        before = (folder / Ledger.FILE).read_bytes()
        with pytest.raises(LedgerError, match="not a readable ledger"):
            Ledger.open(folder)
        assert (folder / Ledger.FILE).read_bytes() == before


def test_a_reader_of_a_damaged_ledger_gets_a_sentence_and_changes_nothing(
    whole: tuple[Path, str], tmp_path: Path
) -> None:
    folder = damaged(whole[0], tmp_path / "run", lambda data: data.__delitem__(slice(len(data) // 2, None)))
    before = (folder / Ledger.FILE).read_bytes()
    with pytest.raises(LedgerError, match="--resume saves what can be saved"):
        Ledger.open(folder, read_only=True)
    assert (folder / Ledger.FILE).read_bytes() == before


def test_damage_that_shows_only_in_reading_is_a_sentence(whole: tuple[Path, str], tmp_path: Path) -> None:
    noise = bytes(range(1, 256)) * 4096
    folder = damaged(
        whole[0], tmp_path / "run", lambda data: data.__setitem__(slice(len(data) // 2, None), noise[: len(data) // 2])
    )
    with pytest.raises(UserError, match="damaged"):
        digest(folder)


def test_an_older_version_is_named(whole: tuple[Path, str], tmp_path: Path) -> None:
    import sqlite3

    shutil.copytree(whole[0], tmp_path / "run")
    with sqlite3.connect(tmp_path / "run" / Ledger.FILE) as db:
        db.execute("update meta set value = '1' where name = 'version'")
    db.close()
    with pytest.raises(LedgerError, match="has version 1"):
        Ledger.open(tmp_path / "run")


def test_a_full_disk_is_a_sentence_and_leaves_the_ledger_sound(whole: tuple[Path, str], tmp_path: Path) -> None:
    """Files may not grow beyond a limit: what a full disk does to SQLite, without filling one."""
    folder = tmp_path / "run"
    run(folder, 32)
    size = sum(p.stat().st_size for p in folder.iterdir())
    script = f"""
import resource, signal, sys
from pathlib import Path
from support.searches import run
from optforge.search.ledger import LedgerError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size} , resource.RLIM_INFINITY))
try:
    run(Path({str(folder)!r}), {PROGRAMS})
except LedgerError as error:
    sys.exit(f"SENTENCE {{error}}")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=_environment())
    assert "SENTENCE" in done.stderr and "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr and "--resume" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert run(folder, PROGRAMS) == whole[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root; test_faults has a user without them")
def test_a_read_only_directory_is_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LedgerError, match="cannot be written: Permission denied"):
        Ledger.create(tmp_path, {})


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
