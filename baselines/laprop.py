"""LaProp: Ziyin, Wang & Ueda 2020, LaProp: Separating Momentum and Adaptivity in Adam, algorithm 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.adam import Adam
from optforge.baselines.base import Lists
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import debias, decoupled_weight_decay, momentum, rms_normalise


class LaProp(Adam):
    """Adam in another order: each gradient is divided by the root mean square of its day, and the quotients averaged.

    Adam divides the average by what the root is now, so that a sudden large gradient holds back all earlier ones.

    Variant: the learning rate multiplies the average when it is used, as in the paper; in the authors' code it is
    averaged with the quotients, which is the same until it changes. Weight decay is decoupled.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 4e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-15,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize, state_dtype=state_dtype)

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        lr, (beta1, beta2), m, v = group["lr"], group["betas"], state["m"], state["v"]
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        quotients = torch._foreach_div(v, 1 - beta2**step)
        torch._foreach_sqrt_(quotients)
        torch._foreach_add_(quotients, group["eps"])
        torch._foreach_reciprocal_(quotients)
        torch._foreach_mul_(quotients, grads)
        torch._foreach_lerp_(m, quotients, 1 - beta1)
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, m, alpha=-lr / (1 - beta1**step))


def program() -> Program:
    """LaProp in the primitive language."""
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.999, "unit")
    eps, weight_decay = b.hyper("eps", 1e-15, "log"), b.hyper("weight_decay", 0.0, "log")
    v = debias(b, momentum(b, b.slot("v"), b.square(b.g), beta2), beta2)
    m = debias(b, momentum(b, b.slot("m"), rms_normalise(b, b.g, v, eps), beta1), beta1)
    return b.build(decoupled_weight_decay(b, m, weight_decay))


ROWS = (
    Baseline(
        name="laprop",
        optimizer=LaProp,
        build=program,
        paper="Ziyin, Wang & Ueda 2020, arXiv:2002.04839",
        lr_range=(3e-4, 1e-2),
        when="In place of `adam` where gradients are noisy or rare, as in reinforcement learning, and where `beta2` is "
        "to be small: it stays stable where Adam's two decays do not go together.",
        oracles=(Oracle("pytorch_optimizer.LaProp", note="adds 1e-15 under the root, and rounds to float32", dims=()),),
        cases=(
            {},
            {"beta1": 0.0},
            {"beta1": 0.5, "beta2": 0.9},
            {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3},
        ),
    ),
)
