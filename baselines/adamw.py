"""AdamW: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from baselines.base import HandWritten, Lists
from baselines.checks import check_beta, check_not_negative
from primitives import Builder, Program
from primitives.blocks import debias, decoupled_weight_decay, momentum, rms_normalise


class AdamW(HandWritten):
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
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options, maximize=maximize, state_dtype=state_dtype)

    def _check(self, group: dict[str, Any]) -> None:
        check_not_negative(group, "lr", "eps", "weight_decay")
        check_beta(group, "betas")

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"m": torch.zeros_like(p), "v": torch.zeros_like(p)}

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        lr, (beta1, beta2), m, v = group["lr"], group["betas"], state["m"], state["v"]
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        denominator = torch._foreach_div(v, 1 - beta2**step)
        torch._foreach_sqrt_(denominator)
        torch._foreach_add_(denominator, group["eps"])
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_addcdiv_(params, m, denominator, -lr / (1 - beta1**step))


def program() -> Program:
    """AdamW in the primitive language; weight decay enters the update, so that ``lr`` scales both alike."""
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.999, "unit")
    eps, weight_decay = b.hyper("eps", 1e-8, "log"), b.hyper("weight_decay", 0.01, "log")
    m = momentum(b, b.slot("m"), b.g, beta1)
    v = momentum(b, b.slot("v"), b.square(b.g), beta2)
    direction = rms_normalise(b, debias(b, m, beta1), debias(b, v, beta2), eps)
    return b.build(decoupled_weight_decay(b, direction, weight_decay))
