"""AdaBelief: Zhuang et al. 2020, AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients,
algorithm 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optforge.baselines.adamw import AdamW
from optforge.baselines.base import Lists, average_squares
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import debias, decoupled_weight_decay, momentum, rms_normalise


class AdaBelief(AdamW, eps=1e-16, weight_decay=0.0):
    """Adam that divides by how far gradients are from their average, not by how large they are.

    Steps are long where gradients agree with what was expected of them, and short where they surprise.

    Variant: the paper's, where epsilon joins the second moment in every step as well as its root; decoupled weight
    decay; without rectification. The default of epsilon is that of the authors' code.
    """

    def _second_moment(self, group: dict[str, Any], grads: list[Tensor], state: Lists) -> None:
        average_squares(state["v"], list(torch._foreach_sub(grads, state["m"])), group["betas"][1])
        torch._foreach_add_(state["v"], group["eps"])


def program() -> Program:
    """AdaBelief in the primitive language."""
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.999, "unit")
    eps, weight_decay = b.hyper("eps", 1e-16, "log"), b.hyper("weight_decay", 0.0, "log")
    m, v = momentum(b, b.slot("m"), b.g, beta1), b.slot("v")
    v.next = b.lerp(v, b.square(b.g - m), 1.0 - beta2) + eps
    direction = rms_normalise(b, debias(b, m, beta1), debias(b, v.next, beta2), eps)
    return b.build(decoupled_weight_decay(b, direction, weight_decay))


ROWS = (
    Baseline(
        name="adabelief",
        optimizer=AdaBelief,
        build=program,
        paper="Zhuang et al. 2020, arXiv:2010.07468",
        lr_range=(3e-4, 1e-2),
        when="In place of `adam` for convolutional networks and generative adversarial ones, where its authors report "
        "the accuracy of SGD at the pace of Adam. It depends on epsilon more than Adam does.",
        oracles=(Oracle("pytorch_optimizer.AdaBelief"),),
        cases=({}, {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3}),
    ),
)
