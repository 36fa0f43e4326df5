"""Shared by tests of several files."""

from __future__ import annotations

import torch
from torch import nn

from optforge.search.training import Split, Splits, Task, TensorSplit


def regression(test: Split | None = None, steps: int = 30) -> Task:
    """Noisy linear regression, six inputs: small enough to train in no time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 6, generator=generator)
    y = x @ torch.randn(6, 1, generator=generator) + 0.3 * torch.randn(160, 1, generator=generator)
    train, valid, held_out = (TensorSplit(*xy) for xy in zip(x.split([96, 32, 32]), y.split([96, 32, 32]), strict=True))
    return Task(
        name="regression",
        summary="noisy linear regression",
        model=lambda: nn.Linear(6, 1),
        data=lambda: Splits(train, valid, held_out if test is None else test),
        loss=lambda outputs, targets: (outputs - targets).square().mean(),
        metric="mean squared error",
        steps=steps,
        batch_size=16,
        licence="generated",
    )
