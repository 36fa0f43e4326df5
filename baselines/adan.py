"""Adan: Xie et al. 2022, Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep Models, algorithm 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.base import HandWritten, Lists, average_squares, corrected_root
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import debias, momentum, rms_normalise


class Adan(HandWritten):
    """Adam with Nesterov momentum from gradients alone: a second average follows their differences between steps.

    Variant: algorithm 1 with its proximal weight decay, a division of the parameter by ``1 + lr · weight_decay``
    after the step, not a subtraction before it; without restarts. `betas` are decays, one minus those of the paper,
    whose 0.02, 0.08, 0.01 are the defaults here. As in the authors' code, averages begin at zero and are corrected for
    it; in the paper they begin at the first gradient. The first difference is zero: that gradient is not dropped.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options, maximize=maximize, state_dtype=state_dtype)

    _zeros = ("m", "v", "n", "previous")
    _betas = 3

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        lr, (beta1, beta2, beta3) = group["lr"], group["betas"]
        m, v, n, previous = (state[name] for name in ("m", "v", "n", "previous"))
        change = torch._foreach_sub(grads, grads if step == 1 else previous)
        for old, g in zip(previous, grads, strict=True):
            old.copy_(g)  # shards have no _foreach_copy_
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_lerp_(v, change, 1 - beta2)
        torch._foreach_mul_(change, beta2)
        torch._foreach_add_(change, grads)  # the gradient that Nesterov's method would take further ahead
        average_squares(n, list(change), beta3)
        denominator = corrected_root(n, beta3, step, group["eps"])
        torch._foreach_addcdiv_(params, m, denominator, -lr / (1 - beta1**step))
        torch._foreach_addcdiv_(params, v, denominator, -lr * beta2 / (1 - beta2**step))
        torch._foreach_div_(params, 1 + lr * group["weight_decay"])


def program() -> Program:
    """Adan in the primitive language; ``(p - lr · x) / (1 + lr · λ)`` is ``p - lr · (x + λ · p) / (1 + lr · λ)``."""
    b = Builder()
    beta1, beta2, beta3 = b.hyper("beta1", 0.98, "unit"), b.hyper("beta2", 0.92, "unit"), b.hyper("beta3", 0.99, "unit")
    eps, weight_decay = b.hyper("eps", 1e-8, "log"), b.hyper("weight_decay", 0.0, "log")
    previous = b.slot("previous", init="g")
    previous.next = b.g
    change = b.g - previous
    m = debias(b, momentum(b, b.slot("m"), b.g, beta1), beta1)
    v = debias(b, momentum(b, b.slot("v"), change, beta2), beta2)
    n = debias(b, momentum(b, b.slot("n"), b.square(b.g + beta2 * change), beta3), beta3)
    direction = rms_normalise(b, m + beta2 * v, n, eps)
    return b.build((direction + weight_decay * b.p) / (1.0 + b.lr * weight_decay))


ROWS = (
    Baseline(
        name="adan",
        optimizer=Adan,
        build=program,
        paper="Xie et al. 2022, arXiv:2208.06677",
        lr_range=(3e-3, 3e-2),
        when="Large batches, where twice the state of `adamw` can be afforded; its authors report fewer steps "
        "on vision and language models, and tolerance of large learning rates.",
        oracles=(Oracle("pytorch_optimizer.Adan"),),
        cases=(
            {},
            {"weight_decay": 0.3},
            {"beta1": 0.0, "beta2": 0.0, "beta3": 0.0},
            {"beta1": 0.5, "beta2": 0.7, "beta3": 0.9, "eps": 1e-3},
        ),
    ),
)
