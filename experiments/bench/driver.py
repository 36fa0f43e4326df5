"""What the driver of a search can do, with evaluators that answer at once: the suites `driver` and `workers`."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple

from optforge.baselines import BASELINES
from optforge.experiments.tasks import get_task
from optforge.primitives import Program, subset
from optforge.search.duplicates.cache import DuplicateCache, Identity, Verdict
from optforge.search.engine import Budget, Search
from optforge.search.evolution.evolution import Candidate, Evolution, Individual
from optforge.search.fitness.evaluator import Evaluator, Fitness, Status, evaluating
from optforge.search.ledger import Ledger
from optforge.search.space.draft import Space
from optforge.search.training.executors.pool import Executor, Pool
from optforge.search.training.executors.processes import Workers

BATCH = 32


class Instant:
    """A worker that has its answer as soon as it is asked."""

    def __init__(self) -> None:
        self.count = 0

    def start(self, programs: Sequence[Program], generation: int) -> None:
        """Take note of how many fitnesses to make up."""
        self.count = len(programs)

    def answer(self) -> list[Fitness]:
        """Made up."""
        return [Fitness(1.0 / (1 + n), Status.OK, "", 0.01, (1.0, 0.5, 0.3, 0.4, 0.9)) for n in range(self.count)]

    def kill(self) -> None:
        """Nothing."""


class InstantPool(Pool[Instant]):
    """So many of them."""

    def _make(self) -> Instant:
        return Instant()

    def _wait(self, busy: Sequence[Instant], timeout: float) -> Sequence[Instant]:
        return busy


@dataclass(frozen=True)
class Prepared(Evolution):
    """Evolution without breeding: what is asked has been made before."""

    programs: tuple[Program, ...] = ()
    identities: list[Identity] = field(default_factory=list)

    def ask(
        self, history: Sequence[Individual], cache: DuplicateCache, batch: int, size: int | None = None
    ) -> tuple[list[Candidate], Counter[Verdict]]:
        """The prepared programs, over and over."""
        found = []
        for number in range(batch * self.batch, batch * self.batch + (size or self.batch)):
            at = number % len(self.programs)
            found.append(Candidate(number, max(0, number - 100), ("insert",), self.programs[at], self.identities[at]))
        return found, Counter({Verdict.NEW: len(found)})


def bred(batches: int) -> tuple[tuple[Program, ...], list[Identity], float]:
    """Programs of a young search, their identities, and the CPU time of breeding one, in seconds."""
    space = Space(subset("lion45", "protected", "statistics", "masks", "smooth"))
    evolution = Evolution((BASELINES["adamw"].program,), space, batch=BATCH)
    cache, history, candidates = DuplicateCache(), list[Individual](), list[Candidate]()
    begin = time.process_time()
    for batch in range(batches):
        found, _ = evolution.ask(history, cache, batch)
        candidates += found
        history += [Individual(c.number, batch, c.program, c.number % 7.0) for c in found]
    seconds = time.process_time() - begin
    return tuple(c.program for c in candidates), [c.identity for c in candidates], seconds / len(candidates)


@contextmanager
def driven(evolution: Evolution, executor: Executor) -> Iterator[Search]:
    """A search in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder), {})
        try:
            yield Search(evolution, ledger, executor)
        finally:
            executor.close()
            ledger.close()


def results_per_second(evolution: Evolution, executor: Executor, results: int) -> float:
    """Rate at which results are taken in, written, and replaced by new batches, per CPU-second of the driver.

    It is measured once every worker has had its first batch. Waiting, also for the disk, is not in it.
    """
    with driven(evolution, executor) as search:
        run = search.run(Budget())
        next(run)
        begin = time.process_time()
        count = sum(len(batch.fitnesses) for batch in islice(run, results // BATCH))
        return count / (time.process_time() - begin)


class Written(NamedTuple):
    """What one result costs in the ledger: wall-clock and CPU seconds of writing and of reading, and bytes on disk."""

    append: float
    append_cpu: float
    resume_cpu: float
    size: float


def ledger_costs(evolution: Prepared, results: int) -> Written:
    """Measured by writing so many results, in batches, and opening the ledger again as `--resume` does."""
    asked = [evolution.ask((), DuplicateCache(), batch)[0] for batch in range(results // BATCH)]
    worker = Instant()
    worker.start(evolution.programs[:BATCH], 0)
    fitnesses = worker.answer()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder), {})
        begin, begin_cpu = time.perf_counter(), time.process_time()
        for batch, candidates in enumerate(asked):
            ledger.append(batch, candidates, fitnesses, Counter(), 1.0, 0.0)
        seconds, cpu = time.perf_counter() - begin, time.process_time() - begin_cpu
        ledger.close()
        size = (Path(folder) / Ledger.FILE).stat().st_size
        begin_cpu = time.process_time()
        ledger = Ledger.open(Path(folder))
        Search(evolution, ledger, InstantPool(1))
        resume = time.process_time() - begin_cpu
        ledger.close()
    count = len(asked) * BATCH
    return Written(seconds / count, cpu / count, resume / count, size / count)


def resident() -> int:
    """Bytes of memory that this process occupies, by Linux's count."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def no_training() -> Evaluator:
    """An evaluator for real processes that costs nothing but the way there and back."""
    return lambda programs, generation=0: [
        Fitness(1.0, Status.OK, "", 0.01, (1.0, 0.5, 0.3, 0.4, 0.9)) for _ in programs
    ]


def digits() -> Evaluator:
    """A population on digits, at three learning rates."""

    from optforge.search.fitness.sweep import Sweep

    return Sweep(get_task("digits"), (1e-3, 1e-2, 1e-1), (0,))


def training_seconds(workers: int, batches: int, programs: Sequence[Program]) -> tuple[float, float]:
    """Wall-clock seconds for each of so many real batches in local processes, and the processes' CPU seconds."""
    pool = Workers(evaluating(digits), workers)
    try:
        for job in [pool.submit(programs) for _ in range(2 * workers)]:  # so that all have begun, and recorded graphs
            pool.result(job)
        begin, begin_cpu = time.perf_counter(), sum(map(_cpu_of, pool.pids))
        for job in [pool.submit(programs) for _ in range(batches)]:
            pool.result(job)
        return (time.perf_counter() - begin) / batches, (sum(map(_cpu_of, pool.pids)) - begin_cpu) / batches
    finally:
        pool.close()


def _cpu_of(pid: int) -> float:
    """CPU seconds of another process, by Linux's count."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def measure_driver(repeats: int) -> list[tuple[str, float, str, float]]:
    """Name, value, unit and least value (or 0 for none) of each figure; medians of some repeats."""
    before = resident()
    programs, identities, breeding = bred(200)
    memory = (resident() - before) / len(programs)
    make = functools.partial(Prepared, programs[:1], Space(subset("lion45")), programs=programs, identities=identities)
    rows = []
    for workers in (100, 1_000, 10_000):
        rate = median(results_per_second(make(lag=workers), InstantPool(workers), 20_000) for _ in range(repeats))
        rows.append((f"driver without breeding, {workers:,} instant workers", rate, "results/CPU-s", 5000.0))
    rate = median(results_per_second(make(lag=8), Workers(evaluating(no_training), 2), 6_400) for _ in range(repeats))
    real = Evolution(programs[:1], Space(subset("lion45", "protected", "statistics", "masks", "smooth")), lag=100)
    whole = median(results_per_second(real, InstantPool(100), 2_000) for _ in range(repeats))
    written = [ledger_costs(make(), 6_400) for _ in range(repeats)]
    costs = Written(*(median(values) for values in zip(*written, strict=True)))
    return [
        *rows,
        ("the same, 2 local processes that answer at once", rate, "results/CPU-s", 0.0),
        ("driver with breeding, 100 instant workers", whole, "results/CPU-s", 0.0),
        ("breeding one program that is trained", 1e6 * breeding, "us of CPU", 0.0),
        ("writing one result to the ledger", 1e6 * costs.append_cpu, "us of CPU", 0.0),
        ("the same, waiting included", 1e6 * costs.append, "us", 0.0),
        ("reading one result when a run is resumed", 1e6 * costs.resume_cpu, "us of CPU", 0.0),
        ("one result in the ledger", costs.size, "bytes", 0.0),
        ("one trained program in the driver's memory", memory, "bytes", 0.0),
    ]


def measure_workers(repeats: int, batches: int = 8) -> list[tuple[str, float, str, float]]:
    """How much faster two local processes train than one, by the clock and by the CPU time that batches take.

    The clock says something on a quiet machine only. CPU time says what two free cores would give: training has no
    part in which processes wait for each other, but they share caches and memory, so that a batch may take longer.
    """
    programs = bred(1)[0]
    by_clock, by_cpu = [], []
    for _ in range(repeats):
        (one, one_cpu), (two, two_cpu) = (training_seconds(n, batches, programs) for n in (1, 2))
        by_clock.append(one / two)
        by_cpu.append(2 * one_cpu / two_cpu)
    return [
        ("two local workers / one, by the clock", median(by_clock), "x", 1.8),
        ("two local workers / one, if they had a core each", median(by_cpu), "x", 1.8),
    ]
