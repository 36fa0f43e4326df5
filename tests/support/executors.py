"""Shared by tests of several files."""

from __future__ import annotations

import functools
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.searches import always_dies, run, toy, toy_factory

from optforge.baselines import BASELINES
from optforge.primitives import Program
from optforge.search.fitness.evaluator import Evaluator, Fitness, Status, evaluating
from optforge.search.training.executors.pool import Executor, Pool

PROGRAMS = [BASELINES[name].program for name in ("adamw", "lion", "momentum", "sgd", "adam", "rmsprop", "adan", "lamb")]


BAD = BASELINES["lion"].program


Make = Callable[..., Executor]


def troublesome_factory(how: str, log: str = "") -> Evaluator:
    """A toy evaluator that kills its process, hangs or asks for a terabyte whenever Lion is in the batch."""

    def evaluate(programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        if log:
            with open(log, "a") as file:
                file.write(f"{len(programs)} ")
        if BAD in programs and how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if BAD in programs and how == "hang":
            time.sleep(1000)
        if BAD in programs and how == "raise":
            raise ZeroDivisionError("a mistake")
        if BAD in programs and how == "swell":
            try:
                torch.ones(2**38)  # a terabyte
            except (RuntimeError, MemoryError) as error:
                return [Fitness(math.inf, Status.FAILED, str(error))] * len(programs)
        return toy(programs)

    return evaluate


def same(found: Sequence[Fitness], programs: Sequence[Program]) -> bool:
    """Whether these are the toy's results; NaN equals NaN."""
    return [repr(f) for f in found] == [repr(f) for f in toy(programs)]


def no_factory() -> Evaluator:
    raise LookupError("no such task")


class ExecutorContract:
    """What a search may rely on. Subclasses say how to make one; `make` closes what it made."""

    @pytest.fixture
    def make(self) -> Iterator[Make]:
        raise NotImplementedError

    def test_each_job_gets_its_own_results_in_order(self, make: Make) -> None:
        executor = make(functools.partial(toy_factory, 0.05))
        jobs = [executor.submit(PROGRAMS[i:] + PROGRAMS[:i]) for i in range(8)]
        for i in (3, 0, 1, 2, 7, 6, 5, 4):
            assert same(executor.result(jobs[i]), PROGRAMS[i:] + PROGRAMS[:i])
        assert executor.result(executor.submit([])) == []

    def test_the_ledger_is_the_same(self, make: Make, tmp_path: Path) -> None:
        whole = run(tmp_path / "whole", 64)
        assert run(tmp_path / "here", 64, make(functools.partial(toy_factory, 0.02))) == whole  # type: ignore[arg-type]

    def test_the_ledger_is_the_same_after_an_interruption(self, make: Make, tmp_path: Path) -> None:
        whole = run(tmp_path / "whole", 64)
        interrupted = make(toy_factory)
        run(tmp_path / "parts", 64, interrupted, stop_after=3)  # type: ignore[arg-type]
        interrupted.close()
        assert run(tmp_path / "parts", 64, make(toy_factory)) == whole  # type: ignore[arg-type]

    def test_a_mistake_of_the_evaluator_is_not_hidden(self, make: Make) -> None:
        executor = make(functools.partial(troublesome_factory, "raise"))
        with pytest.raises(ZeroDivisionError, match="a mistake"):
            executor.result(executor.submit(PROGRAMS))
        assert same(executor.result(executor.submit(PROGRAMS[:1])), PROGRAMS[:1])

    def test_an_evaluator_that_cannot_be_made_is_not_hidden(self, make: Make) -> None:
        with pytest.raises(LookupError, match="no such task"):
            executor = make(no_factory)
            executor.result(executor.submit(PROGRAMS))


class ProcessContract(ExecutorContract):
    """What also holds where the evaluators are other processes."""

    def test_a_death_changes_nothing(self, make: Make, tmp_path: Path) -> None:
        whole = run(tmp_path / "whole", 64)
        workers = make(functools.partial(toy_factory, 0.02, str(tmp_path / "died")))
        assert run(tmp_path / "two", 64, workers) == whole  # type: ignore[arg-type]
        assert (tmp_path / "died").exists()

    def test_a_program_that_kills_is_found_and_its_neighbours_are_unharmed(self, make: Make, tmp_path: Path) -> None:
        log = tmp_path / "log"
        executor = make(functools.partial(troublesome_factory, "die", str(log)))
        jobs = [executor.submit(PROGRAMS[:4]), executor.submit(PROGRAMS[2:4])]
        found = executor.result(jobs[0])
        assert found[1].status is Status.FAILED and "died" in found[1].reason
        assert same([found[0], *found[2:]], [PROGRAMS[0], *PROGRAMS[2:4]])
        assert same(executor.result(jobs[1]), PROGRAMS[2:4])
        # three attempts together, then by halves; the other batch was none of them
        assert sorted(log.read_text().split()) == list("11222444")

    def test_a_program_that_hangs_is_found_and_its_neighbours_are_unharmed(self, make: Make) -> None:
        executor = make(functools.partial(troublesome_factory, "hang"), limit=0.5)
        found = executor.result(executor.submit(PROGRAMS[:2]))
        assert found[1].status is Status.FAILED and found[1].reason == "the worker gave no answer for 0.5 s"
        assert same(found[:1], PROGRAMS[:1])

    def test_workers_that_cannot_live_are_given_up(self, make: Make) -> None:
        executor = make(always_dies)
        (fitness,) = executor.result(executor.submit([BAD]))
        assert fitness.status is Status.FAILED and fitness.reason == "the worker died in 3 attempts"


WORK = evaluating(toy_factory)


class Scripted(Pool["Slow"]):
    """Workers without processes, whose answers come after a number of looks that a script says."""

    def __init__(self, count: int, looks: Sequence[int], **options: float) -> None:
        super().__init__(WORK, count, **options)
        self.looks, self.started = list(looks), list[int]()

    def _make(self) -> Slow:
        return Slow(self)

    def _wait(self, busy: Sequence[Slow], timeout: float) -> Sequence[Slow]:
        time.sleep(0.001)
        for worker in busy:
            worker.left -= 1
        return [w for w in busy if w.left <= 0]


class Slow:
    def __init__(self, pool: Scripted) -> None:
        self.pool, self.left, self.programs = pool, 0, list[Program]()

    def start(self, items: Sequence[Any], number: int) -> None:
        self.programs = [WORK.decode(item).program for item in items]
        self.left = self.pool.looks.pop(0) if self.pool.looks else 1
        self.pool.started.append(len(items))

    def answer(self) -> list[Fitness]:
        return toy(self.programs)

    def kill(self) -> None:
        self.left = 0
