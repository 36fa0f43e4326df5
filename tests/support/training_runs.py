"""Shared by tests of several files."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from support.strategies import random_gradients
from torch import Tensor, nn
from torch.optim import Optimizer

SHAPES = ((4, 3), (5,), (), (2, 3, 2))


STEPS = 30


def train(
    make: Callable[[list[nn.Parameter]], Optimizer],
    steps: int = STEPS,
    scale: float = 1.0,
    dims: Collection[int] = (0, 1, 2, 3),
) -> list[list[Tensor]]:
    """Parameters of every shape with so many `dims` after each step, in float64, on gradients of changing size."""
    runs = [random_gradients(shape, steps, seed) for seed, shape in enumerate(SHAPES) if len(shape) in dims]
    parameters = [nn.Parameter(run[0].clone()) for run in runs]
    optimizer = make(parameters)
    if hasattr(optimizer, "train"):  # Schedule-Free's
        optimizer.train()
    seen = []
    for t in range(1, steps + 1):
        for p, run in zip(parameters, runs, strict=True):
            p.grad = scale * 10 ** float(t % 5 - 3) * run[t]
        optimizer.step()
        seen.append([p.detach().clone() for p in parameters])
    return seen


def assert_equal(one: list[list[Tensor]], other: list[list[Tensor]]) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
