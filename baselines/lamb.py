"""LAMB: You et al. 2020, Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, algorithm 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.adam import Adam, direction
from optforge.baselines.base import Lists
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import decoupled_weight_decay, trust_ratio


class LAMB(Adam):
    """AdamW's step, scaled in every tensor to the size of the tensor: ``‖p‖`` over that of the step.

    Variant: with bias correction, as in the paper's algorithm, for which some packages have a larger first step
    instead; φ is the identity, without bounds on ``‖p‖``; weight decay belongs to the step that is scaled; the ratio is
    1 where one of the norms is 0; no tensor is exempt.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize, state_dtype=state_dtype)

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        (beta1, beta2), m, v = group["betas"], state["m"], state["v"]
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        updates = torch._foreach_div(v, 1 - beta2**step)
        torch._foreach_sqrt_(updates)
        torch._foreach_add_(updates, group["eps"])
        torch._foreach_mul_(updates, 1 - beta1**step)
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, m)
        torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        sizes, lengths = torch._foreach_norm(params), torch._foreach_norm(updates)
        ratios = [
            torch.where((size > 0) & (length > 0), size / length, 1.0)
            for size, length in zip(sizes, lengths, strict=True)
        ]
        torch._foreach_mul_(updates, ratios)
        torch._foreach_add_(params, updates, alpha=-group["lr"])


def program() -> Program:
    """LAMB in the primitive language: AdamW's program with a trust ratio."""
    b = Builder()
    step = decoupled_weight_decay(b, direction(b, b.g), b.hyper("weight_decay", 0.01, "log"))
    return b.build(trust_ratio(b, step) * step).with_defaults(eps=1e-6)


ROWS = (
    Baseline(
        name="lamb",
        optimizer=LAMB,
        build=program,
        paper="You et al. 2020, arXiv:1904.00962",
        lr_range=(3e-3, 3e-2),
        when="Transformers with batches of many thousand sequences, with warm-up. At usual batch sizes `adamw`"
        " is as good and simpler.",
        oracles=(Oracle("pytorch_optimizer.Lamb", note="corrects one bias of two: its first step is 10 lr", dims=()),),
        cases=(
            {},
            {"weight_decay": 0.0},
            {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3},
        ),
    ),
)
