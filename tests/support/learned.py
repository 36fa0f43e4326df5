"""Shared by tests of several files."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from optforge.baselines import BASELINES
from optforge.learned import LearnedOptimizer
from optforge.primitives import Builder, ProgramOptimizer
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


class Classes:
    """Three classes by a random linear rule, batches of 64 from 512 points; a network with one or more layers of 32."""

    def __init__(self, depth: int = 1, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.x, w = (torch.randn(s, generator=self.generator) for s in ((512, 16), (16, 3)))
        self.y = (self.x @ w).argmax(1)
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(16, 32), nn.Tanh()]
        for _ in range(depth - 1):
            layers += [nn.Linear(32, 32), nn.Tanh()]
        self.model = nn.Sequential(*layers, nn.Linear(32, 3))

    def loss(self) -> torch.Tensor:
        i = torch.randint(512, (64,), generator=self.generator)
        return cross_entropy(self.model(self.x[i]), self.y[i])

    def end(self) -> float:
        with torch.no_grad():
            return cross_entropy(self.model(self.x), self.y).item()

    def train(
        self,
        optimizer: LearnedOptimizer | ProgramOptimizer,
        steps: int,
        spike: int = -1,
        where: int | None = None,
        size: float = 1e4,
        told: bool | Callable[[int, float], float | None] = False,
    ) -> list[float]:
        """Losses of some steps; `told` is whether they are told, or gives what is, or None, for a step and its loss."""
        losses: list[float] = []

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            for p in list(self.model.parameters())[slice(None) if where is None else slice(where, where + 1)]:
                p.grad *= size if len(losses) == spike else 1.0
            return loss

        for step in range(steps):
            loss = optimizer.step(closure) if told is True else closure()
            if told is not True:
                other = told(step, loss.item()) if told else None
                optimizer.step(None if other is None else lambda other=other: other)
            losses.append(loss.item())
        return losses
