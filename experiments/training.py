"""One training run: a task, an optimizer, a seed. Lightning runs the loop, TensorBoard gets the curves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from baselines import averaged, is_schedule_free
from experiments.errors import UserError
from experiments.monitor import OptimizerMonitor
from experiments.progress import Report, progress_bar
from experiments.results import RunResult, evaluate
from experiments.run_batches import RunBatches
from experiments.run_options import PLAIN, RunOptions, device_type
from learned import learn as learn_rates
from primitives import Program, ProgramOptimizer, Split, Task
from primitives.options import merged_hypers
from primitives.task import initial_model
from search.lightning_fit import fit, quiet

Factory = Callable[..., Optimizer]
"""Makes an optimizer of parameters and the keyword `lr`, as the classes of `torch.optim` do."""


class TrainingRun(LightningModule):
    """A task's model on its batches under one optimizer; keeps the curves of the run.

    Args:
        task: data, model and loss.
        factory: makes the optimizer.
        lr: learning rate given to it.
        seed: of the initial weights (see `primitives.task.initial_model`).
        steps: length of the run; about 100 points of the training curve and 10 of the validation curve are
            logged.
        options: schedule, clipping, accumulation and precision.
        report: is told the steps done and the latest loss.
    """

    def __init__(
        self,
        task: Task,
        factory: Factory,
        lr: float,
        seed: int,
        steps: int,
        options: RunOptions = PLAIN,
        report: Report = lambda done, words: None,
    ) -> None:
        super().__init__()
        self.task, self.steps, self.report = task, steps, report
        self.model = initial_model(task, seed)
        self.optimizer = factory(self.model.parameters(), lr=lr, **options.hypers)
        self.options, self.guard = options, options.guard(self.optimizer)
        self.scheduler = options.scheduler(self.optimizer, steps)
        self.splits = task.data()
        self.log_every, self.validate_every = max(1, steps // 100), max(1, steps // 10)
        self.curve: list[float] = []
        self.valid_curve: list[tuple[int, float]] = []
        self.diverged = ""
        self._losses: list[float] = []  # of the batches of the present step
        self._skipped = False

    def precision(self) -> MixedPrecision | None:
        """Lightning's plugin for less precision than 32 bits, whose scaler is that of the guard."""
        name: Any = self.options.lightning_precision
        if self.guard is None or name == "32-true":
            return None
        return MixedPrecision(name, device_type(), self.guard.scaler)  # the name alone means bfloat16 on any CPU

    def configure_optimizers(self) -> Any:
        """The optimizer of all parameters, and its schedule if there is one."""
        if self.scheduler is None:
            return self.optimizer
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": self.scheduler, "interval": "step"}}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of one batch, 0-dimensional; one that is not finite ends the run after this step, unless guarded."""
        inputs, targets = batch
        loss: Tensor = self.task.loss(self.model(inputs).float(), targets)
        self._losses.append(loss.item())
        lost = self.guard is None and not math.isfinite(self._losses[-1])
        if lost or len(self._losses) == self.options.accumulate:
            self.curve.append(sum(self._losses) / len(self._losses))
            self._losses.clear()
        if lost:
            self._end(f"the training loss was {self.curve[-1]} at step {len(self.curve)} of {self.steps}")
        return loss

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step as Lightning makes it, or as the guard does, which may skip it."""
        if self.guard is None or optimizer_closure is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        optimizer_closure()
        try:
            self._skipped = not self.guard.step()
        except FloatingPointError:
            self._end(f"the gradients of many steps up to step {len(self.curve)} of {self.steps} were not finite")

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Go on in the schedule; a step that was skipped does not count."""
        if not self._skipped:
            scheduler.step()

    def _end(self, reason: str) -> None:
        self.diverged = f"{reason}; try a smaller lr"
        self.trainer.should_stop = True

    def evaluate(self, split: Split) -> tuple[float, float | None]:
        """Loss and accuracy on `split`, of the averaged weights where it is them that the optimizer trains."""
        with averaged(self.optimizer) if is_schedule_free(self.optimizer) else nullcontext():
            return evaluate(self.model, self.task, split)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write the curves, and look at the validation data when it is time."""
        if self._losses:
            return
        step, scalars = len(self.curve), {}
        if step % self.log_every == 0 or step == 1:
            self.report(step, f"loss {self.curve[-1]:.4f}")
            scalars["loss/train"] = self.curve[-1]
        if step % self.validate_every == 0:
            scalars["loss/valid"], accuracy = self.evaluate(self.splits.valid)
            scalars |= {} if accuracy is None else {"accuracy/valid": accuracy}
            self.valid_curve.append((step, scalars["loss/valid"]))
        if scalars:
            for logger in self.loggers:
                logger.log_metrics(scalars, step)


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
    options: RunOptions = PLAIN,
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
        options: everything else, see `RunOptions`.
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
    run = TrainingRun(task, _factory(optimizer, total, learn, options), lr, seed, total, options)
    batches = RunBatches(task, run.splits.train, total * options.accumulate, seed, full_batch)
    with quiet(), progress_bar(task.name, total) if progress else nullcontext(run.report) as run.report:
        trainer = Trainer(
            accelerator="auto",
            devices=1,
            max_steps=total,
            logger=TensorBoardLogger(log_dir, name=None, version="") if log_dir is not None else False,
            accumulate_grad_batches=options.accumulate,
            plugins=[] if (plugin := run.precision()) is None else [plugin],
            callbacks=[OptimizerMonitor(options.monitor, None if run.guard is None else run.guard.tally)],
            log_every_n_steps=run.log_every,
            enable_progress_bar=False,  # a bar that counts epochs says little about a run of so many steps
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        start = time.perf_counter()
        fit(trainer, run, batches)
        seconds = time.perf_counter() - start
    return _result(run, lr, seed, seconds)


def learned_values(optimizer: object) -> dict[str, float]:
    """Current value of everything that an optimizer learns; empty for those that learn nothing."""
    values: Callable[[], dict[str, float]] = getattr(optimizer, "learned_values", dict)
    return values()


def _factory(optimizer: Program | Factory, steps: int, learn: Sequence[str] | None, options: RunOptions) -> Factory:
    if not isinstance(optimizer, Program):
        if learn:
            raise UserError(f"only programs can learn {', '.join(learn)}; give a Program in place of a function")
        return optimizer
    program = optimizer
    merged_hypers(program, dict(options.hypers))  # refuses names that are options of the optimizer
    if learn:
        return lambda params, lr, **hypers: learn_rates(params, program, lr, what=learn, total_steps=steps, **hypers)
    return lambda params, lr, **hypers: ProgramOptimizer(params, program, lr, total_steps=steps, **hypers)


def _result(run: TrainingRun, lr: float, seed: int, seconds: float) -> RunResult:
    measured = [run.evaluate(split) for split in run.splits]
    losses = [loss if math.isfinite(loss) else math.nan for loss, _ in measured]
    reason = run.diverged
    if not reason and not all(map(math.isfinite, losses)):
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
        skipped=0 if run.guard is None else run.guard.tally.skipped,
        clipped=0 if run.guard is None else int(run.guard.tally.clipped),
    )
