"""Shared by tests of several files."""

from __future__ import annotations

import io
from typing import Any

import torch
from support.strategies import random_gradients
from torch import Tensor, nn

from optforge.baselines import BASELINES
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import momentum

ADAMW, LION = BASELINES["adamw"].program, BASELINES["lion"].program


def orthogonal(fallback: Program | None = None) -> Program:
    b = Builder()
    return b.build(b.orthogonalise(momentum(b, b.slot("m"), b.g, b.hyper("beta", 0.9, "unit"))), fallback)


MODEL = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2), nn.LayerNorm(2))


BY_SHAPE = ["program", "program", "fallback", "fallback", "fallback"]


def no_embedding(name: str, p: Tensor) -> bool:
    return name != "0.weight"


def named(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[tuple[str, nn.Parameter]]:
    """Parameters with the names and shapes of the model's."""
    shapes = [(name, tuple(p.shape)) for name, p in MODEL.named_parameters()]
    return [(n, nn.Parameter(random_gradients(s, 0, seed + i, dtype)[0])) for i, (n, s) in enumerate(shapes)]


def step(optimizer: torch.optim.Optimizer, t: int) -> None:
    """One step with gradients that depend on the shape of a parameter and on `t` only."""
    for p in parameters(optimizer):
        p.grad = random_gradients(tuple(p.shape), 0, 1000 + 10 * t + p.numel(), p.dtype)[0]
    optimizer.step()


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def through_file(saved: object) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]
