"""What the driver of a search can do, with evaluators that answer at once: the suites `driver` and `workers`."""

from __future__ import annotations

import functools
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median

from baselines import BASELINES
from primitives import Program, subset
from search.cache import DuplicateCache, Identity, Verdict
from search.draft import Space
from search.engine import Budget, Search
from search.evolution import Candidate, Evolution, Individual
from search.fitness import Fitness, Status
from search.ledger import Ledger
from search.pool import Executor, Pool

BATCH = 32


class Instant:
    """A worker that has its answer as soon as it is asked."""

    def __init__(self) -> None:
        self.count = 0

    def start(self, programs: Sequence[Program]) -> None:
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


def results_per_second(evolution: Evolution, workers: int, results: int) -> float:
    """Wall-clock rate at which results of `workers` instant workers are taken in, written and replaced by new batches.

    It is measured once every worker has had its first batch.
    """
    with driven(evolution, InstantPool(workers)) as search:
        run = search.run(Budget())
        next(run)
        begin = time.perf_counter()
        count = sum(len(batch.fitnesses) for batch in islice(run, results // BATCH))
        return count / (time.perf_counter() - begin)


def append_seconds(evolution: Prepared, batches: int) -> float:
    """Wall-clock time of writing one result to the ledger, in seconds."""
    with driven(evolution, InstantPool(1)) as search:
        asked = [evolution.ask((), search.cache, batch)[0] for batch in range(batches)]
        worker = Instant()
        worker.start(asked[0])  # type: ignore[arg-type]
        fitnesses = worker.answer()
        begin = time.perf_counter()
        for batch, candidates in enumerate(asked):
            search.ledger.append(batch, candidates, fitnesses, Counter(), 1.0, 0.0)
        return (time.perf_counter() - begin) / (batches * BATCH)


def resume_seconds(evolution: Prepared, results: int) -> float:
    """Wall-clock time of opening a ledger again, for each of so many results in it, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder), {})
        for _ in islice(Search(evolution, ledger, InstantPool(8)).run(Budget(programs=results)), None):
            pass
        ledger.close()
        begin = time.perf_counter()
        ledger = Ledger.open(Path(folder))
        Search(evolution, ledger, InstantPool(8))
        seconds = time.perf_counter() - begin
        ledger.close()
        return seconds / results


def batches_per_second(workers: int, batches: int) -> float:
    """Wall-clock rate of real batches on the digits, by local processes that have started before."""
    from experiments.run_search import evaluator
    from search.workers import Workers

    programs = bred(1)[0]
    pool = Workers(functools.partial(evaluator, "digits", (1e-3, 1e-2, 1e-1), (0,)), workers)
    try:
        for job in [pool.submit(programs[:2]) for _ in range(2 * workers)]:  # so that all have begun
            pool.result(job)
        begin = time.perf_counter()
        for job in [pool.submit(programs) for _ in range(batches)]:
            pool.result(job)
        return batches / (time.perf_counter() - begin)
    finally:
        pool.close()


def measure_driver(repeats: int) -> list[tuple[str, float, str, float]]:
    """Name, value, unit and least value (or 0 for none) of each figure; medians of some repeats."""
    programs, identities, breeding = bred(20)
    make = functools.partial(Prepared, programs[:1], Space(subset("lion45")), programs=programs, identities=identities)
    rows = []
    for workers in (100, 1_000, 10_000):
        rate = median(results_per_second(make(lag=workers), workers, 20_000) for _ in range(repeats))
        rows.append((f"driver without breeding, {workers:,} instant workers", rate, "results/s", 5000.0))
    real = Evolution(programs[:1], Space(subset("lion45", "protected", "statistics", "masks", "smooth")), lag=100)
    rate = median(results_per_second(real, 100, 2_000) for _ in range(repeats))
    appending = median(append_seconds(make(), 300) for _ in range(repeats))
    return [
        *rows,
        ("driver with breeding, 100 instant workers", rate, "results/s", 0.0),
        ("breeding one program that is trained", 1e6 * breeding, "us of CPU", 0.0),
        ("writing one result to the ledger", 1e6 * appending, "us", 0.0),
        ("reading one result when a run is resumed", 1e6 * resume_seconds(make(), 10_000), "us", 0.0),
    ]
