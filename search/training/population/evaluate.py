"""Batches for a population, and what its members are worth on a whole split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.utils.data import Dataset

from optforge.search.training import Task
from optforge.search.training.loop import as_dtype
from optforge.search.training.population.gradients import views
from optforge.search.training.task import Split, batch_indices, initial_model, trainable

EVALUATION_ELEMENTS = 2**22  # inputs × members in one pass at most, to bound memory
PASS_ELEMENTS, PASS_EXAMPLES = 2**11, 64  # inputs in one pass, whoever is measured with them, and the fewest examples
CHUNK = 10  # steps per Lightning batch: its loop costs 0.3 ms a turn, as much as a quarter of a population's step


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """The batches of every seed for the next few steps: inputs ``[steps, seeds, batch, …]`` and targets."""

    def __init__(self, split: Split, batch_size: int, steps: int, seeds: Sequence[int], dtype: torch.dtype) -> None:
        self.split, self.dtype = split, dtype
        indices = torch.stack([batch_indices(len(split), batch_size, steps, seed) for seed in seeds], dim=1)
        self.chunks = indices.split(CHUNK)

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self.split.batch(self.chunks[number])
        return as_dtype(inputs, self.dtype), targets


@torch.no_grad()
def measure(task: Task, arena: Tensor, split: Split) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of all of an arena ``[seeds, members, elements]`` on a split, ``[members, seeds]`` each.

    The accuracy is 0 for tasks without classes.
    """
    model = initial_model(task, 0).to(arena.device, arena.dtype)
    names, shapes = zip(*((name, p.shape) for name, p in trainable(model).items()), strict=True)
    members = arena.flatten(0, 1)  # one dimension: some of torch's losses are wrong under two vmaps
    parameters = dict(zip(names, views(members, shapes), strict=True))
    first, _ = split.batch(torch.zeros(1, dtype=torch.int64))
    most = EVALUATION_ELEMENTS // (first.numel() * len(members))
    size = max(1, min(most, max(PASS_EXAMPLES, PASS_ELEMENTS // first.numel())))
    loss, right = (torch.zeros(len(members), dtype=torch.float64, device=arena.device) for _ in range(2))

    def one(p: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        outputs = functional_call(model, p, (x,))
        hits = (outputs.argmax(-1) == y).double().mean() if task.accuracy else x.new_zeros(())
        return task.loss(outputs, y), hits

    everyone = vmap(one, in_dims=(0, None, None))
    for indices in torch.arange(len(split)).split(size):
        inputs, targets = (x.to(arena.device) for x in split.batch(indices))
        found = everyone(parameters, as_dtype(inputs, arena.dtype), targets)
        loss += found[0] * len(indices)
        right += found[1] * len(indices)
    loss, right = ((x / len(split)).view(arena.shape[:2]).T.cpu() for x in (loss, right))
    return loss, right
