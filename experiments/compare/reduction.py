"""A comparison as a reduction over trials: tuning, reported runs, and the rates around the tuned one.

Nothing here trains or waits (see `search.training.asking`). What is asked for follows from the plan and from outcomes
alone, so that any number of processes agree about it, and a comparison that was interrupted comes to the same end.

First all optimizers are tuned; where a winner lies in the outer tenth of a range, that range is widened, and every
optimizer gets as many more settings. Then follow the reported runs, and learning rates around the tuned one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from optforge.experiments.compare.comparison import Protocol, Setting
from optforge.experiments.compare.plan import Plan
from optforge.experiments.compare.spaces import RATE, Space
from optforge.experiments.errors import FailedError, UserError
from optforge.experiments.programs.rules import configured, with_base
from optforge.search.training.asking import Asking, together
from optforge.search.training.proposals import Point, Proposer, sobol
from optforge.search.training.task import Task
from optforge.search.training.trial import Outcome, Status, Trial


@dataclass(frozen=True)
class Tuned:
    """What tuning came to: of each optimizer its settings in the order in which they were tried, and its space."""

    settings: tuple[tuple[Setting, ...], ...]
    spaces: tuple[Space, ...]

    def winner(self, row: int) -> Setting:
        """The setting with the lowest loss, the earlier of equals."""
        return min(self.settings[row], key=lambda setting: setting.loss)

    def at_edge(self, row: int) -> tuple[str, ...]:
        """Names of the quantities of which the winner lies in the outer tenth of the range."""
        space = self.spaces[row]
        return tuple(space.dimensions[index].name for index, _ in space.edges(self.winner(row).at))


@dataclass(frozen=True)
class Unit:
    """One task at one horizon: how optimizers were tuned, and what came of them.

    Attributes:
        task, horizon: which.
        tuned: how each optimizer was tuned.
        around: of each, settings at other rates than the tuned one.
        outcomes: of each, its reported runs by seed.
    """

    task: str
    horizon: float
    tuned: Tuned
    around: tuple[tuple[Setting, ...], ...]
    outcomes: tuple[tuple[Outcome, ...], ...]


def units(plan: Plan, find: Callable[[str], Task]) -> Asking[list[Unit]]:
    """All tasks and horizons of a plan; `find` gives a task by its name."""
    return together([unit(plan, find(task), task, horizon) for task, horizon in plan.units])


def unit(plan: Plan, task: Task, name: str, horizon: float) -> Asking[Unit]:
    """One task at one horizon."""
    protocol = plan.protocol(task, horizon)
    tuned = yield from tuning(plan, protocol)
    rows = range(len(plan.rows))
    best = [tuned.winner(row).values for row in rows]
    final = [_trials(plan, protocol, row, best[row], protocol.seeds, reported=True) for row in rows]
    rates = [[b | {RATE: float(f"{b[RATE] * factor:.10g}")} for factor in plan.factors if factor != 1] for b in best]
    beside = [[_trials(plan, protocol, row, v, protocol.tune_seeds) for v in rates[row]] for row in rows]
    runs, others = yield from _both(final, [trials for own in beside for trials in own])
    around = tuple(
        tuple(_setting(task, v, others.pop(0), ()) for v in rates[row]) for row in rows
    )  # in the order in which they were asked for
    return Unit(name, horizon, tuned, around, tuple(map(tuple, runs)))


def tuning(plan: Plan, protocol: Protocol) -> Asking[Tuned]:
    """Every optimizer's settings: as many for each, in ranges that are widened for all where one needs it."""
    rows = range(len(plan.rows))
    current = plan.spaces()
    strips: list[tuple[Space, ...]] = [() for _ in rows]
    tried: list[list[Setting]] = [[] for _ in rows]
    for widened in range(plan.widenings + 1):
        left = plan.extra if widened else plan.trials
        while left:
            count = left if plan.sampler == "qmc" else 1  # what learns from losses proposes one at a time
            points = []
            for row in rows:
                parts = (plan.sampler == "qmc" and strips[row]) or (current[row],)
                points.append(_points(plan, count, parts, current[row], tried[row]))
            values = [[current[row].values(at) for at in points[row]] for row in rows]
            asked = [[_trials(plan, protocol, row, v, protocol.tune_seeds) for v in values[row]] for row in rows]
            outcomes = yield [trial for own in asked for trials in own for trial in trials]
            found = _split(outcomes, [len(trials) for own in asked for trials in own])
            for row in rows:
                new = [
                    _setting(protocol.task, v, found.pop(0), at) for v, at in zip(values[row], points[row], strict=True)
                ]
                tried[row] += new
            left -= count
        tuned = Tuned(tuple(map(tuple, tried)), tuple(current))
        edges = [current[row].edges(tuned.winner(row).at) for row in rows]
        if widened == plan.widenings or not any(edges):
            break
        for row in rows:
            current[row], strips[row] = current[row].widened(edges[row])
    return tuned


def _points(
    plan: Plan, count: int, parts: Sequence[Space], whole: Space, tried: Sequence[Setting]
) -> tuple[Point, ...]:
    """Coordinates of the next settings; they take turns among `parts`. The first of all is the centre."""
    dimensions, first = len(whole.dimensions), len(tried)
    centre = whole.place((0.5,) * dimensions)
    if plan.sampler == "qmc":
        found = list((centre, *_sequence(dimensions, first + count - 1))[first : first + count])
    elif not tried:
        found = [centre]
    else:
        proposer = Proposer(plan.sampler, dimensions, seed=len(tried))
        proposer.tell([whole.place(setting.at) for setting in tried], [setting.loss for setting in tried])
        found = proposer.ask(count)
    return tuple(tuple(parts[k % len(parts)].inside(point)) for k, point in enumerate(found))


@lru_cache(maxsize=64)
def _sequence(dimensions: int, count: int) -> tuple[Point, ...]:
    """The same for every optimizer: a point is the same place in everybody's ranges."""
    return tuple(sobol(dimensions, count)) if count else ()


def _trials(
    plan: Plan, protocol: Protocol, row: int, values: Mapping[str, float], seeds: Sequence[int], reported: bool = False
) -> list[Trial]:
    own = plan.rows[row]
    rule = with_base(own.rule, configured(own.program, values))
    first = Trial(
        rule, values[RATE], protocol.task, seeds[0], protocol.steps, protocol.schedule, protocol.warmup, protocol.clip,
        splits=("valid", "test") if reported else ("valid",), watch=reported,
    )  # fmt: skip
    return [replace(first, seed=seed) for seed in seeds]


def _setting(task: Task, values: dict[str, float], outcomes: Sequence[Outcome], at: Sequence[float]) -> Setting:
    check(task, outcomes)
    counted = tuple(outcome.counted() for outcome in outcomes)
    return Setting(
        values=values,
        loss=math.fsum(counted) / len(counted),
        losses=tuple(outcome.loss["valid"] for outcome in outcomes),
        counted=counted,
        failed=tuple(outcome.failed for outcome in outcomes),
        at=tuple(at),
    )


def check(task: Task, outcomes: Sequence[Outcome]) -> None:
    """Refuse runs of which nothing can be said.

    Raises:
        FailedError: for a run that broke.
        UserError: for a task whose loss before training is no number, which failed runs could not count as.
    """
    for outcome in outcomes:
        if outcome.status is Status.FAILED:
            raise FailedError(f"a run on {task.name} broke, and nothing can be compared without it: {outcome.reason}")
        if not math.isfinite(outcome.start):
            raise UserError(
                f"the validation loss of {task.name} before training is not finite; mend its data or its loss"
            )


def _both(
    first: Sequence[Sequence[Trial]], second: Sequence[Sequence[Trial]]
) -> Asking[tuple[list[Sequence[Outcome]], list[Sequence[Outcome]]]]:
    """Outcomes of two lists of lists of trials, asked for at once."""
    every = [*first, *second]
    outcomes = yield [trial for trials in every for trial in trials]
    found = _split(outcomes, [len(trials) for trials in every])
    return found[: len(first)], found[len(first) :]


def _split(outcomes: Sequence[Outcome], sizes: Sequence[int]) -> list[Sequence[Outcome]]:
    found, first = [], 0
    for size in sizes:
        found.append(outcomes[first : first + size])
        first += size
    return found
