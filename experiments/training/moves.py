"""A Lightning callback that notes how and why what a run learns has moved, and reports progress."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from optforge.experiments.progress import Report
from optforge.learned import LearnedOptimizer
from optforge.primitives.kinds import SCALES
from optforge.search.training.lightning.module import TrainingRun

LARGE = 0.99 * math.log(2.0)  # a factor of 2, or as much on a hyperparameter's own scale; but for rounding


class History(Callback):
    """Keep large moves of learned quantities, also in checkpoints and in TensorBoard as text, and report progress.

    Attributes:
        report: is told the steps done and the latest loss.
        run: what is trained, with all its losses.
        moves: each large move, as a number of steps and a sentence with the reason.
    """

    run: TrainingRun

    def __init__(self) -> None:
        self.report: Report = lambda done, words: None
        self.moves: list[tuple[int, str]] = []
        self._noted: dict[str, float] = {}

    @property
    def learned(self) -> dict[str, float]:
        """Current value of everything that the optimizer learns; empty for those that learn nothing."""
        values: dict[str, float] = getattr(self.run.optimizer, "learned_values", dict)()
        return values

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Note where what is learned begins."""
        self.run = pl_module
        self._noted = self._noted or self.learned

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Report, and note what has moved and why."""
        run, step = self.run, len(self.run.losses)
        due = step == 1 or step % run.log_every == 0
        if run.parts or not (due or run.device.type == "cpu"):  # elsewhere to look is to wait
            return
        for sentence in moves(run.optimizer, self._noted) if isinstance(run.optimizer, LearnedOptimizer) else ():
            self.moves.append((step, sentence))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_text("learned/moves", sentence, step)
        if due:
            words = "".join(f", {name} {value:.2g}" for name, value in self.learned.items())
            self.report(step, f"loss {run.losses[-1]:.4f}{words}")

    def state_dict(self) -> dict[str, Any]:
        """The moves so far, and since when."""
        return {"moves": self.moves, "noted": self._noted}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from those."""
        self.moves, self._noted = state_dict["moves"], state_dict["noted"]


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
