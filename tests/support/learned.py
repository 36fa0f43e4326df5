"""Shared by tests of several files."""

from __future__ import annotations

import torch
from torch import nn

from optforge.baselines import BASELINES
from optforge.primitives import Builder
from optforge.primitives.blocks import heavy_ball, trust_ratio


def sgd():
    b = Builder()
    return b.build(b.g)


def accumulated():
    """Its update is a slot's own next value."""
    b = Builder()
    return b.build(heavy_ball(b, b.slot("m"), b.g, 0.5))


def normed():
    """Reads a signal of the whole model, and reduces over each tensor."""
    b = Builder()
    return b.build(b.g * trust_ratio(b, b.g) / (b.global_norm + 1.0))


def reads_lr():
    """Its update depends on the learning rate: in the statement and through the state."""
    b = Builder()
    m = b.slot("m")
    m.next = b.lerp(m, b.g, 0.3 + b.lr)
    return b.build(m.next * (1.0 + 5.0 * b.lr) + b.tanh(b.g))


PROGRAMS = {
    "sgd": sgd(),
    "accumulated": accumulated(),
    "normed": normed(),
    "reads_lr": reads_lr(),
    **{name: row.program for name, row in BASELINES.items()},
    "prodigy": BASELINES["prodigy"].program.with_defaults(d0=0.1),  # its own moves too little in a few steps
}


class Problem:
    """A smooth network in float64 with a batch for every step."""

    def __init__(self, seed=0):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
        self.x = torch.randn(40, 16, 5, dtype=torch.float64, generator=generator)
        self.y = torch.randn(40, 16, 3, dtype=torch.float64, generator=generator)

    def loss(self, step):
        return nn.functional.mse_loss(self.model(self.x[step]), self.y[step])

    def groups(self, lr, ratio):
        return [
            {"params": self.model[0].parameters(), "lr": lr},
            {"params": self.model[2].parameters(), "lr": ratio * lr},
        ]

    def step(self, optimizer, step):
        optimizer.zero_grad()
        loss = self.loss(step)
        loss.backward()
        optimizer.step()
        return loss.item()

    def flat(self):
        return torch.cat([p.detach().reshape(-1).clone() for p in self.model.parameters()])
