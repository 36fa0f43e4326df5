"""What an evaluated program is worth, and the contract of everything that evaluates programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from optforge.primitives import Program, parse_program, print_program
from optforge.search.training.executors.pool import Work
from optforge.search.training.trial import Status

FLOOR = 1e-3
"""Share of the loss before training below which losses count as equal: a task solved to that is solved."""

BOUND = 1.0
"""Most that one run counts, in nats, for or against a program: a factor e in the loss."""


class Part(NamedTuple):
    """What a program is worth on one of several tasks.

    Attributes:
        task: its name.
        score: log of the loss over the reference's, see `search.fitness.suite`.
        lr: the best learning rate, or NaN.
        by_rate: validation loss at each rate of the grid, infinite where training diverged or the rate was left out.
    """

    task: str
    score: float
    lr: float
    by_rate: tuple[float, ...]

    @property
    def edge(self) -> bool:
        """Whether the best rate is the first or last of the grid."""
        return len(self.by_rate) > 1 and min(self.by_rate) in (self.by_rate[0], self.by_rate[-1])


@dataclass(frozen=True)
class Fitness:
    """Outcome of evaluating one program; lower scores are better.

    Attributes:
        score: validation loss of the best learning rate, averaged over seeds, or, on several tasks, the mean of what
            `search.fitness.suite` says; infinite unless `status` is OK.
        status: how the evaluation ended.
        reason: a sentence on why, for anything but OK.
        lr: the best learning rate, or NaN.
        by_rate: mean validation loss for each learning rate of the grid, infinite where it diverged or was left out.
        edge: whether the best rate is the first or last of the grid, so that a wider one might do better.
        by_seed: validation loss at the best rate for each seed, for paired comparisons; not kept in ledgers.
        parts: the same on each of several tasks.
    """

    score: float
    status: Status
    reason: str = ""
    lr: float = math.nan
    by_rate: tuple[float, ...] = ()
    edge: bool = False
    by_seed: tuple[float, ...] = ()
    parts: tuple[Part, ...] = ()


class Evaluator(Protocol):
    """Programs to fitnesses: same order, deterministic, never raising because of a candidate."""

    def __call__(self, programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        """Fitness of each program; `generation` says which seeds are used, where they change during a search.

        An evaluator that can stop early also takes ``bounds``, one for each program: a score that is too high to be of
        interest, see `search.fitness.suite.Suite`.
        """
        ...


class Bounded(NamedTuple):
    """A program to evaluate, which may be given up once its score is unlikely to end below `bound`."""

    program: Program
    bound: float


def evaluating(factory: Callable[..., Any]) -> Work:
    """The work of evaluating programs, or `Bounded` ones, by the `Evaluator` that `factory` makes inside each worker.

    The factory must be picklable.
    """
    return Work(partial(_Evaluating, factory), _encoded, _decoded, _broken)


class _Evaluating:
    def __init__(self, factory: Callable[[], Any]) -> None:
        self.evaluator = factory()

    def __call__(self, items: Sequence[Bounded], generation: int) -> list[Fitness]:
        programs, bounds = [item.program for item in items], [item.bound for item in items]
        more = {} if all(bound == math.inf for bound in bounds) else {"bounds": bounds}
        found: list[Fitness] = self.evaluator(programs, generation, **more)
        return found


def _encoded(item: Program | Bounded) -> tuple[str, float]:
    program, bound = item if isinstance(item, Bounded) else (item, math.inf)
    return print_program(program), bound


def _decoded(item: tuple[str, float]) -> Bounded:
    return Bounded(parse_program(item[0]), item[1])


def _broken(reason: str) -> Fitness:
    return Fitness(math.inf, Status.FAILED, reason)


__all__ = ["BOUND", "FLOOR", "Bounded", "Evaluator", "Fitness", "Part", "Status", "evaluating"]
