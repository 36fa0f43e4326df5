"""LAMB: You et al. 2020, Large Batch Optimization for Deep Learning: Training BERT in 76 minutes, algorithm 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optforge.baselines.adam import Adam, direction
from optforge.baselines.base import Lists
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import decoupled_weight_decay, trust_ratio


class LAMB(Adam, eps=1e-6, weight_decay=0.01):
    """AdamW's step, scaled in every tensor to the size of the tensor: ``‖p‖`` over that of the step.

    Variant: with bias correction, as in the paper's algorithm, for which some packages have a larger first step
    instead; φ is the identity, without bounds on ``‖p‖``; weight decay belongs to the step that is scaled; the ratio is
    1 where one of the norms is 0; no tensor is exempt.
    """

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        updates = [torch.zeros_like(p) for p in params]
        self._adam({**group, "lr": -1.0}, updates, grads, state, step)
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
