"""The batches of one training run, in their order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from optforge.experiments.errors import UserError
from optforge.search.training.task import Split, Task, batch_indices

MAX_FULL_BATCH = 65_536
"""Most training examples that one batch holds, if it is to hold them all."""


class RunBatches(Iterable[tuple[Tensor, Tensor]]):
    """Inputs and targets of each batch; a plain iterable, as data in memory needs no loading machinery.

    It goes on where it was when its state was kept. With `share` set to (number of a process, number of processes)
    each process has every so many examples of a batch.

    Args:
        task: its batch size is used.
        split: where the examples come from.
        count: number of batches.
        seed: of their order.
        full: make every batch the whole split.

    Raises:
        UserError: if a full batch would be too large.
    """

    def __init__(self, task: Task, split: Split, count: int, seed: int, full: bool = False) -> None:
        self.split, self.share, self.done = split, (0, 1), 0
        if not full:
            self.indices = batch_indices(len(split), task.batch_size, count, seed)
        elif len(split) <= MAX_FULL_BATCH:
            self.indices = torch.arange(len(split)).expand(count, -1)
        else:
            raise UserError(
                f"task {task.name} has {len(split):,} training examples, and a full batch holds at most "
                f"{MAX_FULL_BATCH:,}; use sgd, the same rule on small batches, or a smaller task"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        first, every = self.share
        while self.done < len(self.indices):
            self.done += 1
            yield self.split.batch(self.indices[self.done - 1, first::every])

    def state_dict(self) -> dict[str, int]:
        """How many batches were taken."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on after those."""
        self.done = state_dict["done"]
