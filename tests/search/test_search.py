"""The search as a whole: reproducible, resumable after any interruption, independent of where it was evaluated."""

from __future__ import annotations

import functools
import math
import random
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError
from support.searches import ADAMW, always_dies, evolution, run, toy_factory, toy_fitness

from optforge.baselines import BASELINES
from optforge.primitives import Program
from optforge.search.duplicates.cache import DuplicateCache, Verdict
from optforge.search.engine import Budget, Search
from optforge.search.evolution.evolution import Evolution, SpaceExhausted
from optforge.search.evolution.standing import Individual
from optforge.search.fitness.evaluator import Fitness, Status, evaluating
from optforge.search.ledger import Ledger, Record
from optforge.search.space.mutation import Space
from optforge.search.training.executors.processes import Workers
from optforge.search.training.store import Store, StoreError


def test_failed_evaluations_are_counted_apart_from_divergence(tmp_path: Path) -> None:
    def broken(programs: Sequence[Program], generation: int) -> list[Fitness]:
        return [Fitness(math.inf, (Status.FAILED, Status.DIVERGED)[i % 2], f"reason {i}") for i in range(len(programs))]

    ledger = Ledger.create(tmp_path, {})
    search = Search(evolution(), ledger, Workers(evaluating(lambda: broken), 0))
    for _ in search.run(Budget(programs=16)):
        pass
    ledger.close()
    assert (search.statistics.failed, search.statistics.diverged) == (8, 8)
    assert search.statistics.failure == "reason 0" and search.best == []


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
    workers = Workers(evaluating(factory), 2)
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
import functools
from optforge.search.training.executors.processes import Workers
from support.searches import run, toy_factory
print("ready", flush=True)
run(Path({str(folder)!r}), 80, Workers(evaluating(functools.partial(toy_factory, 0.2)), 0))
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
    chosen = [engine._select(engine.pool(history, 72), rng).score for _ in range(500)]
    median = sorted(i.score for i in history)[10]
    assert low <= sum(score < median for score in chosen) / 500 <= high


def numbers(individuals: Sequence[Individual]) -> list[int]:
    return [i.number for i in individuals]


HISTORY = [Individual(n, n // 8, ADAMW, float(100 - n % 37)) for n in range(80)]  # in batches of 8


def test_the_oldest_die() -> None:
    engine = evolution(population=10, batch=8, lag=2)
    assert numbers(engine.pool(HISTORY[:40], 40)) == list(range(22, 32))  # batch 4 is still in flight
    assert numbers(engine.pool(HISTORY[:40], 16)) == list(range(8))
    assert engine.pool([], 0) == []


def test_islands_keep_to_themselves_but_for_migrants() -> None:
    engine = evolution(population=12, islands=4, migrate_every=3)
    assert numbers(engine.pool(HISTORY, 48)) == [28, 32, 36]  # the youngest three of island 0, batch 5 in flight
    assert numbers(engine.pool(HISTORY, 49)) == [29, 33, 37]
    chosen: dict[tuple[int, str | int], list[Individual]] = {}
    assert numbers(engine._pool_of(HISTORY, 50, chosen)) == [29, 33, 37]  # the 12th of island 2 descends from island 1
    assert numbers(engine._pool_of(HISTORY, 54, chosen)) == [30, 34, 38]


def test_a_restart_begins_with_the_start_program_or_the_best() -> None:
    engine = evolution(population=6, restart_every=24)
    assert [engine.founded_by(n) for n in (0, 23, 24, 47, 48, 72, 96)] == [
        "start", "start", "start", "start", "best", "start", "best",
    ]  # fmt: skip
    assert numbers(engine.pool(HISTORY, 23)) == list(range(2, 8))
    assert numbers(engine.pool(HISTORY, 24)) == numbers(engine.pool(HISTORY, 39)) == [0]  # nobody else is old enough
    assert numbers(engine.pool(HISTORY, 40)) == [26, 27, 28, 29, 30, 31]  # the founder died of age
    assert numbers(engine.pool(HISTORY, 48)) == [36]  # of batches up to 4, the best: 100 - 36 % 37
    assert numbers(engine.pool(HISTORY[:48], 48)) == [36]


@pytest.mark.parametrize(
    "settings",
    [
        {"islands": 4, "migrate_every": 3},
        {"restart_every": 24},
        {"islands": 3, "migrate_every": 2, "restart_every": 30, "tournament": 2},
        {"strategy": "random"},
        {"strategy": "constants"},
        {"strategy": "shuffled"},
    ],
    ids=str,
)
def test_every_kind_of_search_is_resumed_exactly(tmp_path: Path, settings: dict[str, int]) -> None:
    whole = run(tmp_path / "whole", 100, **settings)
    run(tmp_path / "parts", 100, stop_after=3, **settings)
    run(tmp_path / "parts", 100, stop_after=2, **settings)
    assert run(tmp_path / "parts", 100, **settings) == whole != run(tmp_path / "plain", 100)
    workers = Workers(evaluating(functools.partial(toy_factory, 0.01)), 2)
    try:
        assert run(tmp_path / "two", 100, workers, **settings) == whole
    finally:
        workers.close()


def lineage(folder: Path) -> list[Record]:
    ledger = Ledger.open(folder, read_only=True)
    try:
        return list(ledger)
    finally:
        ledger.close()


def test_lineages_mix_by_migration_only(tmp_path: Path) -> None:
    run(tmp_path / "apart", 120, islands=4)
    run(tmp_path / "joined", 120, islands=4, migrate_every=5)
    for record in lineage(tmp_path / "apart")[16:]:  # before, all descend from the start program
        assert record.parent % 4 == record.number % 4 or record.parent == 0
    for record in lineage(tmp_path / "joined")[24:]:
        migrant = record.number // 4 % 5 == 0
        assert record.parent % 4 == (record.number - migrant) % 4 or record.parent == 0


def test_after_a_restart_the_founder_is_the_ancestor_of_all(tmp_path: Path) -> None:
    run(tmp_path, 120, restart_every=40)
    records = lineage(tmp_path)
    eligible = [r for r in records[:72]]  # batches 0 to 8 are told when batch 10 is bred
    best = min(eligible, key=lambda r: (r.fitness.score, -r.number)).number
    for first, founder in ((40, 0), (80, best)):
        assert {r.parent for r in records[first : first + 40] if r.parent < first} == {founder}
        assert any(r.parent >= first for r in records[first : first + 40])


def test_constants_change_nothing_else_and_random_programs_keep_the_size(tmp_path: Path) -> None:
    run(tmp_path / "constants", 40, strategy="constants")
    run(tmp_path / "random", 40, strategy="random")
    for record in lineage(tmp_path / "constants")[1:]:
        assert [op for op, _ in record.program.body] == [op for op, _ in ADAMW.body]
        assert set(record.mutations) == {"constant"}
    drawn = lineage(tmp_path / "random")[1:]
    assert {len(r.program.body) for r in drawn} == {len(ADAMW.body)}
    assert all(r.mutations == ("drawn",) and r.program.state == ADAMW.state for r in drawn)
    assert len({op for r in drawn for op, _ in r.program.body}) > 30


def test_shuffled_fitness_does_not_select() -> None:
    """Mean score of chosen parents: far below the mean of all with fitness, the mean of all without."""
    history = [Individual(n, 0, ADAMW, float(n)) for n in range(400)]
    means = {}
    for strategy in ("evolution", "shuffled"):
        engine = evolution(population=400, tournament=10, strategy=strategy)
        rng = random.Random(0)
        means[strategy] = statistics.mean(engine._select(history, rng).score for _ in range(2000))
    assert means["evolution"] < 50 < 150 < means["shuffled"] < 250


def test_crossovers_name_both_parents(tmp_path: Path) -> None:
    run(tmp_path, 200)
    crossed = [m for r in lineage(tmp_path) for m in r.mutations if m.startswith("crossover")]
    assert crossed and all(0 <= int(m.split()[1]) < 200 for m in crossed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population": 5, "tournament": 10}, "the population holds 5; .* a tournament of at most 5"),
        ({"islands": 10, "tournament": 3}, "each of 10 islands holds 2"),
        ({"migrate_every": 4}, "choose at least 2 islands"),
        ({"restart_every": 15}, "choose at least 16, or 0"),
        ({"strategy": "genetic"}, "unknown strategy 'genetic'; choose from evolution, random"),
        ({"batch": 0}, "batch must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evolution(**settings)


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
    with pytest.raises(StoreError, match="already exists"):
        Ledger.create(tmp_path, {})
    with pytest.raises(StoreError, match="in use by another process"):
        Ledger.open(tmp_path)
    ledger.close()
    Ledger.open(tmp_path).close()
    with pytest.raises(StoreError, match="holds no search run"):
        Ledger.open(tmp_path / "nowhere")


def test_a_run_that_was_killed_before_it_began_can_begin(tmp_path: Path) -> None:
    Store(tmp_path / Ledger.FILE).close()
    with pytest.raises(StoreError, match="nothing was begun"):
        Ledger.open(tmp_path)
    Ledger.create(tmp_path, {"seed": 1}).close()
    ledger = Ledger.open(tmp_path)
    assert ledger.config == {"seed": 1}
    ledger.close()


def test_a_corrupted_ledger_is_said_to_be_one(tmp_path: Path) -> None:
    run(tmp_path, 64)
    path = tmp_path / Ledger.FILE
    path.write_bytes(b"not a database, " * 100)
    with pytest.raises(StoreError, match="cannot be used"):
        Ledger.open(tmp_path)


def test_a_batch_is_in_the_ledger_whole_or_not_at_all(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, {})
    candidates, counts = evolution().ask([], DuplicateCache(), 0)
    fitnesses = [toy_fitness(c.program) for c in candidates]
    ledger.append(0, candidates, fitnesses, counts, 1.0, 0.0)
    with pytest.raises(IntegrityError):  # the second half of this batch is there already
        ledger.append(1, [candidates[0]._replace(number=100), candidates[1]], fitnesses[:2], Counter(), 1.0, 0.0)
    assert [r.number for r in ledger] == list(range(8))
    ledger.close()


def test_workers_give_up_on_a_batch_that_always_kills(tmp_path: Path) -> None:
    workers = Workers(evaluating(functools.partial(toy_factory, 0.0, str(tmp_path / "no" / "such" / "folder"))), 1)
    try:
        with pytest.raises(FileNotFoundError):  # a bug in the evaluator is not hidden
            workers.result(workers.submit([ADAMW]))
    finally:
        workers.close()
    workers = Workers(evaluating(always_dies), 1)
    try:
        (fitness,) = workers.result(workers.submit([ADAMW]))
        assert fitness.status is Status.FAILED
        assert "died in 3 attempts" in fitness.reason
    finally:
        workers.close()
