"""From what was asked for to a trial, and from that to its outcome, with everything that is shown and written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from optforge.baselines.schedule_free import program as schedule_free
from optforge.experiments.errors import UserError, unknown
from optforge.experiments.programs.rules import Averaging, LearnedRate, MetaTrained, configured
from optforge.experiments.progress import progress_bar
from optforge.experiments.training.moves import History
from optforge.learned.meta.weights import Learned
from optforge.primitives import Program
from optforge.primitives.options import merged_hypers
from optforge.search.training.guard import Clip
from optforge.search.training.lightning.engine import train_one
from optforge.search.training.lightning.settings import PLAIN, STRATEGIES, Settings, SettingsError
from optforge.search.training.task import Splits, Task
from optforge.search.training.torch_schedules import SCHEDULES
from optforge.search.training.trial import Outcome, Rule, Trial

CHECKPOINT = "checkpoint.ckpt"
"""Name of the latest checkpoint in the folder of a run."""

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
    accumulate: int = 1,
    precision: str = "32",
    **others: Any,
) -> tuple[Trial, Settings]:
    """The trial of a single run, which measures every split and watches the validation loss, and its settings.

    Args:
        task: what to train.
        rule: an update rule, a meta-trained one, or another `Rule`.
        lr, seed, steps, schedule, warmup: as of a `Trial`.
        learn: names of hyperparameters to learn on the way (see `learned.learn`), for programs; of meta-trained rules
            the rate alone.
        hypers: values of a program's hyperparameters by name, in place of its defaults.
        full_batch: make every batch the whole training split, as gradient descent means it.
        clip_norm: largest Euclidean norm of all gradients together.
        accumulate: batches whose gradients are averaged for one step.
        precision: one of `PRECISIONS`, or Lightning's name of it: ``"bf16"`` and ``"fp16"`` are for autocast of the
            model; weights, gradients, state and losses stay in float32. float16 scales the loss.
        others: further `Settings`.

    Raises:
        UserError: for a value that does not exist or fit.
        ProgramError: for hyperparameters that the program does not have, or that are out of range.
    """
    precision = _LIGHTNING.get(precision, precision)
    strategy = others.get("strategy", PLAIN.strategy)
    names = {"schedule": SCHEDULES, "strategy": STRATEGIES, "precision": PRECISIONS}
    for what, name in (("schedule", schedule), ("strategy", strategy), ("precision", precision)):
        if name not in names[what]:
            raise unknown(what, name, names[what])
    if steps is not None and steps < 1:
        raise UserError(f"the number of steps must be at least 1, got {steps}")
    own = _rule(rule, learn, hypers or {}, strategy)
    whole = _full_batches(task) if full_batch else replace(task, batch_size=task.batch_size * accumulate)
    clip, mixed = clip_norm or 0.0, PRECISIONS[precision]
    try:
        Clip(clip_norm)
        settings = Settings(accumulate=accumulate, **others)
        trial = Trial(own, lr, whole, seed, steps or 0, schedule, warmup, clip, mixed, Splits._fields, watch=True)
        return trial, settings
    except ValueError as error:
        raise UserError(str(error)) from None


def train(
    trial: Trial,
    settings: Settings = PLAIN,
    *,
    folder: Path | None = None,
    history: History | None = None,
    progress: bool = False,
    resume: bool = False,
) -> Outcome:
    """The outcome of a trial, trained with Lightning.

    Args:
        trial: what is trained.
        settings: how, see `search.training.lightning.engine.train_one`.
        folder: where TensorBoard logs and checkpoints go; none are written without it.
        history: takes what the run notes beside its outcome.
        progress: show a progress bar on standard error, if that is a terminal.
        resume: go on from the checkpoint in `folder`, if there is one; everything else must be as it was then.

    Raises:
        UserError: if the settings do not fit, or the checkpoint is another run's.
        ProgramError: if the program and the learning rate do not fit.
    """
    history = history or History()
    loggers = [] if folder is None else [TensorBoardLogger(folder, name=None, version="")]
    checkpoint = None if folder is None else folder / CHECKPOINT
    with progress_bar(trial.task.name, trial.steps) if progress else nullcontext(history.report) as history.report:
        try:
            return train_one(trial, settings, checkpoint, resume, loggers, [history])
        except SettingsError as error:
            raise UserError(str(error)) from error


def _full_batches(task: Task) -> Task:
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
