"""Shared by tests of several files."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

from optforge.baselines import BASELINES
from optforge.primitives import Builder, Program
from optforge.search.training import Splits, Task, TensorSplit

ADAMW, LION = BASELINES["adamw"].program, BASELINES["lion"].program


def _data() -> Splits:
    inputs, targets = load_digits(return_X_y=True)
    x, y = torch.tensor(inputs / 16, dtype=torch.float32), torch.tensor(targets)
    return Splits(
        TensorSplit(x[:300], y[:300]), TensorSplit(x[300:420], y[300:420]), TensorSplit(x[420:500], y[420:500])
    )


SMALL = Task(
    name="small",
    summary="",
    model=lambda: nn.Sequential(nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10)),
    data=_data,
    loss=nn.functional.cross_entropy,
    metric="nats",
    steps=12,
    batch_size=16,
    licence="",
    accuracy=True,
)


def diverging() -> Program:
    b = Builder()
    return b.build(b.exp(b.exp(b.exp(b.abs(b.g) + 3.0))))


def normalised() -> Program:
    """Reads each parameter's norm, all signals, and keeps one number per parameter and a copy of the gradient."""
    b = Builder()
    from optforge.primitives import Kind

    size, last = b.slot("size", Kind.SCALAR), b.slot("last", init="g")
    size.next = b.lerp(size, b.norm(b.g), 0.3)
    last.next = b.g
    direction = (b.g + 0.5 * last) / (size.next + 1e-3) + b.g / (b.global_norm + 1.0)
    return b.build(direction * (1.0 - 0.5 * b.progress) / (1.0 + b.lr) + 1e-3 * b.p)


def factored() -> Program:
    """Rows and columns, with a fallback for vectors."""
    b = Builder()
    row, col = b.row_mean(b.square(b.g)), b.col_mean(b.square(b.g))
    rms = b.sqrt(b.outer(row, col) / (b.mean_of(row) + 1e-12))
    return b.build(b.g / (rms + 1e-8), fallback=LION)
