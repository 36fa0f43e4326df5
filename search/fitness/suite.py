"""Score programs on several tasks at once: the mean log ratio of a program's loss to a reference's.

What makes such a score worth searching on was measured (docs/search.md): tasks whose data are not repeated within a
run, a learning rate that decays to zero, each program at its own best rate, the reference on the same seed, and another
seed in every generation, so that nothing can win by the luck of one seed twice.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import fmean

from optforge.primitives import Program
from optforge.search.fitness.evaluator import BOUND, FLOOR, Fitness, Part, Status
from optforge.search.fitness.step_size import step_sizes
from optforge.search.fitness.sweep import MOST, Sweep
from optforge.search.training.train import train
from optforge.search.training.trial import Outcome

RELATIVE_RATES = tuple(10 ** (-2.1 + k / 2) for k in range(5))
"""Learning-rate grid, as the distance that the first steps go, each as a share of the parameters' norm.

The best rate of 19 known optimizers on the proxies lies between 1.6 % and 40 % of it in 9 of 10 cases, however their
updates are scaled.
"""

MARGINS = ((2, 0.025), (4, 0.022), (5, 0.016), (6, 0.009))
"""After how many tasks a program is given up whose mean score so far is above its bound by more than a margin.

Margins are the standard deviation of the difference between the mean over so many tasks and that over all eight, among
353 programs that a search had trained on all of them.
"""

HOPELESS = 0.1
"""No bound is above it."""

UNTRIED = Outcome(Status.DIVERGED)
"""Stands for a rate that a bounded program was not trained at."""

WHOLE = 3
"""On how many tasks a bounded program is trained at all rates. On later ones three suffice.

They are those around where the reference's best rate usually is, moved by how far the program's best rates were from it
so far. Of 353 programs of a search this raises the score by 0.0009 in the mean (of the best fifth by 0.0002), and the
rank correlation with the score on the whole grid is 0.987.
"""


class UnusableTask(ValueError):
    """Nothing can be scored on a task, whatever the program; the message says why."""


@dataclass(frozen=True)
class Suite:
    """Evaluator that trains programs on several tasks beside a reference, with a new seed for every generation.

    A program's score on a task is the log of its validation loss over the reference's. Both are taken at their own best
    rate of one grid (see `best_of_neighbours`), which is placed by the size of their first steps (see
    `search.fitness.step_size`). Its score is the mean over tasks; negative is better than the reference.

    Attributes:
        sweeps: how programs are trained on each task. Their rates are relative (`RELATIVE_RATES`), their seeds are
            replaced by that of the generation.
        reference: the program that others are compared with.
        seed: of the search, from which each generation's is drawn.
        margins: when programs are given up that come with a bound, see `MARGINS`; the cheap tasks come first. What is
            given up keeps the score of the tasks it was trained on. The bound is a program's own, so that what becomes
            of it does not depend on its company.
    """

    sweeps: tuple[Sweep, ...]
    reference: Program
    seed: int = 0
    margins: tuple[tuple[int, float], ...] = MARGINS

    def __post_init__(self) -> None:
        if not self.sweeps:
            raise ValueError("a suite needs at least one task")

    def __call__(self, programs: Sequence[Program], generation: int = 0, bounds: Sequence[float] = ()) -> list[Fitness]:
        """Fitness of each program, in order, on the seed of `generation`.

        Args:
            programs: what to score.
            generation: chooses the seed.
            bounds: the highest score of interest for each program; by default all are trained on every task.
        """
        seed = generation_seed(self.seed, generation)
        given = bounds or [math.inf] * len(programs)
        entrants = left = [_Entrant(program, bound) for program, bound in zip(programs, given, strict=True)]
        for done, sweep in enumerate(self.sweeps):
            if bounds and (margin := dict(self.margins).get(done)) is not None:
                left = [e for e in left if combined(e.parts).score <= min(e.bound, HOPELESS) + margin]
            if not left:
                break
            usual = usual_rate(replace(sweep, seeds=(0,)), self.reference) if bounds else 0
            asked = [(e.program, e.rates(usual, len(sweep.rates))) for e in left]
            for entrant, part in zip(left, self._task(replace(sweep, seeds=(seed,)), asked), strict=True):
                entrant.add(part, usual)
        return [combined(e.parts) for e in entrants]

    def _task(self, sweep: Sweep, programs: Sequence[tuple[Program, range]]) -> list[Part | Fitness]:
        """Each program's part on one task, of some of the rates; the outcome itself where the evaluation failed."""
        entrants = [*programs, (self.reference, range(len(sweep.rates)))]
        sizes = step_sizes(sweep.task, [program for program, _ in entrants], sweep.seeds[0])
        asked = [
            sweep.trials(program, 1 / size)[rates.start : rates.stop]
            for (program, rates), size in zip(entrants, sizes, strict=True)
        ]
        outcomes = train([t for own in asked for t in own], engine=sweep.engine, most=MOST)
        own = iter(outcomes)
        *found, reference = (
            sweep.fitness([next(own) if k in rates else UNTRIED for k in range(len(sweep.rates))])
            for _, rates in entrants
        )
        if reference.status is not Status.OK:
            raise UnusableTask(f"the reference cannot be trained on {sweep.task.name}: {reference.reason}")
        start = outcomes[-1].start
        if not (math.isfinite(start) and start > 0):
            raise UnusableTask(f"the loss of {sweep.task.name} before training must be positive, got {start:g}")
        return [
            own if own.status is Status.FAILED else part_of(sweep, own, reference, start, size)
            for own, size in zip(found, sizes, strict=False)
        ]


@dataclass
class _Entrant:
    """A program on its way through the tasks."""

    program: Program
    bound: float
    parts: list[Part | Fitness] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)  # best rates, counted from where the reference's usually is

    def rates(self, usual: int, count: int) -> range:
        """The positions on a grid of `count` rates at which it is trained next."""
        if self.bound == math.inf or len(self.parts) < WHOLE or not self.moved:
            return range(count)
        first = min(max(usual + round(fmean(self.moved)) - 1, 0), max(count - 3, 0))
        return range(first, min(first + 3, count))

    def add(self, part: Part | Fitness, usual: int) -> None:
        """What came of it."""
        self.parts.append(part)
        if isinstance(part, Part) and min(part.by_rate) < math.inf:
            self.moved.append(part.by_rate.index(min(part.by_rate)) - usual)


@lru_cache(maxsize=64)
def usual_rate(sweep: Sweep, reference: Program) -> int:
    """Position of the reference's best rate on the grid of a task, on one seed."""
    (size,) = step_sizes(sweep.task, [reference], sweep.seeds[0])
    losses = sweep.fitness(train(sweep.trials(reference, 1 / size), engine=sweep.engine, most=MOST)).by_rate
    return losses.index(min(losses)) if losses else len(sweep.rates) // 2


def generation_seed(seed: int, generation: int) -> int:
    """The seed of weights and batches of a generation; above those that comparisons use."""
    return random.Random(f"{seed}/generation/{generation}").randrange(2**20, 2**31)


def part_of(sweep: Sweep, own: Fitness, reference: Fitness, start: float, size: float) -> Part:
    """A program's score on one task.

    Args:
        sweep: how it and the reference were trained.
        own, reference: their outcomes.
        start: validation loss before training, which counts for a rate that diverged.
        size: of the program's steps, by which its rates were divided.
    """
    (value, at), (standard, _) = (best_of_neighbours([_log(x, start) for x in f.by_rate]) for f in (own, reference))
    score = min(BOUND, max(-BOUND, value - standard))
    diverged = own.status is not Status.OK
    return Part(sweep.task.name, score, math.nan if diverged else sweep.rates[at] / size, own.by_rate)


def best_of_neighbours(values: Sequence[float]) -> tuple[float, int]:
    """The lowest mean of two neighbours on a grid, and the position of the better one of them.

    The minimum over single points would favour programs for the luck of one run.
    """
    if len(values) == 1:
        return values[0], 0
    pairs = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    first = min(range(len(pairs)), key=pairs.__getitem__)
    return pairs[first], first + (values[first + 1] < values[first])


def combined(parts: Sequence[Part | Fitness]) -> Fitness:
    """The fitness of a program from its parts; DIVERGED if it diverged on every task."""
    for part in parts:
        if isinstance(part, Fitness):
            return part
    scored = [part for part in parts if isinstance(part, Part)]
    rates = [math.log(part.lr) for part in scored if math.isfinite(part.lr)]
    if not rates:
        return Fitness(
            math.inf, Status.DIVERGED, "the loss became non-finite at every rate of every task", parts=tuple(scored)
        )
    score = math.fsum(part.score for part in scored) / len(scored)
    lr = math.exp(math.fsum(rates) / len(rates))
    edge = sum(part.edge for part in scored) > len(scored) / 2
    return Fitness(score, Status.OK, "", lr, edge=edge, parts=tuple(scored))


def _log(loss: float, start: float) -> float:
    """Log of a loss, no lower than the floor; of the loss before training if the run diverged or ended above it."""
    # below 0 only by rounding: all losses of tasks are 0 at best
    return math.log(min(max(loss, 0.0), start) + FLOOR * start)
