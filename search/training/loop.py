"""The plain loop: one run at a time, for any model and any optimizer. It defines what every other engine computes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from optforge.primitives import Program, ProgramOptimizer
from optforge.search.training.task import Split, Task, batch_indices, initial_model, measured_part, trainable
from optforge.search.training.torch_schedules import SCHEDULES
from optforge.search.training.trial import Outcome, Status, Trial

EVALUATION_EXAMPLES = 256  # in one pass, to bound the memory of activations
CURVE_POINTS = 20

Measured = Mapping[str, tuple[float, float | None]]
"""Loss and accuracy by the name of a split."""


def train_alone(trials: Sequence[Trial]) -> list[Outcome]:
    """Outcomes of trials, each trained by itself from its first step to its last, or until its loss diverges.

    Raises:
        Exception: whatever the model, the loss or the optimizer raises; `search.training.train` makes a status of it.
    """
    return [_train(trial) for trial in trials]


def _train(trial: Trial) -> Outcome:
    begin, task, data, where = time.perf_counter(), trial.task, trial.task.data(), device()
    if trial.precision == "fp16":
        raise ValueError("float16 needs a scaled loss, which is for search.training.lightning; the loop takes bf16")
    model = initial_model(task, trial.seed).to(where, trial.dtype)
    start, _ = evaluate(model, task, data.valid)
    parameters = list(trainable(model).values())
    optimizer = optimizer_of(trial, parameters, rewritten=trial.is_rewritten)
    scheduler = None if trial.is_rewritten else scheduler_of(trial, optimizer)
    losses, valid_curve, lost = list[float](), list[float](), False
    points = set(curve_points(trial.steps))
    for index, at in enumerate(batch_indices(len(data.train), task.batch_size, trial.steps, trial.seed)):
        inputs, targets = (x.to(where) for x in data.train.batch(at))
        with torch.autocast(where.type, torch.bfloat16, enabled=trial.precision == "bf16"):
            loss = task.loss(model(as_dtype(inputs, trial.dtype)), targets)
        losses.append(float(loss.detach()))
        if lost := not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad()
        loss.backward()
        if trial.clip and not trial.is_rewritten:
            nn.utils.clip_grad_norm_(parameters, trial.clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if trial.watch and index in points:
            with evaluated(trial, optimizer):
                valid_curve.append(evaluate(model, task, data.valid)[0])
    measured = None if lost else measure(trial, model, optimizer)
    return outcome_of(trial, losses, valid_curve, measured, start, time.perf_counter() - begin)


def outcome_of(
    trial: Trial, losses: Sequence[float], valid_curve: Sequence[float], measured: Measured | None, start: float,
    seconds: float,
) -> Outcome:  # fmt: skip
    """The outcome of a run.

    Args:
        trial: what was trained.
        losses: training loss of each step that was begun.
        valid_curve: validation losses at the points of the curve, if the trial is watched.
        measured: of the final weights, by split; None if training diverged in the last of these steps.
        start: validation loss before training.
        seconds: how long it took.
    """
    step, points = len(losses) if measured is None else None, curve_points(trial.steps)
    found = measured or {name: (math.inf, math.nan) for name in trial.splits}
    loss = {name: loss for name, (loss, _) in found.items()}
    accuracy = {name: right for name, (_, right) in found.items() if trial.task.accuracy and right is not None}
    padded = [*losses, *[math.nan] * (trial.steps - len(losses))]
    watched = (*valid_curve, *[math.nan] * (len(points) - len(valid_curve))) if trial.watch else ()
    curve = tuple(padded[i] for i in points)
    return Outcome(*ending(loss, step), loss, accuracy, start, step, curve, watched, seconds)


def optimizer_of(trial: Trial, parameters: Iterable[nn.Parameter], *, rewritten: bool = False) -> Optimizer:
    """The optimizer of a trial for these parameters; a `rewritten` program has schedule and clipping in it."""
    if isinstance(trial.rule, Program):
        program = trial.program if rewritten else trial.rule
        return ProgramOptimizer(parameters, program, trial.lr, total_steps=trial.steps)
    return trial.rule.optimizer(parameters, trial.lr, trial.steps)


def scheduler_of(trial: Trial, optimizer: Optimizer) -> LRScheduler | None:
    """The trial's schedule for an optimizer that has none in it; None if the rate stays as it is."""
    if trial.schedule == "constant" and not trial.warmup:
        return None
    return SCHEDULES[trial.schedule](optimizer, trial.steps, trial.warmup)


def evaluated(trial: Trial, optimizer: Optimizer) -> AbstractContextManager[None]:
    """Within the block parameters are the weights that the rule wants evaluated; after it, what they were."""
    return nullcontext() if isinstance(trial.rule, Program) else trial.rule.evaluated(optimizer)


def measure(trial: Trial, model: nn.Module, optimizer: Optimizer) -> Measured:
    """Loss and accuracy of a trained model on the splits that the trial names."""
    with evaluated(trial, optimizer):
        return {name: evaluate(model, trial.task, measured_part(trial.task, name)) for name in trial.splits}


def ending(losses: dict[str, float], step: int | None) -> tuple[Status, str]:
    """Status and reason of a run, from its final losses and the step at which it diverged."""
    if step is not None:
        return Status.DIVERGED, f"the loss became non-finite at step {step}"
    if not all(map(math.isfinite, losses.values())):
        return Status.DIVERGED, "the weights after the last step give a loss that is not finite"
    return Status.OK, ""


def curve_points(steps: int) -> list[int]:
    """The steps, counted from 0, whose losses make a curve: up to `CURVE_POINTS`, evenly spaced, the last included."""
    return [i for i in range(steps) if i * CURVE_POINTS // steps != (i + 1) * CURVE_POINTS // steps]


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, split: Split) -> tuple[float, float | None]:
    """Mean loss of a model over a split, and the share of right answers, or None for tasks without classes."""
    first = next(model.parameters())
    loss = right = 0.0
    for at in torch.arange(len(split)).split(EVALUATION_EXAMPLES):
        inputs, targets = (x.to(first.device) for x in split.batch(at))
        outputs = model(as_dtype(inputs, first.dtype))
        loss += float(task.loss(outputs, targets)) * len(at)
        if task.accuracy:
            right += float((outputs.argmax(-1) == targets).double().mean()) * len(at)
    return loss / len(split), right / len(split) if task.accuracy else None


def device() -> torch.device:
    """Where runs are trained: the accelerator that Lightning uses if there is one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def as_dtype(inputs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Inputs in the precision of the run; indices (tokens) stay what they are."""
    return inputs.to(dtype) if inputs.is_floating_point() else inputs
