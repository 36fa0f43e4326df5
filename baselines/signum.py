"""Signum: Bernstein et al. 2018, signSGD: Compressed Optimisation for Non-Convex Problems, algorithm 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.base import HandWritten, Lists, decay_weights
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import decoupled_weight_decay, momentum


class Signum(HandWritten):
    """The sign of the average gradient: every element moves by the same length. Without momentum it is signSGD.

    Variant: the paper's, for one worker. Weight decay is decoupled, as the paper's λ is.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, options, maximize=maximize, state_dtype=state_dtype)

    _zeros = ("m",)

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        torch._foreach_lerp_(state["m"], grads, 1 - group["momentum"])
        decay_weights(group, params)
        torch._foreach_add_(params, torch._foreach_sign(state["m"]), alpha=-group["lr"])


def program() -> Program:
    """Signum in the primitive language."""
    b = Builder()
    beta, weight_decay = b.hyper("momentum", 0.9, "unit"), b.hyper("weight_decay", 0.0, "log")
    return b.build(decoupled_weight_decay(b, b.sign(momentum(b, b.slot("m"), b.g, beta)), weight_decay))


ROWS = (
    Baseline(
        name="signum",
        optimizer=Signum,
        build=program,
        paper="Bernstein et al. 2018, arXiv:1802.04434",
        lr_range=(3e-5, 1e-3),
        when="A reference for `lion`, which differs from it in a second decay only; and where gradients are to be sent "
        "between machines as one bit for each element.",
        oracles=(Oracle("pytorch_optimizer.SignSGD"),),
        cases=({}, {"momentum": 0.0}, {"momentum": 0.5, "weight_decay": 0.3}),
    ),
)
