"""What holds wherever batches are evaluated: here, in processes, or (in `test_cluster.py`) on Ray."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from support.executors import (
    BAD,
    PROGRAMS,
    ExecutorContract,
    Make,
    ProcessContract,
    Scripted,
    troublesome_factory,
)
from support.searches import toy

from optforge.primitives import Program
from optforge.search.fitness.evaluator import Evaluator, Fitness, Status, evaluating
from optforge.search.training.executors.pool import LOOK
from optforge.search.training.executors.processes import Workers


class TestHere(ExecutorContract):
    @pytest.fixture
    def make(self) -> Iterator[Make]:
        yield lambda factory, **options: Workers(evaluating(factory), 0, **options)


class TestProcesses(ProcessContract):
    @pytest.fixture
    def make(self) -> Iterator[Make]:
        made: list[Workers] = []

        def make(factory: Callable[[], Evaluator], **options: Any) -> Workers:
            made.append(Workers(evaluating(factory), 2, **options))
            return made[-1]

        yield make
        for workers in made:
            workers.close()

    def test_too_much_memory_is_an_exception_inside_the_worker(self, make: Make) -> None:
        executor = make(functools.partial(troublesome_factory, "swell"))
        found = executor.result(executor.submit(PROGRAMS[:2]))
        assert all(f.status is Status.FAILED and "memory" in f.reason for f in found)

    def test_closing_leaves_no_process(self, make: Make) -> None:
        workers = make(functools.partial(troublesome_factory, "hang"))
        workers.submit([BAD])
        assert isinstance(workers, Workers)
        processes = [w.process for w in [*workers.idle, *workers.busy]]  # type: ignore[union-attr]
        assert len(processes) == 2
        workers.close()
        assert not any(p.is_alive() for p in processes)


def test_a_straggling_batch_is_started_elsewhere_too_and_the_first_answer_counts() -> None:
    pool = Scripted(2, [1, 1, 1, 1, 1, 1, 10**9], patience=3.0)
    for _ in range(6):
        pool.result(pool.submit(PROGRAMS[:2]))
    assert pool.result(pool.submit(PROGRAMS)) == toy(PROGRAMS)
    assert pool.started[-2:] == [8, 8]
    assert len(pool.busy) == 1  # the straggler is left to finish, or to the bound
    patient = Scripted(2, [1, 1, 1, 1, 1, 1, 300])
    for _ in range(6):
        patient.result(patient.submit(PROGRAMS[:2]))
    assert patient.result(patient.submit(PROGRAMS)) == toy(PROGRAMS)
    assert patient.started.count(8) == 1


def test_the_bound_follows_the_time_that_batches_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optforge.search.training.executors.pool.LEAST", 0.05)
    pool = Scripted(1, [1, 1, 1, 1, 1, 1, 10**9, 10**9])
    for _ in range(6):
        pool.result(pool.submit(PROGRAMS[:2]))
    begin = time.monotonic()
    (fitness,) = pool.result(pool.submit(PROGRAMS[:1]))
    assert fitness.status is Status.FAILED
    assert time.monotonic() - begin < 5  # instead of half an hour


def tells_its_gpu() -> Evaluator:
    def evaluate(programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        time.sleep(0.05)  # the others get some, too
        return [Fitness(0.0, Status.OK, os.environ.get("CUDA_VISIBLE_DEVICES", "none"))] * len(programs)

    return evaluate


@pytest.mark.parametrize(("visible", "names"), [("", {"0", "1", "2"}), ("5,GPU-a,7", {"5", "GPU-a", "7"})])
def test_processes_share_the_gpus(visible: str, names: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    workers = Workers(evaluating(tells_its_gpu), 3)

    def told() -> set[str]:
        """What processes say until all have said something, for they take a while to start."""
        found, deadline = set[str](), time.monotonic() + 60
        while found != names and time.monotonic() < deadline:
            jobs = [workers.submit(PROGRAMS[:1]) for _ in range(6)]
            found |= {workers.result(job)[0].reason for job in jobs}
        return found

    try:
        assert told() == names
        os.kill(workers.pids[0], signal.SIGKILL)
        assert told() == names  # its GPU is not left out
    finally:
        workers.close()


def test_looking_for_answers_while_batches_are_handed_in_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look costs time for each worker, so that 10,000 workers must not be looked at 10,000 times."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pool, looks = Scripted(3, []), [0]
    original = pool._wait

    def counted(*args):  # type: ignore[no-untyped-def]
        looks[0] += 1
        return original(*args)

    monkeypatch.setattr(pool, "_wait", counted)
    for _ in range(1000):
        pool.submit([])
        now[0] += LOOK / 100
    assert looks[0] <= 11
