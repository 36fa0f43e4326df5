"""From what was asked for to a trial, and to what Lightning needs beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from optforge.baselines.schedule_free import program as schedule_free
from optforge.experiments.errors import UserError, unknown
from optforge.experiments.programs.rules import Averaging, LearnedRate, MetaTrained, configured
from optforge.learned.meta.weights import Learned
from optforge.primitives import Program, ProgramError
from optforge.primitives.options import merged_hypers
from optforge.search.training.guard import Clip
from optforge.search.training.lightning.settings import STRATEGIES, Settings
from optforge.search.training.monitor import EVERY
from optforge.search.training.task import Splits, Task
from optforge.search.training.torch_schedules import SCHEDULES
from optforge.search.training.trial import Rule, Trial

MAX_FULL_BATCH = 65_536
"""Most training examples that one batch holds, if it is to hold them all."""

PRECISIONS: Mapping[str, str] = MappingProxyType({"32": "float32", "bf16": "bf16", "fp16": "fp16"})
"""What may be asked for, and a trial's name of it."""

_LIGHTNING = {"32-true": "32", "bf16-mixed": "bf16", "16-mixed": "fp16"}  # its names may be asked for as well


def training_of(
    task: Task,
    rule: Program | Learned | Rule,
    lr: float = 1e-3,
    *,
    seed: int = 0,
    steps: int | None = None,
    learn: Sequence[str] | None = None,
    hypers: Mapping[str, float] | None = None,
    full_batch: bool = False,
    schedule: str = "constant",
    warmup: int = 0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    accumulate: int = 1,
    precision: str = "32",
    devices: int = 1,
    strategy: str = "auto",
    checkpoint_every: int = 0,
    monitor: int = EVERY,
) -> tuple[Trial, Settings]:
    """The trial of a single run, which measures every split and watches the validation loss, and its settings.

    Args:
        task: what to train.
        rule: an update rule, a meta-trained one, or another `Rule`.
        lr: largest learning rate; the initial one if it is learned.
        seed: of initial weights and order of batches.
        steps: number of steps; the task's own by default.
        learn: names of hyperparameters to learn on the way (see `learned.learn`), for programs; of meta-trained rules
            the rate alone.
        hypers: values of a program's hyperparameters by name, in place of its defaults.
        full_batch: make every batch the whole training split, as gradient descent means it.
        schedule: of the learning rate, a name in `search.training.torch_schedules.SCHEDULES`.
        warmup: steps in which the rate rises linearly, before the schedule begins.
        clip_norm, clip_value: limits of the gradients, see `search.training.guard.Clip`.
        accumulate: batches whose gradients are averaged for one step.
        precision: one of `PRECISIONS`, or Lightning's name of it: ``"bf16"`` and ``"fp16"`` are for autocast of the
            model; weights, gradients, state and losses stay in float32. float16 scales the loss.
        devices, strategy, checkpoint_every, monitor: see `search.training.lightning.settings.Settings`.

    Raises:
        UserError: for a value that does not exist or fit.
        ProgramError: for hyperparameters that the program does not have, or that are out of range.
    """
    if steps is not None and steps < 1:
        raise UserError(f"the number of steps must be at least 1, got {steps}")
    for what, name, names in (
        ("schedule", schedule, SCHEDULES), ("strategy", strategy, STRATEGIES), ("precision", precision, PRECISIONS)
    ):  # fmt: skip
        if name not in names and name not in (_LIGHTNING if what == "precision" else ()):
            raise unknown(what, name, names)
    try:
        Clip(clip_norm, clip_value)
        settings = Settings(clip_value, accumulate, devices, strategy, checkpoint_every, monitor)
        trial = Trial(
            _rule(rule, learn, hypers or {}, strategy),
            lr,
            _whole(task) if full_batch else replace(task, batch_size=task.batch_size * accumulate),
            seed,
            steps or task.steps,
            schedule,
            warmup,
            clip_norm or 0.0,
            PRECISIONS[_LIGHTNING.get(precision, precision)],
            Splits._fields,
            watch=True,
        )
    except ProgramError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from None
    return trial, settings


def _whole(task: Task) -> Task:
    """The task with batches that hold all training examples."""
    if (count := len(task.data().train)) > MAX_FULL_BATCH:
        raise UserError(
            f"task {task.name} has {count:,} training examples, and a full batch holds at most "
            f"{MAX_FULL_BATCH:,}; use sgd, the same rule on small batches, or a smaller task"
        )
    return replace(task, batch_size=count)


def _rule(
    rule: Program | Learned | Rule, learn: Sequence[str] | None, hypers: Mapping[str, float], strategy: str
) -> Program | Rule:
    if isinstance(rule, Program):
        merged_hypers(rule, dict(hypers))  # refuses what neither the program nor its fallback has
        program = configured(rule, hypers)
        if learn:
            return LearnedRate(program, tuple(learn))
        return Averaging(program) if program.body == schedule_free().body else program
    if hypers:
        raise UserError(f"only programs have hyperparameters to set, such as {', '.join(hypers)}")
    if not isinstance(rule, Learned):
        if learn:
            raise UserError(f"only programs can learn {', '.join(learn)}; give a Program")
        return rule
    if learn and tuple(learn) != ("lr",):
        raise UserError(f"a meta-trained rule can learn lr, not {', '.join(learn)}")
    if strategy == "fsdp":
        raise UserError("a meta-trained rule sees whole parameters, which fsdp divides; choose --strategy ddp")
    return MetaTrained(rule, learns=bool(learn))


__all__ = ["MAX_FULL_BATCH", "PRECISIONS", "training_of"]
