"""Train one trial with Lightning: on any number of devices, with checkpoints, loggers and callbacks."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import ModelParallelStrategy

from optforge.search.training.lightning.fit import fit, quiet
from optforge.search.training.lightning.module import TrainingRun
from optforge.search.training.lightning.monitor import OptimizerMonitor
from optforge.search.training.lightning.settings import PLAIN, Settings, SettingsError
from optforge.search.training.trial import Outcome, Trial


def train_lightning(trials: Sequence[Trial]) -> list[Outcome]:
    """Outcomes of trials, each trained by itself on one device; see `search.training.train.Engine`."""
    return [train_one(trial) for trial in trials]


def train_one(
    trial: Trial,
    settings: Settings = PLAIN,
    checkpoint: Path | None = None,
    resume: bool = False,
    loggers: Iterable[Logger] = (),
    callbacks: Iterable[Callback] = (),
) -> Outcome:
    """The outcome of a trial, that of the plain loop up to rounding.

    Several devices share each batch, so that the run is that of one device up to rounding; each is a process of its
    own, which runs the whole script once more and comes to this call.

    Args:
        trial: what is trained.
        settings: devices, accumulation, checkpoints and what only this engine has.
        checkpoint: file for checkpoints.
        resume: go on from the checkpoint, if there is one; everything else must be as it was then. The outcome is that
            of the uninterrupted run, bit for bit on CPUs.
        loggers: get losses and what is observed of the optimizer.
        callbacks: are told of the training of a `module.TrainingRun`; their state is part of checkpoints.

    Raises:
        SettingsError: if devices are missing or cannot share a batch equally, or if the checkpoint is another run's.
        ProgramError: if the program and the learning rate do not fit.
    """
    _check(trial, settings)
    run = TrainingRun(trial, settings, checkpoint)
    begun = _readable(checkpoint) if resume and checkpoint is not None and checkpoint.exists() else None
    strategy: Any = settings.strategy
    if strategy == "fsdp":
        strategy = ModelParallelStrategy(settings.devices, 1, save_distributed_checkpoint=False)
    with quiet():
        trainer = Trainer(
            accelerator="auto", devices=settings.devices, strategy=strategy, max_steps=trial.steps,
            accumulate_grad_batches=settings.accumulate, plugins=run.plugins(),
            callbacks=[OptimizerMonitor(settings.monitor, run.tally), *callbacks],
            logger=list(loggers), log_every_n_steps=run.log_every, enable_checkpointing=False, num_sanity_val_steps=0,
            enable_model_summary=False, enable_progress_bar=False,
        )  # fmt: skip
        fit(trainer, run, checkpoint=begun)
    return run.outcome()


def is_first_process() -> bool:
    """Whether this process is the one that reports, of those that train together."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def _check(trial: Trial, settings: Settings) -> None:
    count, whole, parts = settings.devices, trial.task.batch_size, settings.accumulate
    if 0 < (present := torch.accelerator.device_count()) < count:
        raise SettingsError(f"--devices {count}: this machine has {present}")
    if whole % parts:
        raise SettingsError(f"a batch of {whole} examples has no {parts} equal parts")
    if (size := whole // parts) % count:
        raise SettingsError(f"{count} devices cannot share batches of {size} examples equally; use a divisor of {size}")
    if settings.strategy == "fsdp" and trial.precision == "fp16":
        raise SettingsError("the loss scale of fp16 does not go with fsdp; use --precision bf16")


def _readable(checkpoint: Path) -> Path:
    try:
        torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise SettingsError(f"{checkpoint} cannot be read as a checkpoint; remove it to begin anew") from error
    return checkpoint
