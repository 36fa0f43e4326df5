"""AdamW: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import Optimizer, ParamsT

from baselines.checks import check_beta, check_not_negative
from primitives import Builder, Program
from primitives.blocks import debias, decoupled_weight_decay, momentum, rms_normalise


class AdamW(Optimizer):
    """Adam with decoupled weight decay, as in `torch.optim.AdamW`: the decay is scaled by the learning rate.

    Variant: epsilon is added outside the square root, to the bias-corrected second moment (Kingma & Ba 2015,
    algorithm 1). The paper's schedule multiplier is the learning rate that a scheduler sets.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        check_not_negative(lr=lr, eps=eps, weight_decay=weight_decay)
        check_beta(betas=betas)
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

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
                    state["step"] = torch.zeros(())
                    state["m"] = torch.zeros_like(p)
                    state["v"] = torch.zeros_like(p)
                state["step"] += 1
                t = state["step"].item()
                m = state["m"].lerp_(p.grad, 1 - beta1)
                v = state["v"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                denominator = (v / (1 - beta2**t)).sqrt_().add_(group["eps"])
                p.mul_(1 - lr * group["weight_decay"])
                p.addcdiv_(m, denominator, value=-lr / (1 - beta1**t))
        return loss


def program() -> Program:
    """AdamW in the primitive language; weight decay enters the update, so that ``lr`` scales both alike."""
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.999, "unit")
    eps, weight_decay = b.hyper("eps", 1e-8, "log"), b.hyper("weight_decay", 0.01, "log")
    m = momentum(b, b.slot("m"), b.g, beta1)
    v = momentum(b, b.slot("v"), b.square(b.g), beta2)
    direction = rms_normalise(b, debias(b, m, beta1), debias(b, v, beta2), eps)
    return b.build(decoupled_weight_decay(b, direction, weight_decay))
