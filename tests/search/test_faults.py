"""Faults of the machine: `kill -9` at random moments, full and read-only disks, shared directories, jumping clocks.

The short form is part of `make test`; `make faults` has the long one as well, together with the other tests of what
goes wrong: damaged ledgers (`test_ledger.py`), workers that die or hang (`test_executors.py`), the same on Ray
(`test_cluster.py`), and bad programs (`test_faults_programs.py`).
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.faults import LONG, long
from support.searches import evolution, toy_factory
from typer.testing import CliRunner

from optforge.experiments.cli import app
from optforge.experiments.searching.options import BUDGET
from optforge.experiments.searching.run import digest
from optforge.search.engine import Budget, Search
from optforge.search.fitness.evaluator import evaluating
from optforge.search.ledger import Ledger
from optforge.search.training.executors.processes import Workers

ROOT = Path(__file__).parents[2]
PROC = Path(f"/proc/self/task/{os.getpid()}/children").exists()
BATCH = 16
TINY = (
    "--tasks",
    "proxy-teacher,proxy-curves",
    "--steps",
    "10",
    "--batch",
    str(BATCH),
    "--population",
    "8",
    "--tournament",
    "2",
)
PROGRAMS = 96


def search(folder: Path, *arguments: object, workers: int = 0) -> tuple[int, str]:
    """`optforge search` in this process: its exit code and what it complained of."""
    resume = ("--resume",) if (folder / Ledger.FILE).exists() else TINY
    done = CliRunner().invoke(app, ["search", *_texts("--run-dir", folder, *resume, "--workers", workers, *arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, complaint(done.stderr)


def begin(folder: Path, *arguments: object, workers: int = 1) -> subprocess.Popen[str]:
    """The same in a process of its own."""
    resume = ("--resume",) if (folder / Ledger.FILE).exists() else TINY
    command = [sys.executable, "-W", "error", "-m", "optforge.experiments.cli", "search", "--run-dir"]
    return subprocess.Popen(
        [*command, *_texts(folder, *resume, "--workers", workers, *arguments)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def _texts(*arguments: object) -> list[str]:
    return [str(a) for a in arguments]


def complaint(stderr: str) -> str:
    """What is on standard error besides the progress of the last training runs."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.endswith(" training runs\n"))


def is_sentence(text: str, *parts: str) -> bool:
    return text.startswith("optforge: ") and text.count("\n") == 1 and all(part in text for part in parts)


def trained(folder: Path) -> int:
    """How many programs a reader finds, in whole batches."""
    ledger = Ledger.open(folder, read_only=True)
    try:
        numbers = [record.number for record in ledger]
    finally:
        ledger.close()
    assert numbers == list(range(len(numbers))) and len(numbers) % BATCH == 0
    return len(numbers)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of an uninterrupted run of so many programs."""
    folder = tmp_path_factory.mktemp("faults") / "whole"
    assert search(folder, "--programs", PROGRAMS)[0] == 0
    return digest(folder)


# kill -9


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have, as `/proc` tells."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def is_python(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/exe").resolve() == Path(sys.executable).resolve()
    return False


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def until(condition: Callable[[], bool], seconds: float = 600.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kill_at_a_random_moment(folder: Path, rng: random.Random, *arguments: object) -> list[int]:
    """Begin or resume a search and kill it: just after one of its next commits, up to a second after it has opened its
    ledger, or anywhere in its first seconds. Returns the processes that it had begun.
    """
    when, wal = rng.random(), folder / f"{Ledger.FILE}-wal"
    before = _changed(folder / BUDGET)
    process = begin(folder, *arguments)
    assert process.stderr is not None

    def changes(path: Path, before: int) -> None:
        assert until(lambda: _changed(path) != before or process.poll() is not None)
        assert process.poll() is None, process.stderr and process.stderr.read()

    try:
        if when < 1 / 8:
            time.sleep(rng.uniform(0, 3))
        else:
            changes(folder / BUDGET, before)
            for _ in range(rng.randint(1, 3) if when > 1 / 2 else 0):
                changes(wal, _changed(wal))
            time.sleep(rng.uniform(0, 0.2 if when > 1 / 2 else 1))
        return descendants(process.pid)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def _changed(path: Path) -> int:
    """When a file was written to last, 0 if it is not there."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


@long
@pytest.mark.skipif(not PROC, reason="needs /proc")
def test_a_search_killed_at_random_moments_and_resumed_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    """The short form is in `test_search.py`."""
    rng = random.Random(50)
    folder = tmp_path / "killed"
    others = []
    for _ in range(50):
        others += kill_at_a_random_moment(folder, rng, "--programs", 10**6)
        if not (folder / Ledger.FILE).exists():  # nothing was begun, so there is nothing to resume
            shutil.rmtree(folder, ignore_errors=True)
    programs = (trained(folder) if folder.exists() else 0) + 4 * BATCH
    others += kill_at_a_random_moment(folder, rng, "--programs", programs)
    assert until(lambda: not any(map(alive, others)), 300), "processes were left behind"
    assert search(folder, "--programs", programs) == (0, "")
    assert trained(folder) == programs
    assert search(tmp_path / "whole", "--programs", programs) == (0, "")
    assert digest(folder) == digest(tmp_path / "whole")


@long
@pytest.mark.skipif(not PROC, reason="needs /proc")
def test_killed_workers_change_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    kills, programs = 20, 1600
    folder = tmp_path / "run"
    process = begin(folder, "--programs", programs, workers=2)
    assert process.stderr is not None
    died = 0
    while process.poll() is None:
        # a compiler, too, is a grandchild for a moment
        workers = [w for child in descendants(process.pid) for w in descendants(child) if is_python(w)]
        if died < kills and workers and (folder / BUDGET).exists():
            before = trained(folder)
            with contextlib.suppress(ProcessLookupError):
                os.kill(rng.choice(workers), signal.SIGKILL)
                died += 1
            # until what was in flight is finished: no batch is hit in each of its attempts
            until(lambda enough=before + 3 * BATCH: process.poll() is not None or trained(folder) >= enough, 60)
        time.sleep(rng.uniform(0, 0.3))
    assert (process.returncode, complaint(process.stderr.read())) == (0, "")
    assert died >= 5, "the search was too short"
    process.stderr.close()
    search(tmp_path / "whole", "--programs", programs)
    assert digest(folder) == digest(tmp_path / "whole")


# the disk and the directory


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A disk of its own: called with mount options, it makes or changes it, and returns where it is."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        if place.is_mount():
            options += ",remount"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("needs the right to mount a disk; test_ledger.py has a limit on the size of files instead")
        return place

    if shutil.which("mount") is None:
        pytest.skip("needs mount")
    yield mount
    if place.is_mount():
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(
    "kilobytes",
    # a whole run has more, if its pictures are drawn
    [4, 140, *(pytest.param(n, marks=[*LONG, pytest.mark.pictures]) for n in range(10, 400, 12))],
)
# TensorBoard's thread hands its error on, and raises it too; the command itself keeps quiet about that
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_a_sentence_and_the_run_goes_on_once_there_is_room(
    whole: str, disk: Callable[..., Path], kilobytes: int
) -> None:
    folder = disk(f"size={kilobytes}k") / "run"
    code, said = search(folder, "--programs", PROGRAMS)
    assert code == 2 and is_sentence(said)
    assert re.search("disk is full|No space left|disk I/O error", said)
    disk("size=64m")
    if (folder / Ledger.FILE).exists():
        trained(folder)
    else:
        shutil.rmtree(folder)
    assert search(folder, "--programs", PROGRAMS) == (0, "")
    assert digest(folder) == whole


def test_a_read_only_run_can_be_read_and_refuses_to_go_on(whole: str, disk: Callable[..., Path]) -> None:
    place = disk("size=64m")
    folder = place / "run"
    assert search(folder, "--programs", PROGRAMS) == (0, "")
    disk("ro")
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    code, said = search(folder, "--programs", 2 * PROGRAMS)
    assert code == 2 and is_sentence(said, "cannot be written: Read-only file system")
    code, said = search(place / "new", "--programs", PROGRAMS)
    assert code == 2 and is_sentence(said, "cannot be created: Read-only file system")
    assert digest(folder) == whole and trained(folder) == PROGRAMS
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    disk("rw")
    assert search(folder, "--programs", PROGRAMS) == (0, "")
    assert digest(folder) == whole


@long
def test_of_two_processes_that_begin_one_run_at_once_one_is_refused(whole: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    both = [begin(folder, "--programs", PROGRAMS, workers=0) for _ in range(2)]
    ended = sorted((p.wait(), complaint(p.communicate()[1])) for p in both)
    assert [code for code, _ in ended] == [0, 2]
    assert ended[0][1] == "" and is_sentence(ended[1][1])
    assert re.search("in use by another process|already exists", ended[1][1])
    assert digest(folder) == whole


# the clock


def test_a_jumping_clock_changes_neither_results_nor_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: str
) -> None:
    rng = random.Random(0)
    monkeypatch.setattr("time.time", lambda: rng.choice((0.0, 1.0, 4e9)) + rng.uniform(0, 1e8))
    assert search(tmp_path / "run", "--programs", PROGRAMS, "--minutes", 60) == (0, "")
    assert digest(tmp_path / "run") == whole

    ledger = Ledger.create(tmp_path, {})
    workers = Workers(evaluating(toy_factory), 1, limit=60)
    try:
        begun = time.monotonic()
        batches = list(Search(evolution(), ledger, workers).run(Budget(seconds=0.5)))
        assert 0.4 < time.monotonic() - begun < 30 and batches
        assert workers.deaths == 0
    finally:
        workers.close()
        ledger.close()


def test_the_time_of_day_is_for_notes_only() -> None:
    """Limits and durations are measured with clocks that nobody can set."""
    asks = re.compile(r"time\.time(_ns)?\(|time\.(local|gm)time\(|datetime\.(now|utcnow|today)\(|import time\b.*\bas\b")
    packages = ("primitives", "baselines", "learned", "search", "experiments")
    files = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    found = {path.relative_to(ROOT).as_posix() for path in files if asks.search(path.read_text())}
    assert found <= {"search/engine.py", "experiments/provenance.py", "search/training/store.py"}  # leases of machines
    (line,) = [x for x in (ROOT / "search/engine.py").read_text().splitlines() if "time.time()" in x]
    assert "ledger.append" in line  # when a batch was finished; nothing reads it
