"""ADOPT: Taniguchi et al. 2024, ADOPT: Modified Adam Can Converge with Any β₂ with the Optimal Rate, algorithm 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optforge.baselines.adam import Adam
from optforge.baselines.base import Lists, average_squares, decay_weights
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import decoupled_weight_decay, momentum


class ADOPT(Adam, betas=(0.9, 0.9999), eps=1e-6):
    """The average of gradients, each divided by the root of second moments that do not know it yet.

    As the divisor does not depend on the gradient that it divides, it converges for every decay of second moments.

    Variant: with the paper's clipping of quotients to ``(step - 1)^¼``, without bias corrections. The first gradient
    fills the second moment and moves nothing but weight decay, which is decoupled.
    """

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        lr, (beta1, beta2), m, v = group["lr"], group["betas"], state["m"], state["v"]
        decay_weights(group, params)
        if step == 1:
            torch._foreach_addcmul_(v, grads, grads)
            return
        limit = (step - 1) ** 0.25
        quotients = torch._foreach_div(grads, torch._foreach_clamp_min(torch._foreach_sqrt(v), group["eps"]))
        torch._foreach_clamp_max_(quotients, limit)
        torch._foreach_clamp_min_(quotients, -limit)
        torch._foreach_lerp_(m, quotients, 1 - beta1)
        torch._foreach_add_(params, m, alpha=-lr)
        average_squares(v, grads, beta2)


def program() -> Program:
    """ADOPT in the primitive language; in the first step everything is clipped to 0."""
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.9999, "unit")
    eps, weight_decay = b.hyper("eps", 1e-6, "log"), b.hyper("weight_decay", 0.0, "log")
    v = b.slot("v")
    quotient = b.safe_div(b.g, b.max(b.sqrt(v), eps))
    m = momentum(b, b.slot("m"), b.clip(quotient, b.pow(b.step - 1.0, 0.25)), beta1)
    v.next = b.lerp(v, b.square(b.g), 1.0 - beta2 * b.less(1.0, b.step))
    return b.build(decoupled_weight_decay(b, m, weight_decay))


ROWS = (
    Baseline(
        name="adopt",
        optimizer=ADOPT,
        build=program,
        paper="Taniguchi et al. 2024, arXiv:2411.02853",
        lr_range=(3e-4, 1e-2),
        when="In place of `adamw`, above all where its `beta2` would need tuning: small batches, reinforcement "
        "learning, long runs with rare gradients.",
        oracles=(
            Oracle(
                "pytorch_optimizer.ADOPT",
                {"weight_decouple": True, "clip_lambda": lambda step: (step - 1) ** 0.25},
                note="counts the step that fills second moments, so that it clips a step later unless told",
            ),
        ),
        cases=({}, {"beta1": 0.0}, {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3}),
        visible={"lr": 0.5},
    ),
)
