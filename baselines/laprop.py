"""LaProp: Ziyin, Wang & Ueda 2020, LaProp: Separating Momentum and Adaptivity in Adam, algorithm 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optforge.baselines.adam import Adam
from optforge.baselines.base import Lists, average_squares, corrected_root, decay_weights
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import debias, decoupled_weight_decay, momentum, rms_normalise


class LaProp(Adam, lr=4e-4, eps=1e-15):
    """Adam in another order: each gradient is divided by the root mean square of its day, and the quotients averaged.

    Adam divides the average by what the root is now, so that a sudden large gradient holds back all earlier ones.

    Variant: the learning rate multiplies the average when it is used, as in the paper; in the authors' code it is
    averaged with the quotients, which is the same until it changes. Weight decay is decoupled.
    """

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        lr, (beta1, beta2), m, v = group["lr"], group["betas"], state["m"], state["v"]
        average_squares(v, grads, beta2)
        quotients = torch._foreach_div(grads, corrected_root(v, beta2, step, group["eps"]))
        torch._foreach_lerp_(m, quotients, 1 - beta1)
        decay_weights(group, params)
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
