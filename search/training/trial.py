"""A trial says exactly what is trained; an outcome says what came of it. Every result is a reduction over outcomes."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from optforge.primitives import Program, parse_program, print_program
from optforge.search.training.schedule import SCHEDULES as IN_PROGRAMS
from optforge.search.training.schedule import scheduled
from optforge.search.training.task import Task
from optforge.search.training.torch_schedules import SCHEDULES


class Status(enum.StrEnum):
    """How a run ended. The value is the sentence that users read."""

    OK = "trained to the end"
    DIVERGED = "the loss became non-finite"
    FAILED = "the run itself broke, which says nothing of the optimizer"


class Rule(Protocol):
    """What trains beside programs: an optimizer of another kind, such as one that learns its rate."""

    @property
    def text(self) -> str:
        """Everything that determines the rule, as text."""
        ...

    def optimizer(self, params: Iterable[Tensor], lr: float, steps: int) -> Optimizer:
        """An optimizer for a run of so many steps."""
        ...

    def evaluated(self, optimizer: Optimizer) -> AbstractContextManager[None]:
        """Within the block the parameters of `optimizer` are what is to be evaluated; by default those it trains."""
        return nullcontext()


@dataclass(frozen=True)
class Trial:
    """One training run, before it is made.

    Attributes:
        rule: an update rule as a program, with its hyperparameters as defaults, or another `Rule`.
        lr: peak learning rate; the initial one where the rule learns it.
        task: what is trained.
        seed: of initial weights and the order of batches.
        steps: length of the run; the task's own by default.
        schedule: of the learning rate, a name in `search.training.torch_schedules.SCHEDULES`. Programs with one that
            `search.training.schedule.SCHEDULES` does not have are trained one by one.
        warmup: steps over which the rate rises before the schedule begins.
        clip: largest Euclidean norm of all gradients together; 0 for no limit.
        precision: of forward and backward pass: ``"float32"``, or on GPUs ``"tf32"`` or ``"bf16"``; ``"fp16"`` with
            Lightning, which scales the loss; ``"float64"`` for everything, for tests.
        splits: names of the splits whose loss is measured at the end.
        watch: whether the validation loss is measured on the way, for `Outcome.valid_curve`.

    Raises:
        ValueError: for values that make no run.
    """

    rule: Program | Rule
    lr: float
    task: Task
    seed: int
    steps: int = 0
    schedule: str = "constant"
    warmup: int = 0
    clip: float = 0.0
    precision: str = "float32"
    splits: tuple[str, ...] = ("valid",)
    watch: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lr) and self.lr >= 0):
            raise ValueError(f"the learning rate lr must be a finite number of at least 0, got {self.lr}")
        if self.steps < 0:
            raise ValueError(f"the number of steps must be positive, got {self.steps}")
        object.__setattr__(self, "steps", self.steps or self.task.steps)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; there are: {', '.join(SCHEDULES)}")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"a warm-up of {self.warmup} steps does not fit into a run of {self.steps}")

    @property
    def is_rewritten(self) -> bool:
        """Whether what is trained is a program that can have the trial's schedule and clipping in it."""
        return isinstance(self.rule, Program) and self.schedule in IN_PROGRAMS

    @property
    def program(self) -> Program:
        """The program with schedule and clipping in it. Raises `TypeError` for a rule that is no program."""
        if not isinstance(self.rule, Program):
            raise TypeError(f"{self.rule.text} is no program")
        return _scheduled(self.rule, self.schedule, self.steps, self.warmup, self.clip)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights, gradients and state."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def as_json(self) -> dict[str, Any]:
        """The trial in JSON's own types: the rule as text, the task by its name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return found | {"rule": rule_text(self.rule), "task": self.task.name, "splits": list(self.splits)}

    @classmethod
    def from_json(
        cls,
        found: Mapping[str, Any],
        task: Callable[[str], Task],
        rule: Callable[[str], Program | Rule] = parse_program,
    ) -> Trial:
        """The trial that `as_json` wrote; `task` and `rule` find what was written as text."""
        splits = tuple(found["splits"])
        return cls(**{**found, "rule": rule(found["rule"]), "task": task(found["task"]), "splits": splits})


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        status: how it ended.
        reason: why, in a sentence, for anything but OK.
        loss: final loss by split; NaN or infinite unless `status` is OK.
        accuracy: share of right answers by split; empty for tasks without classes.
        start: validation loss before training.
        step: the step, counted from 1, at which it diverged; None otherwise.
        curve: training loss at up to 20 evenly spaced steps, the last one included; NaN after the end.
        valid_curve: validation loss after the same steps; empty unless the trial is watched.
        seconds: wall-clock time, shared equally by trials that were trained together.
    """

    status: Status
    reason: str = ""
    loss: Mapping[str, float] = field(default_factory=dict)
    accuracy: Mapping[str, float] = field(default_factory=dict)
    start: float = math.nan
    step: int | None = None
    curve: tuple[float, ...] = field(default=(), repr=False)
    valid_curve: tuple[float, ...] = field(default=(), repr=False)
    seconds: float = field(default=0.0, compare=False)

    @property
    def valid(self) -> float:
        """Final validation loss; infinite unless the run reached its end with a finite one."""
        found = self.loss.get("valid", math.inf)
        return found if self.status is Status.OK and math.isfinite(found) else math.inf

    @property
    def failed(self) -> bool:
        """The one rule for failed runs: one that did not end, or ended with a loss above that before training."""
        if self.status is not Status.OK:
            return True
        return any(not math.isfinite(x) or x > self.start for name, x in self.loss.items() if name != "train")

    def counted(self, split: str = "valid") -> float:
        """The loss that enters means: as measured, or the loss before training if the run failed."""
        return self.start if self.failed else self.loss[split]

    def as_json(self) -> dict[str, Any]:
        """The outcome in JSON's own types; numbers that are not finite are text."""
        found = asdict(self) | {"status": self.status.name}
        return {name: _plain(value) for name, value in found.items()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Outcome:
        """The outcome that `as_json` wrote; KeyError, TypeError or ValueError for another object."""
        numbers = {name: {k: float(x) for k, x in found[name].items()} for name in ("loss", "accuracy")}
        curves = {name: tuple(map(float, found[name])) for name in ("curve", "valid_curve")}
        start, seconds = float(found["start"]), float(found["seconds"])
        return cls(Status[found["status"]], str(found["reason"]), start=start, step=found["step"], seconds=seconds,
                   **numbers, **curves)  # type: ignore[arg-type] # fmt: skip


def rule_text(rule: Program | Rule) -> str:
    """A rule as text."""
    return _printed(rule) if isinstance(rule, Program) else rule.text


def failed(reason: str) -> Outcome:
    """The outcome of a run that broke."""
    return Outcome(Status.FAILED, reason)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(x) for name, x in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(x) for x in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


_printed = lru_cache(maxsize=4096)(print_program)
_scheduled = lru_cache(maxsize=4096)(scheduled)

__all__ = ["Outcome", "Rule", "Status", "Trial", "failed", "replace", "rule_text"]
