"""One training run: a task, an optimizer, a seed. Lightning runs the loop, TensorBoard gets the curves."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy

from optforge.experiments.errors import UserError
from optforge.experiments.progress import progress_bar
from optforge.experiments.training.module import Factory, TrainingRun, learned_values
from optforge.experiments.training.monitor import OptimizerMonitor
from optforge.experiments.training.options import PLAIN, RunOptions
from optforge.experiments.training.results import RunResult
from optforge.learned import MetaOptimizer
from optforge.learned import learn as learn_rates
from optforge.learned.meta.optimizer import HYPER_RATE
from optforge.learned.meta.weights import Learned
from optforge.primitives import Program, ProgramOptimizer
from optforge.primitives.options import merged_hypers
from optforge.search.training import Task
from optforge.search.training.lightning_fit import fit, quiet

CHECKPOINT = "checkpoint.ckpt"
"""Name of the latest checkpoint in the folder of a run."""


def train(
    task: Task,
    optimizer: Program | Learned | Factory,
    lr: float = 1e-3,
    *,
    seed: int = 0,
    steps: int | None = None,
    log_dir: Path | str | None = None,
    learn: Sequence[str] | None = None,
    full_batch: bool = False,
    options: RunOptions = PLAIN,
    progress: bool = False,
    resume: bool = False,
) -> RunResult:
    """Train `task`'s model once.

    Initial weights and batches depend on the task and the seed alone, so that runs of different optimizers
    with one seed are paired. Several devices share each batch, so that the run is that of one device up to rounding;
    each is a process of its own, which runs the whole script once more and comes to this call.

    Args:
        task: what to train.
        optimizer: an update rule, a meta-trained one, or a function of ``(parameters, lr=…)`` that makes an optimizer.
        lr: learning rate; the initial one if it is learned.
        seed: of initial weights and order of batches.
        steps: number of steps; the task's own by default.
        log_dir: where TensorBoard logs and checkpoints go; none are written without it.
        learn: names of hyperparameters to learn on the way (see `learned.learn`), for programs; of meta-trained rules
            the rate alone.
        full_batch: make every batch the whole training split, as gradient descent means it.
        options: everything else, see `RunOptions`.
        progress: show a progress bar on standard error, if that is a terminal.
        resume: go on from the checkpoint in `log_dir`, if there is one; everything else must be as it was then. The
            outcome is that of the uninterrupted run, bit for bit on CPUs.

    Returns:
        The outcome. A loss that is not finite ends the run early with status ``"diverged"``; it is not an
        exception.

    Raises:
        UserError: if the steps are not positive, if learning was asked for something that is not a program, if the
            training split is too large for one batch that must hold it, if devices are missing or cannot share a
            batch equally, or if the checkpoint is another run's.
        ProgramError: if the program and the learning rate do not fit.
    """
    total = task.steps if steps is None else steps
    if total < 1:
        raise UserError(f"the number of steps must be at least 1, got {total}")
    checkpoint = None if log_dir is None else Path(log_dir) / CHECKPOINT
    run = TrainingRun(
        task,
        _factory(optimizer, total, learn, options),
        lr,
        seed,
        total,
        options,
        full_batch=full_batch,
        checkpoint=checkpoint,
    )
    _check_devices(run)
    begun = _readable(checkpoint) if resume and checkpoint is not None and checkpoint.exists() else None
    with quiet(), progress_bar(task.name, total) if progress else nullcontext(run.report) as run.report:
        trainer = Trainer(
            accelerator="auto",
            devices=options.devices,
            strategy=_strategy(options),
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
        fit(trainer, run, checkpoint=begun)
    return _result(run, lr, seed)


def is_first_process() -> bool:
    """Whether this process is the one that reports, of those that train together."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def _readable(checkpoint: Path) -> Path:
    try:
        torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{checkpoint} cannot be read as a checkpoint; remove it to begin anew") from error
    return checkpoint


def _check_devices(run: TrainingRun) -> None:
    count, present = run.options.devices, torch.accelerator.device_count()
    if 0 < present < count:
        raise UserError(f"--devices {count}: this machine has {present}")
    if (size := run.batches.indices.shape[1]) % count:
        raise UserError(f"{count} devices cannot share batches of {size} examples equally; use a divisor of {size}")


def _strategy(options: RunOptions) -> Any:
    if options.strategy == "fsdp":
        return ModelParallelStrategy(options.devices, 1, save_distributed_checkpoint=False)
    return options.strategy


def _factory(
    optimizer: Program | Learned | Factory, steps: int, learn: Sequence[str] | None, options: RunOptions
) -> Factory:
    if isinstance(optimizer, Learned):
        return _meta_trained(optimizer, learn, options)
    if not isinstance(optimizer, Program):
        if learn:
            raise UserError(f"only programs can learn {', '.join(learn)}; give a Program in place of a function")
        return optimizer
    program = optimizer
    merged_hypers(program, dict(options.hypers))  # refuses names that are options of the optimizer
    if learn:
        return lambda params, lr, **hypers: learn_rates(params, program, lr, what=learn, total_steps=steps, **hypers)
    return lambda params, lr, **hypers: ProgramOptimizer(params, program, lr, total_steps=steps, **hypers)


def _meta_trained(rule: Learned, learn: Sequence[str] | None, options: RunOptions) -> Factory:
    if options.hypers:
        raise UserError(f"a meta-trained rule has no hyperparameters, and so no {', '.join(options.hypers)}")
    if learn and tuple(learn) != ("lr",):
        raise UserError(f"a meta-trained rule can learn lr, not {', '.join(learn)}")
    if options.strategy == "fsdp":
        raise UserError("a meta-trained rule sees whole parameters, which fsdp divides; choose --strategy ddp")
    return lambda params, lr: MetaOptimizer(params, rule, lr, learn_lr=HYPER_RATE if learn else 0.0)


def _result(run: TrainingRun, lr: float, seed: int) -> RunResult:
    measured = run.measured or run.measure()  # nothing was left to train after a checkpoint of the last step
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
        moves=tuple(run.moves),
        seconds=run.seconds,
        curve=tuple(run.curve),
        valid_curve=tuple(run.valid_curve),
        skipped=0 if run.guard is None else run.guard.tally.skipped,
        clipped=0 if run.guard is None else int(run.guard.tally.clipped),
    )
