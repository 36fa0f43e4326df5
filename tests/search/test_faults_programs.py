"""Bad programs: a flood of random ones through the whole pipeline, and those that overflow, swell, hang or kill."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.faults import LONG, long
from support.searches import evolution, toy, toy_fitness
from torch import nn

from optforge.baselines import BASELINES
from optforge.primitives import Builder, Program, print_program, subset
from optforge.primitives.program import MAX_INSTRUCTIONS, MAX_STATE
from optforge.search.duplicates.cache import DuplicateCache, Verdict
from optforge.search.engine import Budget, Search
from optforge.search.evolution.evolution import Evolution
from optforge.search.fitness.evaluator import Evaluator, Fitness, Status, evaluating
from optforge.search.fitness.sweep import Sweep
from optforge.search.ledger import Ledger
from optforge.search.space.mutation import Space
from optforge.search.training import Splits, Task, TensorSplit
from optforge.search.training.executors.processes import Workers
from optforge.search.training.train import batches, train

ADAMW, LION = BASELINES["adamw"].program, BASELINES["lion"].program
STARTS = tuple(BASELINES[name].program for name in ("adamw", "lion", "lamb", "adafactor", "muon", "sgd"))


def _data() -> Splits:
    generator = torch.Generator().manual_seed(0)
    split = TensorSplit(torch.randn(24, 5, generator=generator), torch.randn(24, 3, generator=generator))
    return Splits(split, split, split)


TINY = Task(
    name="tiny", summary="", model=lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), data=_data,
    loss=nn.functional.mse_loss, metric="squared error", steps=2, batch_size=8, licence="", accuracy=False,
)  # fmt: skip
PROTOCOL = Sweep(TINY, rates=(1e-2,), seeds=(0,))


# a flood of random programs


def flood(folder: Path, strategy: str, programs: int, descent: bool = False) -> Ledger:
    """Breed so many programs, train those that survive, and write them down; returns the open ledger."""
    ledger = Ledger.create(folder, {})
    evolution = Evolution(STARTS, Space(subset("all")), seed=1, population=64, batch=64, strategy=strategy)
    search = Search(evolution, ledger, Workers(evaluating(lambda: PROTOCOL), 0), DuplicateCache(check_descent=descent))
    for _ in search.run(Budget()):
        if search.statistics.generated >= programs:
            break
    assert not search.exhausted
    return ledger


@pytest.mark.parametrize(
    ("strategy", "programs", "descent"),
    [
        ("evolution", 600, False),
        ("random", 300, False),
        ("random", 100, True),
        pytest.param("evolution", 60_000, False, marks=LONG),
        pytest.param("random", 38_000, False, marks=LONG),
        pytest.param("evolution", 1_000, True, marks=LONG),
        pytest.param("random", 1_000, True, marks=LONG),
    ],
)
def test_no_program_stops_a_search(tmp_path: Path, strategy: str, programs: int, descent: bool) -> None:
    ledger = flood(tmp_path, strategy, programs, descent)
    records = list(ledger)
    counts = ledger.counts()
    ledger.close()
    assert counts.total() >= programs
    assert len(records) - len(STARTS) == counts[Verdict.NEW]
    assert len({record.key for record in records}) == len(records)
    assert counts[Verdict.NOT_FINITE] and counts[Verdict.NEW]
    if programs > 10_000:
        assert all(counts[verdict] for verdict in Verdict if verdict is not Verdict.NO_DESCENT)
    for record in records:
        fitness = record.fitness
        assert (
            fitness.status in (Status.OK, Status.DIVERGED)
            or "on rows and columns, but a parameter has shape (4,)" in fitness.reason  # what it is not made for
        ), f"{fitness.reason}\n{print_program(record.program)}"
        assert math.isfinite(fitness.score) == (fitness.status is Status.OK) == (fitness.reason == "")
    again = Ledger.open(tmp_path)
    again.close()


# values that are no numbers, and programs as large as they may be


def not_a_number() -> Program:
    b = Builder()
    return b.build(b.log(-b.abs(b.g) - 1.0))


def not_a_number_in_the_second_step() -> Program:
    b = Builder()
    return b.build(b.g * b.log(1.5 - b.step))


def infinite() -> Program:
    b = Builder()
    return b.build(b.exp(b.exp(b.exp(b.abs(b.g) + 5.0))))


def too_large_for_single_precision() -> Program:
    b = Builder()
    return b.build(b.g * 1e200)


def a_slot_that_breaks() -> Program:
    b = Builder()
    m = b.slot("m")
    m.next = (m + b.g) * 1e30
    return b.build(m)


def enormous() -> Program:
    """As many statements and slots as there may be."""
    b = Builder()
    slots = [b.slot(f"s{i}") for i in range(MAX_STATE)]
    x = b.g
    for i, slot in enumerate(slots):
        slot.next = b.lerp(slot, b.g, (i + 1) / 65)
        x = x + slot.next
    for i in range(MAX_INSTRUCTIONS - 2 * len(slots) - 1):
        x = x + 1e-9 * (i + 1)
    return b.build(b.sign(x))


def test_bad_values_and_sizes_are_a_status_and_their_neighbours_train_as_if_alone() -> None:
    bad = [not_a_number(), not_a_number_in_the_second_step(), infinite(), too_large_for_single_precision()]
    bad.append(a_slot_that_breaks())
    population = PROTOCOL
    alone = population([ADAMW, LION])
    first, *broken, last = population([ADAMW, *bad, LION])
    assert all(f.status is Status.DIVERGED and "non-finite" in f.reason and f.score == math.inf for f in broken)
    assert [first, last] == alone
    # memory is planned: what does not fit is trained in several runs, to the same end
    trials = [t for program in (ADAMW, *bad[:1], LION) for t in PROTOCOL.trials(program)]
    assert [len(batch) for batch in batches(trials, room=1)] == [1, 1, 1]
    assert [o.valid for o in train(trials, room=1)] == [f.score for f in (first, broken[0], last)]


@long
def test_an_enormous_program_is_bounded_and_its_neighbours_train_as_if_alone() -> None:
    assert len(enormous().body) == MAX_INSTRUCTIONS
    large, *others = PROTOCOL([enormous(), LION])
    assert large.status in (Status.OK, Status.FAILED)  # a search has at most 40 statements; 1000 may be too deep
    assert others == PROTOCOL([LION])


# programs that hang, kill or swell


def trouble(program: Program) -> str:
    """What evaluating it comes to, by chance: nothing for most."""
    return {7: "hang", 8: "swell", 9: "die"}.get(int(program.key, 16) % 12, "")


def troubled(programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
    found = set(map(trouble, programs))
    if "hang" in found:
        time.sleep(1000)
    if "die" in found:
        os.kill(os.getpid(), signal.SIGKILL)
    if "swell" in found:
        blocks = []
        try:
            while True:
                blocks.append(torch.empty(2**26))
        except (RuntimeError, MemoryError) as error:
            if len(programs) == 1:
                return [Fitness(math.inf, Status.FAILED, str(error))]
        blocks.clear()
        half = len(programs) // 2
        return troubled(programs[:half]) + troubled(programs[half:])
    return toy(programs)


def troubled_factory() -> Evaluator:
    return troubled


REASONS = {"hang": "gave no answer for 2 s", "die": "died in 3 attempts", "swell": "memory"}


@pytest.mark.slow
@pytest.mark.parametrize("programs", [24, pytest.param(480, marks=LONG)])
def test_bounds_of_time_and_memory_end_what_hangs_or_swells_and_the_search_goes_on(
    tmp_path: Path, programs: int
) -> None:
    ledger = Ledger.create(tmp_path, {})
    workers = Workers(evaluating(troubled_factory), 2, limit=2.0, memory=4 * 2**30)
    try:
        for _ in Search(evolution(), ledger, workers).run(Budget(programs=programs)):
            pass
        records = list(ledger)
    finally:
        workers.close()
        ledger.close()
    assert len(records) == programs
    assert {trouble(record.program) for record in records} == {"", *REASONS}
    for record in records:
        kind, fitness = trouble(record.program), record.fitness
        if kind:
            assert fitness.status is Status.FAILED and REASONS[kind] in fitness.reason and fitness.score == math.inf
        else:
            assert fitness == toy_fitness(record.program)
