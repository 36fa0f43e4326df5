"""Adam: Kingma & Ba 2015, Adam: A Method for Stochastic Optimization, algorithm 1; and Adam with an L2 penalty."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.base import HandWritten, Lists, average_squares, corrected_root, with_l2
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import debias, momentum, rms_normalise
from optforge.primitives.builder import Expr


class Adam(HandWritten):
    """The average gradient divided by the root mean square gradient, both corrected for starting at zero.

    Variant: as in `torch.optim.Adam`, weight decay is an L2 penalty, which the division rescales; `AdamW` decouples it.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options, maximize=maximize, state_dtype=state_dtype)

    _zeros: tuple[str, ...] = ("m", "v")

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        self._adam(group, params, with_l2(group, params, grads), state, step)

    def _adam(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(state["m"], grads, 1 - beta1)
        self._second_moment(group, grads, state)
        roots = corrected_root(state["v"], beta2, step, group["eps"])
        torch._foreach_addcdiv_(params, state["m"], roots, -group["lr"] / (1 - beta1**step))

    def _second_moment(self, group: dict[str, Any], grads: list[Tensor], state: Lists) -> None:
        """Move ``state["v"]``, in place; ``state["m"]`` already holds `grads`."""
        average_squares(state["v"], grads, group["betas"][1])


class AdamL2(Adam, weight_decay=0.01):
    """Adam with an L2 penalty by default, to be set beside `AdamW` (Loshchilov & Hutter 2019, algorithm 2)."""


def direction(b: Builder, g: Expr) -> Expr:
    """Adam's step for the gradient `g` at learning rate 1; declares ``beta1``, ``beta2``, ``eps`` and two slots."""
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.999, "unit")
    eps = b.hyper("eps", 1e-8, "log")
    m = momentum(b, b.slot("m"), g, beta1)
    v = momentum(b, b.slot("v"), b.square(g), beta2)
    return rms_normalise(b, debias(b, m, beta1), debias(b, v, beta2), eps)


def program() -> Program:
    """Adam in the primitive language, without weight decay, as in the paper."""
    b = Builder()
    return b.build(direction(b, b.g))


def l2_program() -> Program:
    """Adam with an L2 penalty in the primitive language: weight decay enters the gradient."""
    b = Builder()
    return b.build(direction(b, b.g + b.hyper("weight_decay", 0.01, "log") * b.p))


ROWS = (
    Baseline(
        name="adam",
        optimizer=Adam,
        build=program,
        paper="Kingma & Ba 2015, arXiv:1412.6980",
        lr_range=(3e-4, 1e-2),
        when="A first choice without weight decay: gradients of very different sizes, little time for tuning. "
        "With weight decay, take `adamw`.",
        oracles=(Oracle("torch.optim.Adam"),),
        cases=(
            {},
            {"beta1": 0.0},
            {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3},
        ),
    ),
    Baseline(
        name="adam-l2",
        optimizer=AdamL2,
        build=l2_program,
        paper="Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2 with L2 regularisation",
        lr_range=(3e-4, 1e-2),
        when="Only to see how it differs from `adamw`: the penalty is divided by the size of the gradients, so"
        " that weights with large gradients decay least.",
        oracles=(Oracle("torch.optim.Adam"),),
        cases=(
            {},
            {"weight_decay": 0.0},
            {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3},
        ),
    ),
)
