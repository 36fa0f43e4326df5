"""What a population needs whose members are trained one after the other, as tasks that cannot be stacked demand."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

log = logging.getLogger("optforge")


@lru_cache(maxsize=64)
def tell_the_cost(task: str, reason: str) -> None:
    """Say once for each task what it costs that its members are not stacked."""
    log.warning(
        "task %s: its runs are trained one at a time, which takes many times as long as training them together, since "
        "they cannot be stacked (%s)", task, reason,
    )  # fmt: skip


def padded(losses: Sequence[float], steps: int) -> Tensor:
    """Losses of a run that may have ended early, ``[steps]``; NaN after it."""
    return torch.tensor([*losses, *[math.nan] * (steps - len(losses))], dtype=torch.float64)


__all__ = ["padded", "tell_the_cost"]
