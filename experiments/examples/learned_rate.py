"""A learned learning rate in a loop of one's own: ``python -m experiments.examples.learned_rate``."""

from __future__ import annotations

import torch
from torch import nn

from optforge.baselines import BASELINES
from optforge.learned import learn


def main(steps: int = 300, lr: float = 1e-6) -> tuple[float, float]:
    """Fit a sine from a rate that is far too small; returns the last loss and the learned rate."""
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 256)[:, None]
    model = nn.Sequential(nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = learn(model.parameters(), BASELINES["adamw"].program, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), x.sin())
        loss.backward()
        optimizer.step()
    rate = optimizer.learned_values()["lr"]
    print(f"loss {loss.item():.4f} after {steps} steps; the rate went from {lr:g} to {rate:.2g}")
    return loss.item(), rate


if __name__ == "__main__":
    main()
