"""What an evaluated program is worth, and the contract of everything that evaluates programs."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from typing import Protocol as TypingProtocol

import torch
from torch import Tensor

from optforge.primitives import Program
from optforge.search.training import Task
from optforge.search.training.race import Behind
from optforge.search.training.schedule import scheduled


class Status(enum.StrEnum):
    """How an evaluation ended."""

    OK = "ok"
    DIVERGED = "diverged"  # no learning rate of the ladder gave a finite loss on every seed
    DROPPED = "dropped"  # hopelessly behind in mid-training at every learning rate that did not diverge
    FAILED = "failed"  # the evaluation itself broke; says nothing about the program


class Part(NamedTuple):
    """What a program is worth on one of several tasks.

    Attributes:
        task: its name.
        score: log of the loss over the reference's, see `search.fitness.suite`.
        lr: the best learning rate, or NaN.
        rungs: validation loss at each rate of the grid, infinite where training diverged.
    """

    task: str
    score: float
    lr: float
    rungs: tuple[float, ...]

    @property
    def edge(self) -> bool:
        """Whether the best rate is the first or last of the grid."""
        return len(self.rungs) > 1 and min(self.rungs) in (self.rungs[0], self.rungs[-1])


@dataclass(frozen=True)
class Fitness:
    """Outcome of evaluating one program; lower scores are better.

    Attributes:
        score: validation loss of the best learning rate, averaged over seeds, or, on several tasks, the mean of what
            `search.fitness.suite` says; infinite unless `status` is OK.
        status: how the evaluation ended.
        reason: a sentence on why, for anything but OK.
        lr: the best learning rate, or NaN.
        rungs: mean validation loss for each learning rate of the ladder, infinite where it diverged or was broken
            off.
        edge: whether the best rate is the first or last of the ladder, so that a wider one might do better.
        by_seed: validation loss at the best rate for each seed, for paired comparisons; not kept in ledgers.
        parts: the same on each of several tasks.
    """

    score: float
    status: Status
    reason: str = ""
    lr: float = math.nan
    rungs: tuple[float, ...] = ()
    edge: bool = False
    by_seed: tuple[float, ...] = ()
    parts: tuple[Part, ...] = ()


class Evaluator(TypingProtocol):
    """Programs to fitnesses: same order, deterministic, never raising because of a candidate."""

    def __call__(self, programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        """Fitness of each program; `generation` says which seeds are used, where they change during a search."""
        ...


@dataclass(frozen=True)
class Protocol:
    """How a candidate is trained: the same for every candidate of a search, so that scores can be compared.

    Attributes:
        task: what is trained.
        ladder: learning rates, ascending; each candidate trains once at each.
        seeds: each gives initial weights and the order of the batches, the same for all candidates.
        steps: length of a run, the task's own by default.
        schedule: of the learning rate, a name in `search.training.schedule.SCHEDULES`.
        warmup: steps over which the rate rises before the schedule begins.
        double: compute in float64, for tests.
    """

    task: Task
    ladder: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 0
    schedule: str = "constant"
    warmup: int = 0
    double: bool = False

    def __post_init__(self) -> None:
        if not self.ladder or any(not (math.isfinite(lr) and lr > 0) for lr in self.ladder):
            raise ValueError(f"the ladder needs at least one learning rate, all positive; got {self.ladder}")
        if list(self.ladder) != sorted(set(self.ladder)):
            raise ValueError(f"the ladder must ascend without repeats; got {self.ladder}")
        if not self.seeds or self.steps < 0:
            raise ValueError(f"at least one seed and a positive number of steps are needed; got {self.seeds}")
        object.__setattr__(self, "steps", self.steps or self.task.steps)

    def rule(self, program: Program) -> Program:
        """`program` with the protocol's schedule in it."""
        return scheduled(program, self.schedule, self.steps, self.warmup)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights, gradients and state."""
        return torch.float64 if self.double else torch.float32


def summarise(
    protocol: Protocol, losses: Tensor, diverged_at: Tensor, dropped: Sequence[Behind | None] = ()
) -> Fitness:
    """Fitness of one program from its final validation losses ``[rungs, seeds]``.

    `diverged_at` has the same shape and holds the first step with a non-finite training loss, or -1; `dropped` says of
    each rung whether and why it was not trained to the end.
    """
    finite = losses.isfinite() & (diverged_at < 0)
    for rung, why in enumerate(dropped):
        finite[rung] &= why is None
    means = losses.double().mean(dim=1)
    rungs = tuple(float(m) if bool(ok) else math.inf for m, ok in zip(means, finite.all(dim=1), strict=True))
    best = min(range(len(rungs)), key=rungs.__getitem__)
    if rungs[best] == math.inf and any(dropped):
        last = max((why for why in dropped if why), key=lambda why: (why.step, -why.loss))
        return Fitness(math.inf, Status.DROPPED, str(last), rungs=rungs)
    if rungs[best] == math.inf:
        steps = diverged_at[diverged_at >= 0]
        when = f", first at step {int(steps.min()) + 1}" if len(steps) else ""
        reason = f"the loss became non-finite at every one of {len(rungs)} learning rates{when}"
        return Fitness(math.inf, Status.DIVERGED, reason, rungs=rungs)
    edge = len(rungs) > 1 and best in (0, len(rungs) - 1)
    by_seed = tuple(float(x) for x in losses[best])
    return Fitness(rungs[best], Status.OK, "", protocol.ladder[best], rungs, edge, by_seed)
