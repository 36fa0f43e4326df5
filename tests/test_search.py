"""The search as a whole: reproducible, resumable after any interruption, independent of where it was evaluated."""

from __future__ import annotations

import functools
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from baselines import BASELINES
from primitives import Program, subset
from search.cache import DuplicateCache, Verdict
from search.engine import Budget, Search
from search.evolution import Evolution, Individual, SpaceExhausted
from search.fitness import Evaluator, Fitness, Status
from search.ledger import Ledger, LedgerError
from search.mutation import Space
from search.workers import Workers

ADAMW = BASELINES["adamw"].program
SPACE = Space(subset("lion45", "protected"))


def toy_fitness(program: Program) -> Fitness:
    """A stand-in for training that is instant: some function of behaviour, with divergence now and then."""
    value = int(program.key[:8], 16) / 2**32
    if value < 0.1:
        return Fitness(math.inf, Status.DIVERGED, "toy divergence", rungs=(math.inf,))
    return Fitness(value, Status.OK, "", 1e-3, (value,), value < 0.5)


def toy(programs: Sequence[Program]) -> list[Fitness]:
    return [toy_fitness(p) for p in programs]


def toy_factory(delay: float = 0.0, die_on: str = "") -> Evaluator:
    """A toy evaluator that may take its time, or kill its process once (the file says whether it already has)."""

    def evaluate(programs: Sequence[Program]) -> list[Fitness]:
        time.sleep(delay * random.random())
        if die_on and not Path(die_on).exists():
            Path(die_on).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return toy(programs)

    return evaluate


def evolution(**options: int) -> Evolution:
    return Evolution((ADAMW,), SPACE, **{"seed": 7, "population": 20, "tournament": 3, "batch": 8, **options})  # type: ignore[arg-type]


def run(folder: Path, programs: int, workers: Workers | None = None, stop_after: int | None = None) -> str:
    """Search in `folder` up to `programs`, or abandon it after some batches; the ledger's digest."""
    folder.mkdir(exist_ok=True)
    fresh = not (folder / Ledger.FILE).exists()
    ledger = Ledger.create(folder, {"seed": 7}) if fresh else Ledger.open(folder)
    try:
        search = Search(evolution(), ledger, workers or Workers(toy_factory, 0))
        for count, _ in enumerate(search.run(Budget(programs=programs)), 1):
            if count == stop_after:
                break
        return ledger.digest()
    finally:
        ledger.close()


def test_the_same_seed_gives_the_same_ledger(tmp_path: Path) -> None:
    assert run(tmp_path / "a", 100) == run(tmp_path / "b", 100)
    assert run(tmp_path / "a", 100) != run(tmp_path / "c", 96)


@pytest.mark.parametrize("stop_after", [1, 2, 5, 12])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path: Path, stop_after: int) -> None:
    whole = run(tmp_path / "whole", 100)
    run(tmp_path / "parts", 100, stop_after=stop_after)
    run(tmp_path / "parts", 100, stop_after=1)
    assert run(tmp_path / "parts", 100) == whole


def test_real_workers_in_any_number_and_with_a_death_change_nothing(tmp_path: Path) -> None:
    whole = run(tmp_path / "local", 64)
    factory = functools.partial(toy_factory, 0.02, str(tmp_path / "died"))
    workers = Workers(factory, 2)
    try:
        assert run(tmp_path / "two", 64, workers) == whole
    finally:
        workers.close()
    assert (tmp_path / "died").exists()


def test_kill_9_at_any_moment_loses_at_most_the_batches_in_flight(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 80)
    folder = tmp_path / "killed"
    folder.mkdir()
    script = f"""
import random, sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from tests.test_search import Workers, functools, run, toy_factory
print("ready", flush=True)
run(Path({str(folder)!r}), 80, Workers(functools.partial(toy_factory, 0.2), 0))
"""
    kills = 0
    for attempt in range(4):
        process = subprocess.Popen([sys.executable, "-W", "error", "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            process.wait(0.15 + 0.1 * random.Random(attempt).random())
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        finally:
            process.stdout.close()
    assert kills >= 2
    assert run(folder, 80) == whole


def test_every_trained_program_is_new_and_has_its_lineage(tmp_path: Path) -> None:
    run(tmp_path, 120)
    ledger = Ledger.open(tmp_path, read_only=True)
    records = list(ledger)
    ledger.close()
    assert [r.number for r in records] == list(range(120))
    assert len({r.key for r in records}) == len({r.fingerprint for r in records}) == 120
    assert records[0].parent == -1 and records[0].program == ADAMW
    assert all(r.parent < r.number and r.mutations for r in records)
    assert all(r.fitness == toy_fitness(r.program) for r in records)
    assert any(r.fitness.status is Status.DIVERGED for r in records)


@pytest.mark.parametrize(("tournament", "low", "high"), [(1, 0.3, 0.7), (8, 0.95, 1.0)])
def test_a_larger_tournament_is_greedier(tournament: int, low: float, high: float) -> None:
    """Share of parents that are better than the median of the population: a half, or nearly all."""
    history = [Individual(n, 0, ADAMW, random.Random(n).random()) for n in range(20)]
    engine = evolution(tournament=tournament)
    rng = random.Random(0)
    chosen = [engine._select(engine.parents(history, 9), rng).score for _ in range(500)]
    median = sorted(i.score for i in history)[10]
    assert low <= sum(score < median for score in chosen) / 500 <= high


def test_the_oldest_die() -> None:
    engine = evolution(population=10, batch=8, lag=2)
    history = [Individual(n, n // 8, ADAMW, float(n)) for n in range(40)]
    assert [i.number for i in engine.parents(history, 5)] == list(range(22, 32))  # batch 4 is still in flight
    assert [i.number for i in engine.parents(history, 2)] == list(range(8))
    assert engine.parents([], 0) == []


def test_what_is_asked_does_not_depend_on_later_history() -> None:
    engine = evolution()
    history = [Individual(0, 0, ADAMW, 1.0)]
    later = [*history, Individual(8, 1, BASELINES["lion"].program, 0.0)]
    first, counts = engine.ask(history, DuplicateCache(), 2)
    second, _ = engine.ask(later, DuplicateCache(), 2)
    assert first == second
    assert counts[Verdict.NEW] == len(first) == 8


def test_an_exhausted_space_ends_with_a_sentence() -> None:
    narrow = Evolution((ADAMW,), Space(("sign",), weights=(("delete", 1.0),), signals=("g",)), batch=4)
    cache = DuplicateCache()
    with pytest.raises(SpaceExhausted, match="no new program in"):
        for batch in range(100):
            narrow.ask([Individual(0, 0, ADAMW, 1.0)], cache, batch)


def test_a_ledger_is_never_overwritten_and_never_shared(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, {})
    with pytest.raises(LedgerError, match="already exists"):
        Ledger.create(tmp_path, {})
    with pytest.raises(LedgerError, match="in use by another process"):
        Ledger.open(tmp_path)
    ledger.close()
    Ledger.open(tmp_path).close()
    with pytest.raises(LedgerError, match="holds no search run"):
        Ledger.open(tmp_path / "nowhere")


def test_a_corrupted_ledger_is_said_to_be_one(tmp_path: Path) -> None:
    run(tmp_path, 64)
    path = tmp_path / Ledger.FILE
    path.write_bytes(b"not a database, " * 100)
    with pytest.raises(LedgerError, match="not a readable ledger"):
        Ledger.open(tmp_path)


def test_a_batch_is_in_the_ledger_whole_or_not_at_all(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, {})
    candidates, counts = evolution().ask([], DuplicateCache(), 0)
    fitnesses = [toy_fitness(c.program) for c in candidates]
    ledger.append(0, candidates, fitnesses, counts, 1.0, 0.0)
    with pytest.raises(sqlite3.IntegrityError):  # the second half of this batch is there already
        ledger.append(1, [candidates[0]._replace(number=100), candidates[1]], fitnesses[:2], Counter(), 1.0, 0.0)
    assert [r.number for r in ledger] == list(range(8))
    ledger.close()


def test_workers_give_up_on_a_batch_that_always_kills(tmp_path: Path) -> None:
    workers = Workers(functools.partial(toy_factory, 0.0, str(tmp_path / "no" / "such" / "folder")), 1)
    try:
        with pytest.raises(FileNotFoundError):  # a bug in the evaluator is not hidden
            workers.result(workers.submit([ADAMW]))
    finally:
        workers.close()
    workers = Workers(_always_dies, 1)
    try:
        (fitness,) = workers.result(workers.submit([ADAMW]))
        assert fitness.status is Status.FAILED
        assert "died in 3 attempts" in fitness.reason
    finally:
        workers.close()


def _always_dies() -> Evaluator:
    return lambda programs: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[return-value]
