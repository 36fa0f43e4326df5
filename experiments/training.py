"""One training run: a task, an optimizer, a seed. Lightning runs the loop, TensorBoard gets the curves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.optim.optimizer import Optimizer

from experiments.errors import UserError
from experiments.progress import Report, progress_bar
from experiments.results import RunResult, evaluate
from learned import learn as learn_rates
from primitives import Program, ProgramOptimizer, Split, Task
from primitives.task import batch_indices, initial_model
from search.lightning_fit import fit, quiet

Factory = Callable[..., Optimizer]
"""Makes an optimizer of parameters and the keyword `lr`, as the classes of `torch.optim` do."""

MAX_FULL_BATCH = 65_536
"""Most training examples that one batch holds, if it is to hold them all."""


class TrainingRun(LightningModule):
    """A task's model on its batches under one optimizer; keeps the curves of the run.

    Args:
        task: data, model and loss.
        factory: makes the optimizer.
        lr: learning rate given to it.
        seed: of the initial weights (see `primitives.task.initial_model`).
        steps: length of the run; about 100 points of the training curve and 10 of the validation curve are
            logged.
        report: is told the steps done and the latest loss.
    """

    def __init__(
        self,
        task: Task,
        factory: Factory,
        lr: float,
        seed: int,
        steps: int,
        report: Report = lambda done, words: None,
    ) -> None:
        super().__init__()
        self.task, self.report = task, report
        self.model = initial_model(task, seed)
        self.optimizer = factory(self.model.parameters(), lr=lr)
        self.splits = task.data()
        self.log_every, self.validate_every = max(1, steps // 100), max(1, steps // 10)
        self.curve: list[float] = []
        self.valid_curve: list[tuple[int, float]] = []
        self.diverged_at: int | None = None

    def configure_optimizers(self) -> Optimizer:
        """The optimizer of all parameters."""
        return self.optimizer

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch, 0-dimensional; one that is not finite ends the run after this step."""
        inputs, targets = batch
        loss: Tensor = self.task.loss(self.model(inputs), targets)
        self.curve.append(loss.item())
        if not math.isfinite(self.curve[-1]):
            self.diverged_at = len(self.curve)
            self.trainer.should_stop = True
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write the curves, and look at the validation data when it is time."""
        step, scalars = len(self.curve), {}
        if step % self.log_every == 0 or step == 1:
            self.report(step, f"loss {self.curve[-1]:.4f}")
            scalars["loss/train"] = self.curve[-1]
            scalars["lr/schedule"] = float(self.optimizer.param_groups[0]["lr"])
            scalars |= {f"learned/{name}": value for name, value in learned_values(self.optimizer).items()}
        if step % self.validate_every == 0:
            scalars["loss/valid"], accuracy = evaluate(self.model, self.task, self.splits.valid)
            scalars |= {} if accuracy is None else {"accuracy/valid": accuracy}
            self.valid_curve.append((step, scalars["loss/valid"]))
        if scalars:
            for logger in self.loggers:
                logger.log_metrics(scalars, step)


class _Batches(Iterable[tuple[Tensor, Tensor]]):
    """The batches of a run in their order; a plain iterable, as data in memory needs no loading machinery."""

    def __init__(self, split: Split, indices: Tensor) -> None:
        self.split, self.indices = split, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.split.batch(step) for step in self.indices)


def train(
    task: Task,
    optimizer: Program | Factory,
    lr: float = 1e-3,
    *,
    seed: int = 0,
    steps: int | None = None,
    log_dir: Path | str | None = None,
    learn: Sequence[str] | None = None,
    full_batch: bool = False,
    progress: bool = False,
) -> RunResult:
    """Train `task`'s model once.

    Initial weights and batches depend on the task and the seed alone, so that runs of different optimizers
    with one seed are paired.

    Args:
        task: what to train.
        optimizer: an update rule, or a function of ``(parameters, lr=…)`` that makes an optimizer.
        lr: learning rate; the initial one if it is learned.
        seed: of initial weights and order of batches.
        steps: number of steps; the task's own by default.
        log_dir: where TensorBoard logs go; none are written without it.
        learn: names of hyperparameters to learn on the way (see `learned.learn`), for programs only.
        full_batch: make every batch the whole training split, as gradient descent means it.
        progress: show a progress bar on standard error, if that is a terminal.

    Returns:
        The outcome. A loss that is not finite ends the run early with status ``"diverged"``; it is not an
        exception.

    Raises:
        UserError: if the steps are not positive, if learning was asked for something that is not a program, or if the
            training split is too large for one batch that must hold it.
        ProgramError: if the program and the learning rate do not fit.
    """
    total = task.steps if steps is None else steps
    if total < 1:
        raise UserError(f"the number of steps must be at least 1, got {total}")
    run = TrainingRun(task, _factory(optimizer, total, learn), lr, seed, total)
    indices = _indices(task, len(run.splits.train), total, seed, full_batch)
    with quiet(), progress_bar(task.name, total) if progress else nullcontext(run.report) as run.report:
        trainer = Trainer(
            accelerator="auto",
            devices=1,
            max_steps=total,
            logger=TensorBoardLogger(log_dir, name=None, version="") if log_dir is not None else False,
            log_every_n_steps=1,  # the run decides itself; Lightning warns where a run is shorter than this number
            enable_progress_bar=False,  # a bar that counts epochs says little about a run of so many steps
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        start = time.perf_counter()
        fit(trainer, run, _Batches(run.splits.train, indices))
        seconds = time.perf_counter() - start
    return _result(run, lr, seed, total, seconds)


def _indices(task: Task, examples: int, steps: int, seed: int, full_batch: bool) -> Tensor:
    """Which examples each step sees, ``[steps, examples of a batch]``."""
    if not full_batch:
        return batch_indices(examples, task.batch_size, steps, seed)
    if examples > MAX_FULL_BATCH:
        raise UserError(
            f"task {task.name} has {examples:,} training examples, and a full batch holds at most {MAX_FULL_BATCH:,}; "
            "use sgd, the same rule on small batches, or a smaller task"
        )
    return torch.arange(examples).expand(steps, -1)


def learned_values(optimizer: object) -> dict[str, float]:
    """Current value of everything that an optimizer learns; empty for those that learn nothing."""
    values: Callable[[], dict[str, float]] = getattr(optimizer, "learned_values", dict)
    return values()


def _factory(optimizer: Program | Factory, steps: int, learn: Sequence[str] | None) -> Factory:
    if not isinstance(optimizer, Program):
        if learn:
            raise UserError(f"only programs can learn {', '.join(learn)}; give a Program in place of a function")
        return optimizer
    program = optimizer
    if learn:
        return lambda params, lr: learn_rates(params, program, lr, what=learn, total_steps=steps)
    return lambda params, lr: ProgramOptimizer(params, program, lr, total_steps=steps)


def _result(run: TrainingRun, lr: float, seed: int, total: int, seconds: float) -> RunResult:
    measured = [evaluate(run.model, run.task, split) for split in run.splits]
    losses = [loss if math.isfinite(loss) else math.nan for loss, _ in measured]
    reason = ""
    if run.diverged_at is not None:
        reason = f"the training loss was {run.curve[-1]} at step {run.diverged_at} of {total}; try a smaller lr"
    elif not all(map(math.isfinite, losses)):
        reason = f"the weights after step {len(run.curve)} give a loss that is not finite; try a smaller lr"
    return RunResult(
        task=run.task.name,
        lr=lr,
        seed=seed,
        status="diverged" if reason else "ok",
        reason=reason,
        steps=len(run.curve),
        train_loss=losses[0],
        valid_loss=losses[1],
        test_loss=losses[2],
        valid_accuracy=measured[1][1],
        test_accuracy=measured[2][1],
        learned=learned_values(run.optimizer),
        seconds=seconds,
        curve=tuple(run.curve),
        valid_curve=tuple(run.valid_curve),
    )
