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
from optforge.search.ledger import Ledger
from optforge.search.training.store import StoreError

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


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_ledger_is_a_sentence_and_stays_as_it_is(whole: tuple[Path, str], tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)

    def change(data: bytearray) -> None:
        begin = rng.randrange(0 if seed < 2 else 4096, len(data) - 4096)
        if seed % 2:
            del data[begin:]  # truncated
        else:
            data[begin : begin + 4096] = rng.randbytes(4096)

    folder = damaged(whole[0], tmp_path / "run", change)
    before = (folder / Ledger.FILE).read_bytes()
    for read_only in (True, False):
        with pytest.raises(StoreError, match=r"store\.sqlite cannot be used") as told:
            Ledger.open(folder, read_only=read_only)
        assert "\n" not in str(told.value)
    with pytest.raises(UserError, match="cannot be used"):
        digest(folder)
    assert (folder / Ledger.FILE).read_bytes() == before


def test_what_is_no_database_is_a_sentence(whole: tuple[Path, str], tmp_path: Path) -> None:
    noise = damaged(whole[0], tmp_path / "noise", lambda data: data.__setitem__(slice(0, 100), b"x" * 100))
    with pytest.raises(StoreError, match="not a database"):
        Ledger.open(noise)
    empty = damaged(whole[0], tmp_path / "empty", bytearray.clear)
    with pytest.raises(StoreError, match="holds no search run"):
        Ledger.open(empty)


def test_an_older_version_is_named(whole: tuple[Path, str], tmp_path: Path) -> None:
    import sqlite3

    shutil.copytree(whole[0], tmp_path / "run")
    with sqlite3.connect(tmp_path / "run" / Ledger.FILE) as db:
        db.execute("update meta set value = '99' where name = 'version'")
    db.close()
    with pytest.raises(StoreError, match="has version 99"):
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
from optforge.search.training.store import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size} , resource.RLIM_INFINITY))
try:
    run(Path({str(folder)!r}), {PROGRAMS})
except StoreError as error:
    sys.exit(f"SENTENCE {{error}}")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=_environment())
    assert "SENTENCE" in done.stderr and "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr and "kept" in done.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert run(folder, PROGRAMS) == whole[1]


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root; test_faults has a user without them")
def test_a_read_only_directory_is_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written: Permission denied"):
        Ledger.create(tmp_path, {})


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
