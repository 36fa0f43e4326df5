"""The search loop: ask evolution for batches, have them evaluated, write them to the ledger, in order."""

from __future__ import annotations

import math
import time
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from optforge.search.duplicates.cache import DuplicateCache, Verdict
from optforge.search.evolution.evolution import Candidate, Evolution, SpaceExhausted
from optforge.search.evolution.standing import Individual, standings
from optforge.search.evolution.statistics import Statistics
from optforge.search.fitness.evaluator import Bounded, Fitness, Status
from optforge.search.ledger import Ledger, Record
from optforge.search.training.executors.pool import Executor, Job

KEPT = 256
"""Of the best programs; some are near twins, and a funnel takes in half as many."""


@dataclass(frozen=True)
class Budget:
    """When a search ends: after so many trained programs in all, or so many seconds now; whichever comes first."""

    programs: int | None = None
    seconds: float | None = None


class Finished(NamedTuple):
    """A batch that is safely in the ledger."""

    batch: int
    candidates: list[Candidate]
    fitnesses: list[Fitness]


class _Pending(NamedTuple):
    batch: int
    candidates: list[Candidate]
    again: list[Individual]
    counts: Counter[Verdict]
    job: Job
    begin: float


class Search:
    """A search over a ledger, new or half done.

    Iterate over `run` to make it go; everything yielded is already in the ledger, and stopping the iteration at any
    point loses only batches in flight.
    """

    def __init__(
        self, evolution: Evolution, ledger: Ledger, workers: Executor, cache: DuplicateCache | None = None
    ) -> None:
        self.evolution, self.ledger, self.workers = evolution, ledger, workers
        self.cache = cache or DuplicateCache()
        self.history: list[Individual] = []
        self._best: list[Record] = []  # ascending by first score
        self.statistics = Statistics(verdicts=ledger.counts())
        self.exhausted = ""
        for record in ledger:
            self._tell(record)
        for number, batch, score in ledger.repeats():
            self._tell_again(number, batch, score)
        self.cache.restore((i.number, i.program) for i in self.history)

    def run(self, budget: Budget, clock: Callable[[], float] = time.monotonic) -> Iterator[Finished]:
        """Search until the budget is spent, yielding each batch once it is in the ledger."""
        deadline = None if budget.seconds is None else clock() + budget.seconds
        pending: deque[_Pending] = deque()
        batch = self.history[-1].batch + 1 if self.history else 0
        while True:
            while len(pending) < self.evolution.lag and not self.exhausted:
                size = self._size(batch, budget)
                if size <= 0 or (deadline is not None and clock() >= deadline):
                    break
                try:
                    candidates, counts = self.evolution.ask(self.history, self.cache, batch, size)
                except SpaceExhausted as error:
                    self.exhausted = str(error)
                    break
                again = self.evolution.again(self.history, batch)
                asked = [Bounded(c.program, c.bound) for c in candidates] + [
                    Bounded(i.program, math.inf) for i in again
                ]
                job = self.workers.submit(asked, batch)
                pending.append(_Pending(batch, candidates, again, counts, job, time.monotonic()))
                batch += 1
            if not pending:
                return
            yield self._finish(pending.popleft())

    def _size(self, batch: int, budget: Budget) -> int:
        left = self.evolution.batch if budget.programs is None else budget.programs - batch * self.evolution.batch
        return min(self.evolution.batch, left)

    def _finish(self, pending: _Pending) -> Finished:
        fitnesses = self.workers.result(pending.job)
        seconds = time.monotonic() - pending.begin
        fitnesses, later = fitnesses[: len(pending.candidates)], fitnesses[len(pending.candidates) :]
        again = {i.number: fitness.score for i, fitness in zip(pending.again, later, strict=True)}
        self.ledger.append(pending.batch, pending.candidates, fitnesses, pending.counts, seconds, time.time(), again)
        self.statistics.verdicts += pending.counts
        for candidate, fitness in zip(pending.candidates, fitnesses, strict=True):
            number, parent, mutations, program, identity, _ = candidate
            self._tell(
                Record(
                    number,
                    pending.batch,
                    parent,
                    mutations,
                    program,
                    identity.key,
                    identity.fingerprint,
                    fitness,
                )
            )
        for number, score in again.items():
            self._tell_again(number, pending.batch, score)
        return Finished(pending.batch, pending.candidates, fitnesses)

    def _tell_again(self, number: int, batch: int, score: float) -> None:
        known = self.history[number]
        self.history[number] = known._replace(again=(*known.again, (batch, score)))

    @property
    def best(self) -> list[Record]:
        """Programs that could be trained, best first by what is believed of them; at most `KEPT`."""
        order = standings([self.history[record.number] for record in self._best])
        return [r for _, _, r in sorted(zip(order, (r.number for r in self._best), self._best, strict=True))]

    def _tell(self, record: Record) -> None:
        fitness = record.fitness
        self.history.append(Individual(record.number, record.batch, record.program, fitness.score))
        self.statistics.trained += 1
        self.statistics.statements += len(record.program.body)
        self.statistics.dead += len(record.program.body) - len(record.program.live.instructions)
        self.statistics.failed += fitness.status is Status.FAILED
        self.statistics.diverged += fitness.status not in (Status.OK, Status.FAILED)
        if fitness.status is Status.FAILED and not self.statistics.failure:
            self.statistics.failure = fitness.reason
        if fitness.status is Status.OK:
            insort(self._best, record, key=lambda r: (r.fitness.score, r.number))
            del self._best[KEPT:]
