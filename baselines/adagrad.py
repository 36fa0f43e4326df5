"""AdaGrad: Duchi, Hazan & Singer 2011, Adaptive Subgradient Methods, figure 1 with diagonal matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.base import HandWritten, Lists, with_l2
from optforge.baselines.checks import check_not_negative
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import rms_normalise


class AdaGrad(HandWritten):
    """Each coordinate's learning rate falls with the root of the sum of its squared gradients.

    Variant: the composite mirror descent update without regulariser, as in `torch.optim.Adagrad`. Epsilon, the paper's
    δ, is added outside the root.

    Args:
        params: parameters or parameter groups.
        lr: step size, η in the paper.
        lr_decay: the learning rate of step t is ``lr / (1 + (t - 1) · lr_decay)``; not in the paper, but in torch.
        weight_decay: coupled, an L2 penalty.
        initial_accumulator_value: what each sum of squares begins with.
        eps: keeps the first steps of small gradients finite.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps}
        options["initial_accumulator_value"] = initial_accumulator_value
        super().__init__(params, options, maximize=maximize, state_dtype=state_dtype)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_not_negative(group, "lr_decay", "initial_accumulator_value")

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"total": torch.full_like(p, group["initial_accumulator_value"])}

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        grads = with_l2(group, params, grads)
        torch._foreach_addcmul_(state["total"], grads, grads)
        denominator = torch._foreach_sqrt(state["total"])
        torch._foreach_add_(denominator, group["eps"])
        lr = group["lr"] / (1 + (step - 1) * group["lr_decay"])
        torch._foreach_addcdiv_(params, grads, denominator, -lr)


def program() -> Program:
    """AdaGrad in the primitive language; the sum begins at zero, and its initial value joins it where it is read."""
    b = Builder()
    lr_decay, weight_decay = b.hyper("lr_decay", 0.0, "log"), b.hyper("weight_decay", 0.0, "log")
    initial, eps = b.hyper("initial_accumulator_value", 0.0, "log"), b.hyper("eps", 1e-10, "log")
    g = b.g + weight_decay * b.p
    total = b.slot("total")
    total.next = total + b.square(g)
    direction = rms_normalise(b, g, total.next + initial, eps)
    return b.build(direction / (1.0 + lr_decay * (b.step - 1.0)))


ROWS = (
    Baseline(
        name="adagrad",
        optimizer=AdaGrad,
        build=program,
        paper="Duchi, Hazan & Singer 2011, https://jmlr.org/papers/v12/duchi11a.html",
        lr_range=(1e-2, 1e-1),
        when="Sparse features, as in embeddings and linear models where rare coordinates matter, and online "
        "convex problems. In long training of deep networks its rate falls too early, as the sum of "
        "squares never forgets.",
        oracles=(Oracle("torch.optim.Adagrad"),),
        cases=(
            {},
            {"lr_decay": 0.3, "weight_decay": 0.3},
            {"initial_accumulator_value": 0.5, "eps": 1e-2},
        ),
    ),
)
