"""Fitness on one task: the mean final validation loss of a program at its best learning rate of a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optforge.primitives import Program
from optforge.search.fitness.evaluator import Fitness
from optforge.search.training.task import Task
from optforge.search.training.train import Engine, train
from optforge.search.training.trial import Outcome, Status, Trial

MOST = 1 << 20  # runs in one batch: what a search trains together is bounded by memory alone


@dataclass(frozen=True)
class Sweep:
    """Evaluator that trains each program at every rate of a grid from every seed.

    It is the same for every candidate of a search, so that scores can be compared.

    Attributes:
        task: what is trained.
        rates: learning-rate grid, ascending.
        seeds: each gives initial weights and the order of the batches, the same for all candidates.
        steps: length of a run, the task's own by default.
        schedule: of the learning rate, a name in `search.training.schedule.SCHEDULES`.
        warmup: steps over which the rate rises before the schedule begins.
        precision: of forward and backward pass, see `search.training.trial.Trial`.
        engine: what trains, see `search.training.train`.

    Raises:
        ValueError: for a grid that does not ascend, no seeds, or negative steps.
    """

    task: Task
    rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 0
    schedule: str = "constant"
    warmup: int = 0
    precision: str = "float32"
    engine: Engine | None = None

    def __post_init__(self) -> None:
        if not self.rates or any(not (math.isfinite(lr) and lr > 0) for lr in self.rates):
            raise ValueError(f"the grid needs at least one learning rate, all positive; got {self.rates}")
        if list(self.rates) != sorted(set(self.rates)):
            raise ValueError(f"the learning-rate grid must ascend without repeats; got {self.rates}")
        if not self.seeds or self.steps < 0:
            raise ValueError(f"at least one seed and a positive number of steps are needed; got {self.seeds}")
        object.__setattr__(self, "steps", self.steps or self.task.steps)

    def __call__(self, programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        """Fitness of each program, in order; the same in every generation."""
        trials = [self.trials(program) for program in programs]
        outcomes = train([t for own in trials for t in own], engine=self.engine, most=MOST)
        size = len(self.rates) * len(self.seeds)
        return [self.fitness(outcomes[i * size : (i + 1) * size]) for i in range(len(programs))]

    def trials(self, program: Program, scale: float = 1.0) -> list[Trial]:
        """What a program is trained as: every rate, times `scale`, from every seed, in this order."""
        return [
            Trial(program, lr * scale, self.task, seed, self.steps, self.schedule, self.warmup, 0.0, self.precision)
            for lr in self.rates
            for seed in self.seeds
        ]

    def fitness(self, outcomes: Sequence[Outcome]) -> Fitness:
        """Fitness of one program from the outcomes of its trials."""
        count = len(self.seeds)
        rows = [outcomes[i : i + count] for i in range(0, len(outcomes), count)]
        losses = tuple(math.fsum(o.valid for o in row) / count for row in rows)
        best = min(range(len(losses)), key=losses.__getitem__)
        if losses[best] == math.inf:
            return self._unusable(outcomes, losses)
        edge = len(losses) > 1 and best in (0, len(losses) - 1)
        return Fitness(losses[best], Status.OK, "", self.rates[best], losses, edge, tuple(o.valid for o in rows[best]))

    def _unusable(self, outcomes: Sequence[Outcome], losses: tuple[float, ...]) -> Fitness:
        if broken := [o for o in outcomes if o.status is Status.FAILED]:
            return Fitness(math.inf, Status.FAILED, broken[0].reason)
        steps = [o.step for o in outcomes if o.step is not None]
        when = f", first at step {min(steps)}" if steps else ""
        reason = f"the loss became non-finite at every one of {len(losses)} learning rates{when}"
        return Fitness(math.inf, Status.DIVERGED, reason, by_rate=losses)


__all__ = ["Sweep"]
