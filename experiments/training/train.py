"""One training run with everything that is shown and written on its way."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

from optforge.experiments.errors import UserError
from optforge.experiments.progress import progress_bar
from optforge.experiments.training.history import History
from optforge.search.training.lightning.engine import train_one
from optforge.search.training.lightning.settings import PLAIN, Settings, SettingsError
from optforge.search.training.trial import Outcome, Trial

CHECKPOINT = "checkpoint.ckpt"
"""Name of the latest checkpoint in the folder of a run."""


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
    history = History() if history is None else history
    with progress_bar(trial.task.name, trial.steps) if progress else nullcontext(history.report) as history.report:
        try:
            return train_one(
                trial,
                settings,
                checkpoint=None if folder is None else folder / CHECKPOINT,
                resume=resume,
                loggers=[] if folder is None else [TensorBoardLogger(folder, name=None, version="")],
                callbacks=[history],
            )
        except SettingsError as error:
            raise UserError(str(error)) from error


__all__ = ["CHECKPOINT", "train"]
