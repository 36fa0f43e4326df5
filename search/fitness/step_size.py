"""How far a program's first steps go on a task, so that one learning-rate grid serves programs of any scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from optforge.primitives import Program
from optforge.search.training import Task
from optforge.search.training.loop import as_dtype
from optforge.search.training.population.gradients import Gradients
from optforge.search.training.population.native_code import library
from optforge.search.training.population.stacked import Plan, StackedRules
from optforge.search.training.task import batch_indices, initial_model, trainable

STEPS = 8  # the first one alone is no measure: averages of gradients begin at zero
RATE = 1e-9  # so small that the parameters, in float64, stay where they are


def step_sizes(task: Task, programs: Sequence[Program], seed: int, steps: int = STEPS) -> list[float]:
    """For each program the mean distance of its first steps per unit of learning rate, as a share of ‖p‖.

    Parameters stay at the initial weights of `seed`; gradients are those of its first batches. 1 where the distance is
    zero or not finite, or where the program cannot step this model.
    """
    try:
        return _measured(task, programs, seed, steps)
    except Exception:  # one program is at fault; what is wrong with it, its training will say
        if len(programs) == 1:
            return [1.0]
        half = len(programs) // 2
        return step_sizes(task, programs[:half], seed, steps) + step_sizes(task, programs[half:], seed, steps)


@torch.no_grad()
def _measured(task: Task, programs: Sequence[Program], seed: int, steps: int) -> list[float]:
    dtype, train = torch.float64, task.data().train
    model = initial_model(task, seed).to(dtype)
    parameters = trainable(model).values()
    start = nn.utils.parameters_to_vector(parameters)
    single = start[None, None].contiguous()
    arena = start.repeat(1, len(programs), 1)
    gradient, own = torch.zeros_like(arena), torch.zeros_like(single)
    plan = Plan([(program, [RATE]) for program in programs], steps, native=library(dtype) is not None)
    rules = StackedRules(plan, [p.shape for p in parameters], arena, gradient)
    gradients = Gradients(task)
    for index, batch in enumerate(batch_indices(len(train), task.batch_size, steps, seed)):
        inputs, targets = (as_dtype(x, dtype)[None] for x in train.batch(batch))
        gradients(single, inputs, targets, own)
        gradient.copy_(own.expand_as(gradient))
        rules.step(index)
    distance = torch.linalg.vector_norm(arena - start, dim=-1)[0] / (RATE * steps * torch.linalg.vector_norm(start))
    sizes = torch.ones(len(programs), dtype=dtype).index_copy_(0, torch.tensor(plan.order), distance)
    return torch.where(sizes.isfinite() & (sizes > 0), sizes, 1.0).tolist()
