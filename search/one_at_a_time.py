"""Train members one after the other, by the loop that `search.sequential` has: for tasks that cannot be stacked."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from primitives import Program, ProgramOptimizer, Task
from primitives.task import Split, batch_indices, initial_model, trainable
from search.sequential import as_dtype

log = logging.getLogger("optforge")

EVALUATION_ELEMENTS = 2**22  # inputs of a validation chunk, to bound memory


@lru_cache(maxsize=64)
def tell_the_cost(task: str, reason: str) -> None:
    """Say once for each task what it costs that its members are not stacked."""
    log.warning(
        "task %s: its runs are trained one at a time, which takes many times as long as training them together, since "
        "they cannot be stacked (%s)", task, reason,
    )  # fmt: skip


class Member:
    """One run: a program and a rate from one seed.

    Args:
        task, program, lr, seed: what is trained.
        steps: length of the run.
        dtype: of weights and state.
        device: where.

    Attributes:
        losses: training loss of each step before it, until one is not finite.
        diverged_at: the step, counted from 0, whose loss was not finite; -1 if there was none.
    """

    def __init__(
        self, task: Task, program: Program, lr: float, seed: int, steps: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.task, self.seed, self.steps, self.dtype, self.device = task, seed, steps, dtype, device
        self.model = initial_model(task, seed).to(device, dtype)
        self.optimizer = ProgramOptimizer(trainable(self.model).values(), program, lr, total_steps=steps)
        self.losses: list[float] = []
        self.diverged_at = -1

    def train(self, watched: Split | None, points: Sequence[int]) -> list[float]:
        """Train to the end, or until the loss diverges; loss on `watched` after the steps `points`, NaN after that."""
        train, seen = self.task.data().train, dict.fromkeys(points, math.nan)
        for index, at in enumerate(batch_indices(len(train), self.task.batch_size, self.steps, self.seed)):
            inputs, targets = (x.to(self.device) for x in train.batch(at))
            loss = self.task.loss(self.model(as_dtype(inputs, self.dtype)), targets)
            self.losses.append(float(loss.detach()))
            if not math.isfinite(self.losses[-1]):
                self.diverged_at = index
                break
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if watched is not None and index in seen:
                seen[index] = self.measure(watched)[0]
        return list(seen.values())

    @torch.no_grad()
    def measure(self, split: Split) -> tuple[float, float]:
        """Loss and accuracy on a whole split; the accuracy is 0 for tasks without classes."""
        first, _ = split.batch(torch.zeros(1, dtype=torch.int64))
        size = max(1, EVALUATION_ELEMENTS // max(1, first.numel()))
        loss = right = 0.0
        for at in torch.arange(len(split)).split(size):
            inputs, targets = (x.to(self.device) for x in split.batch(at))
            outputs = self.model(as_dtype(inputs, self.dtype))
            loss += float(self.task.loss(outputs, targets)) * len(at)
            if self.task.accuracy:
                right += float((outputs.argmax(-1) == targets).double().mean()) * len(at)
        return loss / len(split), right / len(split)


def padded(losses: Sequence[float], steps: int) -> Tensor:
    """Losses of a run that may have ended early, ``[steps]``; NaN after it."""
    return torch.tensor([*losses, *[math.nan] * (steps - len(losses))], dtype=torch.float64)


__all__ = ["Member", "padded", "tell_the_cost"]
