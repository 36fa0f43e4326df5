"""Regularized evolution (Real et al. 2019) over programs, as ask and tell without hidden state.

What is asked depends only on the configuration and on what was told before, never on timing: candidate `n` draws from
a generator seeded by the search's seed and `n`, and batch `b` of candidates is bred from the individuals of batches up
to ``b - lag``. So a search can be interrupted anywhere and resumed to the same future, with one worker or many.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from primitives import Program
from search.cache import DuplicateCache, Identity, Verdict
from search.mutation import Space, mutate

PARENTS = 50  # tried for one candidate before the space counts as exhausted
CHILDREN = 20  # of one parent


class Individual(NamedTuple):
    """An evaluated program. Lower scores are better; infinite if it could not be trained."""

    number: int
    batch: int
    program: Program
    score: float


class Candidate(NamedTuple):
    """A program to evaluate, with its number, its parent's number (-1 for a start program) and how it came about."""

    number: int
    parent: int
    mutations: tuple[str, ...]
    program: Program
    identity: Identity


class SpaceExhausted(RuntimeError):
    """No new program was found in a great many mutations."""


@dataclass(frozen=True)
class Evolution:
    """The configuration of a search, and what follows from it.

    Attributes:
        start: programs to start from.
        space: which programs mutations may reach.
        seed: of all randomness.
        population: how many of the youngest individuals may become parents (the oldest die).
        tournament: how many of them compete to become one; more means greedier.
        batch: candidates per batch, which are trained together.
        lag: how many batches may be in flight; also the most workers that are ever busy at once.
    """

    start: tuple[Program, ...]
    space: Space
    seed: int = 0
    population: int = 100
    tournament: int = 10
    batch: int = 32
    lag: int = 2

    def __post_init__(self) -> None:
        for name in ("population", "tournament", "batch", "lag"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.start:
            raise ValueError("evolution needs at least one start program")

    def parents(self, history: Sequence[Individual], batch: int) -> Sequence[Individual]:
        """The individuals from which `batch` is bred: the youngest `population` that are old enough."""
        last = len(history)
        while last and history[last - 1].batch > batch - self.lag:
            last -= 1
        return history[max(0, last - self.population) : last]

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
        # each candidate offers a child, all are judged together, and those that were no good offer another
        parents = self.parents(history, batch)
        breeding = {n: self._breed(n, parents) for n in numbers if n not in candidates}
        offered = {n: next(breed) for n, breed in breeding.items()}
        while offered:
            identities = cache.identify_all(list(offered.values()), list(offered))
            for number, identity in zip(list(offered), identities, strict=True):
                counts[identity.verdict] += 1
                try:
                    offered[number] = breeding[number].send(identity)
                except StopIteration as end:
                    candidates[number] = end.value
                    del offered[number]
        return [candidates[n] for n in numbers], counts

    def _breed(self, number: int, parents: Sequence[Individual]) -> Generator[Program, Identity, Candidate]:
        """Offer children for `number` until one is new."""
        rng = random.Random(f"{self.seed}/{number}")
        for _ in range(PARENTS):
            parent = self._select(parents, rng)
            program, trail = parent.program, list[str]()
            for _ in range(CHILDREN):
                child, mutation = mutate(program, self.space, rng)
                identity = yield child
                if identity.verdict is Verdict.NEW:
                    return Candidate(number, parent.number, (*trail, mutation), child, identity)
                if child.key == parent.program.key:
                    # no effect yet: keep the change, as a stepping stone for the next one
                    program, trail = child, [*trail, mutation]
                else:
                    program, trail = parent.program, []
        raise SpaceExhausted(
            f"no new program in {PARENTS * CHILDREN} children of {PARENTS} parents; widen the ops, or raise the limits "
            "on statements and slots"
        )

    def _select(self, parents: Sequence[Individual], rng: random.Random) -> Individual:
        if not parents:
            number = rng.randrange(len(self.start))
            return Individual(number, 0, self.start[number], 0.0)
        rivals = [parents[rng.randrange(len(parents))] for _ in range(min(self.tournament, len(parents)))]
        return min(rivals, key=lambda rival: (rival.score, -rival.number))


@dataclass
class Statistics:
    """What a search did so far, in numbers of programs."""

    verdicts: Counter[Verdict] = field(default_factory=Counter)
    trained: int = 0
    diverged: int = 0

    @property
    def generated(self) -> int:
        """All programs made by mutation, trained or not."""
        return self.verdicts.total()

    @property
    def duplicates(self) -> int:
        """Programs recognised by key or by fingerprint."""
        return self.verdicts[Verdict.SAME_KEY] + self.verdicts[Verdict.SAME_BEHAVIOUR]
