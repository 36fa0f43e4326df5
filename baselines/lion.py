"""Lion: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, ParamsT

from baselines.checks import check_beta, check_not_negative
from primitives import Builder, Program
from primitives.blocks import decoupled_weight_decay, momentum


class Lion(Optimizer):
    """Evolved sign momentum: the sign of one interpolation steps, a second, slower one is remembered.

    Variant: two betas as in the paper (write-ups with a single one compute something else), and decoupled weight
    decay. Its useful learning rate is three to ten times smaller than AdamW's, its decay that much larger.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        check_not_negative(lr=lr, weight_decay=weight_decay)
        check_beta(betas=betas)
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                direction = state["m"].lerp(p.grad, 1 - beta1).sign_()
                p.mul_(1 - lr * group["weight_decay"]).add_(direction, alpha=-lr)
                state["m"].lerp_(p.grad, 1 - beta2)
        return loss


def program() -> Program:
    """Lion in the primitive language: three statements and weight decay."""
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.99, "unit")
    weight_decay = b.hyper("weight_decay", 0.0, "log")
    m = b.slot("m")
    direction = b.sign(b.lerp(m, b.g, 1.0 - beta1))
    momentum(b, m, b.g, beta2)
    return b.build(decoupled_weight_decay(b, direction, weight_decay))
