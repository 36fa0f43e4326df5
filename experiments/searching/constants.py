"""Optuna tunes the numbers in a program: literals, hyperparameters and the learning rate, each on its own scale.

Evolution moves constants too, but blindly and rarely; the finalists of a search, and whatever they are compared with,
get the same number of settings here. A setting is trained from each seed, on the same batches for all; those that are
proposed together train together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from optforge.primitives import Const, Hyper, Program, print_program
from optforge.search.space.draft import Draft, nudged
from optforge.search.training.asking import Asking
from optforge.search.training.proposals import Point, Proposer
from optforge.search.training.task import Task
from optforge.search.training.trial import Trial

SAMPLERS = ("tpe", "cmaes")
SEEDS = (100, 101)
"""Seeds of the trials: neither those of searches and funnels (below) nor of comparisons (above)."""

BATCH = 16
"""Settings that train together; each is proposed without knowing the others of its batch."""

FACTOR = 4.0
"""How far a number may move: by this factor either way, of its distance from 1 if it is a share near 1."""


class Place(NamedTuple):
    """A number that is tuned: where it is (statement and argument, or index of a hyperparameter), and its scale."""

    where: tuple[int, int] | int
    value: float
    scale: str

    def moved(self, away: float) -> float:
        """The number at a coordinate from -1 to 1, to four digits; at 0 it is what it was."""
        if away == 0:
            return self.value
        if self.scale == "linear":
            return float(f"{self.value + away * (abs(self.value) or 0.5):.4g}")
        found = nudged(abs(self.value), self.scale, away * math.log(FACTOR))
        near = self.scale == "unit" and found > 0.5  # its distance from 1 is what counts
        found = 1 - float(f"{1 - found:.4g}") if near else float(f"{found:.4g}")
        return math.copysign(found, self.value)


@dataclass(frozen=True)
class TunedConstants:
    """What tuning gave.

    Attributes:
        program, lr: with the numbers of the best trial; the first trial is the program as it was.
        loss, before: validation loss of that trial and of the first one, mean over the seeds; infinite if it diverged.
        trials, failed: how many settings were tried, and how many of these diverged.
        numbers: how many were tuned, the learning rate included.
        sampler, seeds: how they were proposed, and the seeds of the runs.
    """

    program: Program
    lr: float
    loss: float
    before: float
    trials: int
    failed: int
    numbers: int
    sampler: str
    seeds: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it, the program as text."""
        return asdict(replace(self, program=None)) | {"program": print_program(self.program)}  # type: ignore[arg-type]


def places(program: Program) -> tuple[Place, ...]:
    """The numbers of a program: literals but 0, 1 and -1, which are structure, and hyperparameters not switched off."""
    draft = Draft(program)
    found = []
    for where in draft.places():
        value = getattr(draft.get(where), "value", 0.0)
        if value not in (0.0, 1.0, -1.0):
            found.append(Place(where, value, "unit" if 0.5 < value < 1 else "log"))
    for index, hyper in enumerate(draft.hypers):
        if hyper.default or hyper.scale == "linear":
            found.append(Place(index, hyper.default, hyper.scale))
    return tuple(found)


def number_at(program: Program, where: tuple[int, int] | int) -> float:
    """The number that `program` has in a place."""
    draft = Draft(program)
    return (
        draft.hypers[where].default if isinstance(where, int) else float(getattr(draft.get(where), "value", math.nan))
    )


def with_numbers(program: Program, where: Sequence[Place], values: Sequence[float]) -> Program:
    """`program` with other numbers in these places."""
    draft = Draft(program)
    for place, value in zip(where, values, strict=True):
        if isinstance(place.where, int):
            old = draft.hypers[place.where]
            draft.hypers[place.where] = Hyper(old.name, value, old.scale)
        else:
            draft.put(place.where, Const(value))
    built = draft.build()
    return Program(built.state, built.hypers, built.body, built.update, built.next_state, program.fallback)


def tune_constants(
    program: Program,
    task: Task,
    lr: float,
    *,
    trials: int,
    seeds: Sequence[int] = SEEDS,
    steps: int | None = None,
    sampler: str = "tpe",
    seed: int = 0,
    schedule: str = "constant",
    warmup: int = 0,
) -> Asking[TunedConstants]:
    """Tune the numbers of `program` and its learning rate on `task`, by validation loss at the end of the run.

    A reduction over trials (see `search.training.asking`): a store makes it resumable.

    Args:
        program: the update rule; dead code is left out first.
        task: what is trained.
        lr: learning rate of the first setting.
        trials: how many settings there are in all, the first included.
        seeds: of initial weights and batches, the same for all settings.
        steps: length of a run; the task's own by default.
        sampler: ``"tpe"`` (tree-structured Parzen estimator) or ``"cmaes"`` (covariance matrix adaptation).
        seed: of the sampler.
        schedule, warmup: of the learning rate, see `search.training.trial.Trial`.

    Raises:
        ValueError: for an unknown sampler or fewer trials than one.
    """
    if sampler not in SAMPLERS or trials < 1:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)} and trials at least 1; got {sampler}, {trials}")
    program = program.pruned()
    where = places(program)
    proposer = Proposer(sampler, len(where) + 1, seed)
    points: list[Point] = [(0.5,) * (len(where) + 1)]
    settings: list[tuple[Program, float]] = []
    losses: list[float] = []
    while True:
        new = [_setting(program, lr, where, point) for point in points]
        outcomes = yield [Trial(rule, rate, task, s, steps or 0, schedule, warmup) for rule, rate in new for s in seeds]
        each = [outcomes[i : i + len(seeds)] for i in range(0, len(outcomes), len(seeds))]
        found = [math.fsum(outcome.valid for outcome in own) / len(seeds) for own in each]
        settings, losses = settings + new, losses + found
        proposer.tell(points, found)
        if len(losses) >= trials:
            break
        points = proposer.ask(min(BATCH, trials - len(losses)))
    best = losses.index(min(losses))
    tuned, rate = settings[best]
    return TunedConstants(
        program=tuned,
        lr=rate,
        loss=losses[best],
        before=losses[0],
        trials=len(losses),
        failed=sum(not math.isfinite(loss) for loss in losses),
        numbers=len(where) + 1,
        sampler=sampler,
        seeds=tuple(seeds),
    )


def _setting(program: Program, lr: float, where: Sequence[Place], point: Point) -> tuple[Program, float]:
    """Program and rate at a point of the unit cube, whose centre is what they were."""
    first, *others = (2 * x - 1 for x in point)
    values = [place.moved(x) for place, x in zip(where, others, strict=True)]
    return with_numbers(program, where, values), float(f"{lr * FACTOR**first:.4g}") if first else lr
