"""The plain loop: one run at a time, for any model and any optimizer. It defines what every other engine computes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from optforge.primitives import Program, ProgramOptimizer
from optforge.search.training.task import Split, Task, batch_indices, initial_model, trainable
from optforge.search.training.torch_schedules import SCHEDULES
from optforge.search.training.trial import Outcome, Status, Trial

EVALUATION_EXAMPLES = 256  # in one pass, to bound the memory of activations
CURVE_POINTS = 20


def train_alone(trials: Sequence[Trial]) -> list[Outcome]:
    """Outcomes of trials, each trained by itself from its first step to its last, or until its loss diverges.

    Raises:
        Exception: whatever the model, the loss or the optimizer raises; `search.training.train` makes a status of it.
    """
    return [_train(trial) for trial in trials]


def _train(trial: Trial) -> Outcome:
    begin, task, data, where = time.perf_counter(), trial.task, trial.task.data(), device()
    model = initial_model(task, trial.seed).to(where, trial.dtype)
    start, _ = evaluate(model, task, data.valid)
    parameters = list(trainable(model).values())
    optimizer = optimizer_of(trial, parameters)
    scheduler = None
    if not isinstance(trial.rule, Program) and (trial.warmup or trial.schedule != "constant"):
        scheduler = SCHEDULES[trial.schedule](optimizer, trial.steps, trial.warmup)
    losses, valid_curve, step = list[float](), list[float](), None
    points = set(curve_points(trial.steps))
    for index, at in enumerate(batch_indices(len(data.train), task.batch_size, trial.steps, trial.seed)):
        inputs, targets = (x.to(where) for x in data.train.batch(at))
        with torch.autocast(where.type, torch.bfloat16, enabled=trial.precision == "bf16"):
            loss = task.loss(model(as_dtype(inputs, trial.dtype)), targets)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            step = index + 1
            break
        optimizer.zero_grad()
        loss.backward()
        if scheduler is not None and trial.clip:
            nn.utils.clip_grad_norm_(parameters, trial.clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if trial.watch and index in points:
            valid_curve.append(evaluate(model, task, data.valid)[0])
    found: dict[str, tuple[float, float | None]] = {name: (math.inf, math.nan) for name in trial.splits}
    if step is None:
        found = {name: evaluate(model, task, getattr(data, name)) for name in trial.splits}
    losses += [math.nan] * (trial.steps - len(losses))
    valid_curve += [math.nan] * (len(points) - len(valid_curve)) if trial.watch else []
    status, reason = ending({name: loss for name, (loss, _) in found.items()}, step)
    return Outcome(
        status,
        reason,
        loss={name: loss for name, (loss, _) in found.items()},
        accuracy={name: right for name, (_, right) in found.items() if task.accuracy and right is not None},
        start=start,
        step=step,
        curve=tuple(losses[i] for i in sorted(points)),
        valid_curve=tuple(valid_curve),
        seconds=time.perf_counter() - begin,
    )


def optimizer_of(trial: Trial, parameters: Sequence[nn.Parameter]) -> Optimizer:
    """The optimizer of a trial for these parameters. A program has schedule and clipping in it; other rules do not."""
    if isinstance(trial.rule, Program):
        return ProgramOptimizer(parameters, trial.program, trial.lr, total_steps=trial.steps)
    return trial.rule.optimizer(parameters, trial.lr, trial.steps)


def ending(losses: dict[str, float], step: int | None) -> tuple[Status, str]:
    """Status and reason of a run that was not dropped, from its final losses and the step at which it diverged."""
    if step is not None:
        return Status.DIVERGED, f"the loss became non-finite at step {step}"
    if not all(map(math.isfinite, losses.values())):
        return Status.DIVERGED, "the weights after the last step give a loss that is not finite"
    return Status.OK, ""


def curve_points(steps: int) -> list[int]:
    """The steps, counted from 0, whose losses make a curve: up to `CURVE_POINTS`, evenly spaced, the last included."""
    return [i for i in range(steps) if i * CURVE_POINTS // steps != (i + 1) * CURVE_POINTS // steps]


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, split: Split, limit: int | None = None) -> tuple[float, float | None]:
    """Mean loss of a model over a split, and the share of right answers, or None for tasks without classes.

    With a `limit`, a split of more examples is represented by as many evenly spaced ones.
    """
    first = next(model.parameters())
    count = len(split) if limit is None else min(len(split), limit)
    chosen = torch.linspace(0, len(split) - 1, count, dtype=torch.float64).round().long()
    loss = right = 0.0
    for at in chosen.split(EVALUATION_EXAMPLES):
        inputs, targets = (x.to(first.device) for x in split.batch(at))
        outputs = model(as_dtype(inputs, first.dtype))
        loss += float(task.loss(outputs, targets)) * len(at)
        if task.accuracy:
            right += float((outputs.argmax(-1) == targets).double().mean()) * len(at)
    return loss / count, right / count if task.accuracy else None


def device() -> torch.device:
    """Where runs are trained: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def as_dtype(inputs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Inputs in the precision of the run; indices (tokens) stay what they are."""
    return inputs.to(dtype) if inputs.is_floating_point() else inputs
