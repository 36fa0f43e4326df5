"""Yogi: Zaheer et al. 2018, Adaptive Methods for Nonconvex Optimization, algorithm 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optforge.baselines.adamw import AdamW
from optforge.baselines.base import Lists
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import debias, decoupled_weight_decay, momentum, rms_normalise

_FIRST = 1e-6  # what second moments begin with, as in the authors' code


class Yogi(AdamW, lr=1e-2, eps=1e-3, weight_decay=0.0):
    """Adam whose second moment moves towards the squared gradient by steps of that gradient's size.

    Adam's moves by a share of the difference, so that a run of small gradients lets it fall, and the rate rise, fast.

    Variant: with Adam's bias corrections, as in the authors' code in TensorFlow Addons; the paper's algorithm has none.
    Second moments begin at 1e-6. Weight decay is decoupled.
    """

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"m": torch.zeros_like(p), "v": torch.full_like(p, _FIRST)}

    def _second_moment(self, group: dict[str, Any], grads: list[Tensor], state: Lists) -> None:
        squares = torch._foreach_mul(grads, grads)
        signs = torch._foreach_sub(state["v"], squares)
        torch._foreach_sign_(signs)
        torch._foreach_addcmul_(state["v"], signs, squares, group["betas"][1] - 1)


def program() -> Program:
    """Yogi in the primitive language."""
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.999, "unit")
    eps, weight_decay = b.hyper("eps", 1e-3, "log"), b.hyper("weight_decay", 0.0, "log")
    m, v, squared = momentum(b, b.slot("m"), b.g, beta1), b.slot("v", init=_FIRST), b.square(b.g)
    v.next = v - (1.0 - beta2) * b.sign(v - squared) * squared
    direction = rms_normalise(b, debias(b, m, beta1), debias(b, v.next, beta2), eps)
    return b.build(decoupled_weight_decay(b, direction, weight_decay))


ROWS = (
    Baseline(
        name="yogi",
        optimizer=Yogi,
        build=program,
        paper="Zaheer et al. 2018, https://papers.nips.cc/paper/8186-adaptive-methods-for-nonconvex-optimization",
        lr_range=(1e-3, 3e-2),
        when="In place of `adam` where gradients are sparse or their size varies by bursts; its large epsilon makes it "
        "milder, and its rate larger.",
        oracles=(Oracle("pytorch_optimizer.Yogi", note="begins the first moment at 1e-6, too", dims=()),),
        cases=({}, {"beta1": 0.0}, {"beta1": 0.5, "beta2": 0.9, "eps": 1e-2, "weight_decay": 0.3}),
    ),
)
