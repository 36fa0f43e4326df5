"""What one training run came to."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

TRAINED = 1280
"""So many examples of the training split, evenly spaced, stand for all of them when its loss is reported."""


@dataclass(frozen=True)
class RunResult:
    """What one training run came to.

    Attributes:
        task, lr, seed: as asked for.
        status: ``"ok"``, or ``"diverged"`` with a sentence in `reason`; losses that are not finite are then
            nan.
        steps: how many were made.
        train_loss, valid_loss, test_loss: of the final weights, in the metric of the task; see
            `search.training.loop.evaluate`.
        valid_accuracy, test_accuracy: shares of right classes in [0, 1], or None where the task has no
            classes.
        learned: final value of each learned quantity.
        moves: each large move of one, as a number of steps and a sentence with the reason.
        seconds: wall-clock time of the training loop, without loading data.
        curve: loss of each step's batch before that step.
        valid_curve: pairs of a number of steps and the validation loss after them.
        skipped: steps that were not made, because gradients were not finite.
        clipped: steps whose gradients were clipped.
    """

    task: str
    lr: float
    seed: int
    status: str
    reason: str
    steps: int
    train_loss: float
    valid_loss: float
    test_loss: float
    valid_accuracy: float | None
    test_accuracy: float | None
    learned: dict[str, float]
    seconds: float
    curve: tuple[float, ...]
    valid_curve: tuple[tuple[int, float], ...]
    moves: tuple[tuple[int, str], ...] = ()
    skipped: int = 0
    clipped: int = 0

    def as_json(self) -> dict[str, Any]:
        """The same as a dictionary for `json.dumps`; numbers that are not finite become null."""
        return {name: _finite(value) for name, value in dataclasses.asdict(self).items()}


def _finite(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
