"""LARS: You, Gitman & Ginsburg 2017, Large Batch Training of Convolutional Networks, algorithm 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.base import HandWritten, Lists
from optforge.baselines.checks import check_positive
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import heavy_ball


class LARS(HandWritten):
    """SGD with momentum whose step is, in every tensor, a fixed share of the tensor's own size.

    Variant: every tensor, biases too, and with or without weight decay, has the local rate of equation 6,
    ``trust_coefficient · ‖p‖ / (‖g‖ + weight_decay · ‖p‖)``; where p is zero, which the paper leaves out and which
    would never move, the rate is 1. The learning rate multiplies the momentum, as in `torch.optim.SGD`, not what enters
    it, as in the paper: the same while `lr` stays the same. Schedule and warm-up are a scheduler's.

    Args:
        params: parameters or parameter groups.
        lr: global learning rate, γ in the paper.
        momentum: decay of the undamped sum of updates.
        weight_decay: L2 penalty, β in the paper, inside the local rate.
        trust_coefficient: share of a tensor's size that one update is, η in the paper.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}
        super().__init__(params, options, maximize=maximize, state_dtype=state_dtype)

    _zeros = ("m",)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_positive(group, "trust_coefficient")

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        weight_decay, m = group["weight_decay"], state["m"]
        sizes = torch._foreach_norm(params)
        divisors = torch._foreach_add(torch._foreach_norm(grads), torch._foreach_mul(sizes, weight_decay))
        rates = [
            torch.where((size > 0) & (divisor > 0), group["trust_coefficient"] * size / divisor, 1.0)
            for size, divisor in zip(sizes, divisors, strict=True)
        ]
        updates = torch._foreach_add(grads, params, alpha=weight_decay)
        torch._foreach_mul_(updates, rates)
        torch._foreach_mul_(m, group["momentum"])
        torch._foreach_add_(m, updates)
        torch._foreach_add_(params, m, alpha=-group["lr"])


def program() -> Program:
    """LARS in the primitive language."""
    b = Builder()
    momentum, weight_decay = b.hyper("momentum", 0.9, "unit"), b.hyper("weight_decay", 0.0, "log")
    trust_coefficient = b.hyper("trust_coefficient", 1e-3, "log")
    size = b.norm(b.p)
    rate = b.safe_div(trust_coefficient * size, b.norm(b.g) + weight_decay * size)
    rate = rate + b.invert(b.sign(size))  # 1 where the parameter is zero
    return b.build(heavy_ball(b, b.slot("m"), rate * (b.g + weight_decay * b.p), momentum))


ROWS = (
    Baseline(
        name="lars",
        optimizer=LARS,
        build=program,
        paper="You, Gitman & Ginsburg 2017, arXiv:1708.03888",
        lr_range=(1.0, 1e1),
        when="Convolutional networks with batches of many thousand images, with warm-up. The learning rate "
        "multiplies `trust_coefficient`, hence its unusual size.",
        oracles=(Oracle("pytorch_optimizer.LARS", note="vectors are exempt there", dims=(2, 3)),),
        cases=(
            {"trust_coefficient": 0.1},
            {"trust_coefficient": 1.0, "momentum": 0.0},
            {"trust_coefficient": 1.0, "weight_decay": 0.3},
        ),
        visible={"lr": 30.0},
    ),
)
