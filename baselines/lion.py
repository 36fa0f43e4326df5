"""Lion: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.base import HandWritten, Lists, decay_weights
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import decoupled_weight_decay, momentum


class Lion(HandWritten):
    """Evolved sign momentum: the sign of one interpolation steps, a second, slower one is remembered.

    Variant: two betas as in the paper (write-ups with a single one compute something else), and decoupled weight
    decay. Its useful learning rate is three to ten times smaller than AdamW's, its decay that much larger.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__(params, options, maximize=maximize, state_dtype=state_dtype)

    _zeros = ("m",)

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        lr, (beta1, beta2), m = group["lr"], group["betas"], state["m"]
        direction = torch._foreach_lerp(m, grads, 1 - beta1)
        torch._foreach_sign_(direction)
        decay_weights(group, params)
        torch._foreach_add_(params, direction, alpha=-lr)
        torch._foreach_lerp_(m, grads, 1 - beta2)


def program() -> Program:
    """Lion in the primitive language: three statements and weight decay."""
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.99, "unit")
    weight_decay = b.hyper("weight_decay", 0.0, "log")
    m = b.slot("m")
    direction = b.sign(b.lerp(m, b.g, 1.0 - beta1))
    momentum(b, m, b.g, beta2)
    return b.build(decoupled_weight_decay(b, direction, weight_decay))


ROWS = (
    Baseline(
        name="lion",
        optimizer=Lion,
        build=program,
        paper="Chen et al. 2023, arXiv:2302.06675",
        lr_range=(3e-5, 1e-3),
        when="Large batches, with half of the state of `adamw`. Every element moves by the same length, so "
        "take a learning rate 3 to 10 times smaller than that of `adamw`, and a weight decay larger by "
        "the same factor.",
        oracles=(Oracle("lion_pytorch.Lion"),),
        cases=(
            {},
            {"weight_decay": 0.1},
            {"beta1": 0.0, "beta2": 0.0},
            {"beta1": 0.95, "beta2": 0.98, "weight_decay": 1.0},
        ),
    ),
)
