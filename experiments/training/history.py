"""What a run notes on its way beside its outcome: every loss, and how and why what it learns has moved."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from optforge.experiments.progress import Report
from optforge.learned import LearnedOptimizer
from optforge.primitives.kinds import SCALES
from optforge.search.training.lightning.module import TrainingRun
from optforge.search.training.loop import curve_points

LARGE = 0.99 * math.log(2.0)  # a factor of 2, or as much on a hyperparameter's own scale; but for rounding


class History(Callback):
    """A Lightning callback that keeps what the command reports beside the outcome; its state is part of checkpoints.

    Args:
        report: is told the steps done and the latest loss.

    Attributes:
        curve: loss of each step's batch before that step.
        valid_curve: pairs of a number of steps and the validation loss after them.
        learned: final value of each learned quantity.
        moves: each large move of one, as a number of steps and a sentence with the reason.
        skipped: steps that were not made, because gradients were not finite.
        clipped: steps whose gradients were clipped.
    """

    def __init__(self, report: Report = lambda done, words: None) -> None:
        self.report = report
        self.curve: list[float] = []
        self.valid_curve: list[tuple[int, float]] = []
        self.learned: dict[str, float] = {}
        self.moves: list[tuple[int, str]] = []
        self.skipped, self.clipped = 0, 0
        self._noted: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Note where what is learned begins."""
        self._noted = self._noted or _learned(pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """Report, and note why what is learned moved, in TensorBoard as text."""
        run: TrainingRun = pl_module
        if run.parts:
            return
        step = len(run.losses)
        due = step == 1 or step % run.log_every == 0
        if due or run.device.type == "cpu":  # elsewhere to look is to wait
            self._explain(trainer, run, step)
        if due:
            words = "".join(f", {name} {value:.2g}" for name, value in _learned(run).items())
            self.report(step, f"loss {run.losses[-1]:.4f}{words}")

    def _explain(self, trainer: Trainer, run: TrainingRun, step: int) -> None:
        if isinstance(run.optimizer, LearnedOptimizer):
            for sentence in moves(run.optimizer, self._noted):
                self.moves.append((step, sentence))
                for logger in trainer.loggers:
                    if isinstance(logger, TensorBoardLogger):
                        logger.experiment.add_text("learned/moves", sentence, step)

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Take over what the run has noted itself."""
        run: TrainingRun = pl_module
        self.curve = list(run.losses)
        steps = (index + 1 for index in curve_points(run.trial.steps))
        self.valid_curve = list(zip(steps, run.valid_curve, strict=False))
        self.learned = _learned(run)
        if run.guard is not None:
            self.skipped, self.clipped = run.guard.tally.skipped, int(run.guard.tally.clipped)

    def state_dict(self) -> dict[str, Any]:
        """The moves so far, and since when."""
        return {"moves": self.moves, "noted": self._noted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from those."""
        self.moves, self._noted = list(state_dict["moves"]), dict(state_dict["noted"])


def _learned(run: TrainingRun) -> dict[str, float]:
    """Current value of everything that the optimizer learns; empty for those that learn nothing."""
    values: Callable[[], dict[str, float]] = getattr(run.optimizer, "learned_values", dict)
    return values()


def moves(optimizer: LearnedOptimizer, noted: dict[str, float]) -> list[str]:
    """A sentence for each learned quantity that has moved by a factor of 2 since it was last noted.

    Args:
        optimizer: whose quantities; reading them may wait for the device.
        noted: values when they were last mentioned, as of `LearnedOptimizer.learned_values`; updated in place.
    """
    found = []
    for name, value in optimizer.learned_values().items():
        before = noted.setdefault(name, value)
        forward = math.log if name == "lr" else SCALES[optimizer.scale(name)].forward
        if abs(forward(value) - forward(before)) >= LARGE:
            noted[name] = value
            verb = "raised" if value > before else "lowered"
            found.append(f"{name} {verb} from {before:.3g} to {value:.3g}: {_reason(optimizer, name, value > before)}")
    return found


def _reason(optimizer: LearnedOptimizer, name: str, up: bool) -> str:
    if name != "lr":
        way = "against" if up else "along"
        return f"gradients have pointed {way} what {name} changes in a step, so that the next loss is smaller so"
    if (cap := optimizer.reached_cap) is not None:
        return f"this is the cap, at which a step changes weights by up to {100 * cap:.2g} % of their size"
    return f"gradients {'agree with' if up else 'turn against'} the steps before them"


__all__ = ["LARGE", "History", "moves"]
