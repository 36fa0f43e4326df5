"""Regularized evolution (Real et al. 2019) over programs, as ask and tell without hidden state.

What is asked depends only on the configuration and on what was told before, never on timing: candidate `n` draws from
a generator seeded by the search's seed and `n`, and batch `b` of candidates is bred from the individuals of batches up
to ``b - lag``. So a search can be interrupted anywhere and resumed to the same future, with one worker or many.
"""

from __future__ import annotations

import gc
import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import NamedTuple

from optforge.primitives import Program
from optforge.search.duplicates.cache import DuplicateCache, Identity, Verdict
from optforge.search.evolution.standing import Individual, standings, worth_repeating
from optforge.search.evolution.strategies import STRATEGIES, Strategy
from optforge.search.space.draft import Space

PARENTS = 50  # tried for one candidate before the space counts as exhausted
CHILDREN = 20  # of one parent


class Candidate(NamedTuple):
    """A program to evaluate, with its number, its parent's number (-1 for a start program) and how it came about.

    Attributes:
        bound: score of a typical parent, if the search is bounded: the median of the winners of tournaments in its
            pool.
    """

    number: int
    parent: int
    mutations: tuple[str, ...]
    program: Program
    identity: Identity
    bound: float = math.inf


class _Offer(NamedTuple):
    """A child that may become a candidate."""

    parent: int
    mutations: tuple[str, ...]
    program: Program


class SpaceExhausted(RuntimeError):
    """No new program was found in a great many mutations."""


@lru_cache(maxsize=1)
def _set_aside() -> None:
    """Leave what exists when the first programs are bred, modules mostly, out of all later searches for cycles."""
    gc.collect()
    gc.freeze()


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Python's search for reference cycles among all programs took a third of the time; programs form none."""
    _set_aside()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class Evolution:
    """The configuration of a search, and what follows from it.

    Attributes:
        start: programs to start from.
        space: which programs mutations may reach.
        seed: of all randomness.
        population: how many of the youngest individuals, of all islands together, may become parents (the oldest die).
        tournament: how many of them compete to become one; more means greedier.
        batch: candidates per batch, which are trained together.
        lag: how many batches may be in flight; also the most workers that are ever busy at once.
        islands: lineages that do not mix; candidate n belongs to island n modulo their number.
        migrate_every: every so many candidates of an island, one descends from the island before it; 0 for never.
        restart_every: every so many candidates, populations are dropped and begin anew: in turns from the start
            programs and from the best program so far (of each island); 0 for never.
        strategy: a row of `search.evolution.strategies.STRATEGIES`.
        repeats: programs that are evaluated again with each batch, on its seed (see `search.evolution.standing`).
        bounded: whether candidates come with a bound, for evaluators that stop early.

    Raises:
        ValueError: for settings that make no sense together, with what would.
    """

    start: tuple[Program, ...]
    space: Space
    seed: int = 0
    population: int = 100
    tournament: int = 10
    batch: int = 32
    lag: int = 2
    islands: int = 1
    migrate_every: int = 0
    restart_every: int = 0
    strategy: str = "evolution"
    repeats: int = 0
    bounded: bool = False

    def __post_init__(self) -> None:
        for name in ("population", "tournament", "batch", "lag", "islands"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.repeats < 0:
            raise ValueError(f"repeats must be at least 0, got {self.repeats}")
        if not self.start:
            raise ValueError("evolution needs at least one start program")
        if self.strategy not in STRATEGIES:
            raise ValueError(f"unknown strategy {self.strategy!r}; choose from {', '.join(STRATEGIES)}")
        each = self.population // self.islands
        if self.tournament > each:
            where = f"each of {self.islands} islands holds" if self.islands > 1 else "the population holds"
            raise ValueError(
                f"a tournament of {self.tournament} needs as many programs, but {where} {each}; choose a larger "
                f"population or a tournament of at most {max(1, each)}"
            )
        if self.migrate_every and self.islands == 1:
            raise ValueError("there is nowhere to migrate with one island; choose at least 2 islands")
        if 0 < self.restart_every < self.lag * self.batch or self.migrate_every < 0 or self.restart_every < 0:
            raise ValueError(
                f"restarts every {self.restart_every} programs would come before the first are trained; choose at "
                f"least {self.lag * self.batch}, or 0 for none"
            )

    @cached_property
    def row(self) -> Strategy:
        """The strategy's row."""
        return STRATEGIES[self.strategy]

    @cached_property
    def mix(self) -> Space:
        """The space with the strategy's weights of mutations."""
        return self.space if self.row.weights is None else replace(self.space, weights=self.row.weights)

    def founded_by(self, number: int) -> str:
        """What the population that candidate `number` belongs to began with: ``start`` or ``best``."""
        epoch = number // self.restart_every if self.restart_every else 0
        return "best" if epoch and epoch % 2 == 0 else "start"

    def restarts(self, programs: int) -> range:
        """Numbers of the candidates that began anew among the first `programs`."""
        every = self.restart_every
        return range(every, programs, every) if every else range(0)

    def pool(self, history: Sequence[Individual], number: int, island: int | None = None) -> list[Individual]:
        """Who may become a parent of candidate `number`: the youngest of an island that are old enough.

        Of its own island unless given. After a restart, those from before are replaced by the founders.
        """
        island = number % self.islands if island is None else island
        size = self.population // self.islands
        last = self._before(history, number)
        first = number // self.restart_every * self.restart_every if self.restart_every else 0
        since = bisect_left(history, first, key=_number)
        recent = history[max(since, last - size * self.islands - self.batch) : last]
        pool = [i for i in recent if i.number % self.islands == island][-size:]
        if first and len(pool) < size:
            pool = [*self._founders(history, first, island), *pool][-size:]
        believed = standings(pool, self._horizon(number))
        return [i._replace(score=score) for i, score in zip(pool, believed, strict=True)]

    def again(self, history: Sequence[Individual], batch: int) -> list[Individual]:
        """Who is evaluated once more with `batch`: elites among those that may become parents of its candidates."""
        number = batch * self.batch
        recent = history[max(0, self._before(history, number) - self.population) : self._before(history, number)]
        return worth_repeating(recent, self.repeats, self._horizon(number)) if self.repeats else []

    def _horizon(self, number: int) -> int:
        """The last batch whose evaluations count when candidate `number` is bred."""
        return number // self.batch - self.lag

    def _before(self, history: Sequence[Individual], number: int) -> int:
        """How many individuals are evaluated when `number` is bred, whoever evaluates them and how fast."""
        return bisect_left(history, (number // self.batch - self.lag + 1) * self.batch, key=_number)

    def _founders(self, history: Sequence[Individual], first: int, island: int) -> Sequence[Individual]:
        if self.founded_by(first) == "start":
            return history[: len(self.start)]
        own = [i for i in history[: self._before(history, first)] if i.number % self.islands == island]
        return [min(own, key=self._rank)] if own else []

    def _rank(self, individual: Individual) -> tuple[float, int]:
        """Lower is better; of equals the younger."""
        score = individual.score
        if not self.row.sees_fitness:
            score = random.Random(f"{self.seed}/rank/{individual.number}").random()
        return score, -individual.number

    @_no_search_for_cycles()
    def ask(
        self, history: Sequence[Individual], cache: DuplicateCache, batch: int, size: int | None = None
    ) -> tuple[list[Candidate], Counter[Verdict]]:
        """The candidates of `batch`, and how many programs were generated to find them, by verdict.

        Args:
            history: all evaluated individuals in order of their numbers (later ones than the batch may use are
                ignored).
            cache: all programs asked for so far; the new ones are added to it.
            batch: which batch, counted from 0 without gaps.
            size: fewer candidates than usual, for the last batch of a budget.
        """
        counts: Counter[Verdict] = Counter()
        first = batch * self.batch
        numbers = range(first, first + (size or self.batch))
        candidates: dict[int, Candidate] = {}
        for number in numbers[: max(0, len(self.start) - first)]:
            identity = cache.identify(self.start[number])
            cache.add(identity, number)
            candidates[number] = Candidate(number, -1, ("start",), self.start[number], identity)
        known: dict[tuple[int, str | int], list[Individual]] = {}
        pools = {n: self._pool_of(history, n, known) for n in numbers if n not in candidates}
        offers = {n: self._offers(n, pool) for n, pool in pools.items()}
        while offers:  # a child of each is judged together with the others'; those that were no good offer another
            wave = {n: offer for n, more in offers.items() if (offer := next(more, None)) is not None}
            if len(wave) < len(offers):
                raise SpaceExhausted(
                    f"no new program in {PARENTS * CHILDREN} children of {PARENTS} parents; widen the ops, or raise "
                    "the limits on statements and slots"
                )
            identities = cache.identify_all([offer.program for offer in wave.values()], list(wave))
            for (number, offer), found in zip(wave.items(), identities, strict=True):
                counts[found.verdict] += 1
                if found.verdict is Verdict.NEW:
                    candidates[number] = Candidate(number, *offer, found, self._bound(pools[number]))
                    del offers[number]
        return [candidates[n] for n in numbers], counts

    def _bound(self, pool: Sequence[Individual]) -> float:
        if not (self.bounded and pool):
            return math.inf
        share = 1 - 0.5 ** (1 / min(self.tournament, len(pool)))  # half of all winners are in this part of the pool
        return sorted(individual.score for individual in pool)[int(share * len(pool))]

    def _pool_of(
        self, history: Sequence[Individual], number: int, known: dict[tuple[int, str | int], list[Individual]]
    ) -> list[Individual]:
        island, count = number % self.islands, number // self.islands
        if self.migrate_every and count and count % self.migrate_every == 0:
            island = (island - 1) % self.islands
        epoch = number // self.restart_every if self.restart_every else 0
        if (island, epoch) not in known:
            known[island, epoch] = self.pool(history, number, island)
        return known[island, epoch]

    def _offers(self, number: int, pool: Sequence[Individual]) -> Iterator[_Offer]:
        """Children for candidate `number`, to be tried in order."""
        rng = random.Random(f"{self.seed}/{number}")
        mates: list[int] = []

        def mate() -> Program:
            chosen = self._select(pool, rng)
            mates.append(chosen.number)
            return chosen.program

        for _ in range(PARENTS):
            parent = self._select(pool, rng)
            program, trail = parent.program, list[str]()
            for _ in range(CHILDREN):
                try:
                    child, mutation = self.row.child(program, self.mix, rng, mate)
                except RuntimeError:  # nothing in this parent to mutate
                    break
                trail.append(f"{mutation} {mates[-1]}" if mutation == "crossover" else mutation)
                yield _Offer(parent.number, tuple(trail), child)
                if child.key == parent.program.key:
                    program = child  # no effect yet: keep the change, as a stepping stone for the next one
                else:
                    program, trail = parent.program, []

    def _select(self, pool: Sequence[Individual], rng: random.Random) -> Individual:
        if not pool:
            number = rng.randrange(len(self.start))
            return Individual(number, 0, self.start[number], 0.0)
        rivals = [pool[rng.randrange(len(pool))] for _ in range(min(self.tournament, len(pool)))]
        return min(rivals, key=self._rank)


def _number(individual: Individual) -> int:
    return individual.number
