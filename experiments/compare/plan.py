"""The plan of a comparison: everything that it is determined by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from optforge.experiments.compare.comparison import SEEDS, TUNE_SEEDS, Protocol
from optforge.experiments.compare.spaces import Space, spaces
from optforge.experiments.programs import baseline_name
from optforge.experiments.programs.rules import LearnedRate, base_program, parse_rule
from optforge.primitives import Program
from optforge.search.training import Task
from optforge.search.training.schedule import SCHEDULES

FACTORS = tuple(float(f"{10 ** (k / 4):.4g}") for k in range(-4, 5))
"""Factors of the tuned learning rate at which sensitivity is measured: quarter-decades up to one decade away."""

MOST_RUNS, MOST_TIMES, MOST_STEPS = 10_000, 1_000, 10_000_000
"""Of trials and of seeds, of a horizon, and of steps: more is a slip, and would fill the memory before any training."""


@dataclass(frozen=True)
class Row:
    """An optimizer in a plan.

    Attributes:
        name: unique in the plan.
        text: its rule.
        rate: centre of its learning rate.
        control: whether it is one.
        reference: what `is_reference` says, where that is not left to the rule.
    """

    name: str
    text: str
    rate: float
    control: bool = False
    reference: bool | None = None

    @property
    def rule(self) -> Program | LearnedRate:
        """What trains."""
        return _parsed(self.text)

    @property
    def program(self) -> Program:
        """The update rule in it."""
        return base_program(self.rule)

    @property
    def is_reference(self) -> bool:
        """Whether others are set beside it; by default controls and baselines are references."""
        known = isinstance(self.rule, Program) and baseline_name(self.rule) is not None
        return self.control or known if self.reference is None else self.reference


@lru_cache(maxsize=256)
def _parsed(text: str) -> Program | LearnedRate:
    return parse_rule(text)


@dataclass(frozen=True)
class Plan:
    """Everything that a comparison is determined by; it is kept as JSON.

    Attributes:
        rows: the optimizers.
        tasks: names of tasks, as `optforge tasks` has them.
        horizons: lengths of runs, as multiples of each task's own.
        steps: of each run at horizon 1; None for the task's own.
        trials: configurations tried for each optimizer before any widening.
        dimensions: at most so many quantities are tuned.
        sampler: ``"qmc"`` or ``"tpe"``.
        seeds: number of reported runs of each optimizer.
        tune_seeds: number of runs of each configuration.
        schedule, warmup, clip: of the learning rate; warm-up as a share of the run; largest norm of gradients.
        smallest_effect: share of the loss below which a difference does not matter.
        widenings: how often ranges may be widened.
        factors: of the tuned learning rate, at which sensitivity is measured, ascending, 1 included.
        origins: what is known of programs that a search found, for the report.
        fingerprints: of each task, hashes of what it is (see `experiments.compare.fingerprints`), so that no
            result of another task is taken for one of its own; empty in plans from before there were any.
    """

    rows: tuple[Row, ...]
    tasks: tuple[str, ...]
    horizons: tuple[float, ...] = (1.0,)
    steps: int | None = None
    trials: int = 16
    dimensions: int = 3
    sampler: str = "qmc"
    seeds: int = 10
    tune_seeds: int = 2
    schedule: str = "cosine"
    warmup: float = 0.05
    clip: float = 0.0
    smallest_effect: float = 0.01
    widenings: int = 2
    factors: tuple[float, ...] = FACTORS
    origins: tuple[dict[str, Any], ...] = ()
    fingerprints: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The plan in JSON's own types."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Plan:
        """The plan that `as_json` wrote; ValueError, KeyError or TypeError for another object."""
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        return cls(**{**found, **lists, "rows": tuple(Row(**row) for row in found["rows"])})

    @property
    def extra(self) -> int:
        """Trials that each optimizer gets when a range is widened."""
        return max(1, self.trials // 4)

    @property
    def units(self) -> list[tuple[str, float]]:
        """Every task with every horizon."""
        return [(task, horizon) for task in self.tasks for horizon in self.horizons]

    def protocol(self, task: Task, horizon: float) -> Protocol:
        """The protocol of one unit."""
        steps = max(1, round(horizon * (task.steps if self.steps is None else self.steps)))
        return Protocol(
            task, self.factors, tuple(range(TUNE_SEEDS[0], TUNE_SEEDS[0] + self.tune_seeds)),
            tuple(range(SEEDS[0], SEEDS[0] + self.seeds)), steps, self.smallest_effect, widenings=self.widenings,
            trials=self.trials, dimensions=len(self.spaces()[0].dimensions), sampler=self.sampler,
            schedule=self.schedule, warmup=min(steps - 1, round(self.warmup * steps)), clip=self.clip, horizon=horizon,
        )  # fmt: skip

    def spaces(self) -> list[Space]:
        """Where each optimizer is tuned at first."""
        rows = self.rows
        rates, controls = [row.rate for row in rows], [row.control for row in rows]
        return spaces([row.program for row in rows], rates, self.dimensions, controls)


def check_plan(plan: Plan) -> None:
    """Raise `ValueError` for a plan that makes no comparison."""
    if not plan.rows or not plan.tasks:
        raise ValueError("there is nothing to compare; name at least one optimizer and one task")
    if plan.sampler not in ("qmc", "tpe"):
        raise ValueError(f"unknown sampler {plan.sampler!r}; there are: qmc, tpe")
    if min(plan.trials, plan.seeds, plan.tune_seeds, plan.dimensions) < 1:
        raise ValueError("trials, seeds, tuning seeds and dimensions must be at least 1")
    if max(plan.trials, plan.seeds, plan.tune_seeds) > MOST_RUNS:
        raise ValueError(f"trials, seeds and tuning seeds must be at most {MOST_RUNS:,}; name fewer")
    if not plan.horizons or any(not (math.isfinite(h) and h > 0) for h in plan.horizons):
        raise ValueError(f"horizons are positive multiples of a task's own number of steps, got {plan.horizons}")
    if max(plan.horizons) > MOST_TIMES or (plan.steps or 0) * max(plan.horizons) > MOST_STEPS:
        raise ValueError(f"horizons must be at most {MOST_TIMES:,}, and steps with them at most {MOST_STEPS:,}")
    if not (0 <= plan.warmup < 1 and 0 <= plan.clip < math.inf):
        raise ValueError("warm-up is a share of the run below 1, clipping a norm of at least 0")
    if plan.schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {plan.schedule!r}; there are: {', '.join(SCHEDULES)}")
