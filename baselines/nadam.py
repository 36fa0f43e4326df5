"""NAdam: Dozat 2016, Incorporating Nesterov Momentum into Adam, algorithm 2."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.base import HandWritten, Lists, average_squares, corrected_root, decay_weights, with_l2
from optforge.baselines.checks import check_not_negative
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Kind, Program
from optforge.primitives.blocks import debias, decoupled_weight_decay, momentum, rms_normalise
from optforge.primitives.builder import Expr


class NAdam(HandWritten):
    """Adam that looks ahead: the step holds the gradient of now and the momentum that the next step would apply.

    Variant: that of `torch.optim.NAdam` and Keras. The momentum warms up, ``μ(t) = β₁ · (1 - 0.96^(t · ψ) / 2)`` with
    ψ = `momentum_decay`, and weighs what enters the step; the average of gradients itself decays with β₁. In the paper
    it decays with μ(t), of which the bias correction by the product of all μ so far is exact. The paper's factor β₂ on
    the corrected average of squares is left out. Weight decay is coupled, an L2 penalty.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "momentum_decay": momentum_decay}
        super().__init__(params, options, maximize=maximize, state_dtype=state_dtype)

    _zeros = ("m", "v")

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_not_negative(group, "momentum_decay")

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return super()._start(p, group) | {"mu_product": p.new_ones(())}

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        (beta1, beta2), m, v, products = group["betas"], state["m"], state["v"], state["mu_product"]
        mu, following = (beta1 * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (step, step + 1))
        grads = with_l2(group, params, grads)
        torch._foreach_mul_(products, mu)
        torch._foreach_lerp_(m, grads, 1 - beta1)
        average_squares(v, grads, beta2)
        denominator = corrected_root(v, beta2, step, group["eps"])
        direction = torch._foreach_mul(grads, [(1 - mu) / (1 - x) for x in products])
        ahead = torch._foreach_mul(m, [following / (1 - x * following) for x in products])
        torch._foreach_add_(direction, ahead)
        torch._foreach_addcdiv_(params, direction, denominator, -group["lr"])


class NAdamW(NAdam, weight_decay=0.01):
    """NAdam with decoupled weight decay.

    Variant: that of `torch.optim.NAdam` with ``decoupled_weight_decay=True``; the rest is as in `NAdam`.
    """

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        decay_weights(group, params)
        super()._apply({**group, "weight_decay": 0.0}, params, grads, state, step)


def program(*, decoupled: bool = False) -> Program:
    """NAdam in the primitive language; one number for each parameter holds the product of momenta so far.

    With `decoupled`, weight decay enters the update and not the gradient.
    """
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.999, "unit")
    eps, weight_decay = b.hyper("eps", 1e-8, "log"), b.hyper("weight_decay", 0.01 if decoupled else 0.0, "log")
    momentum_decay = b.hyper("momentum_decay", 4e-3, "log")

    def mu(t: Expr) -> Expr:
        return beta1 * (1.0 - 0.5 * b.pow(0.96, t * momentum_decay))

    now, following = mu(b.step), mu(b.step + 1.0)
    g = b.g if decoupled else b.g + weight_decay * b.p
    m = momentum(b, b.slot("m"), g, beta1)
    v = momentum(b, b.slot("v"), b.square(g), beta2)
    product = b.slot("mu_product", Kind.SCALAR, 1.0)
    product.next = product * now
    direction = (1.0 - now) / (1.0 - product.next) * g + following / (1.0 - product.next * following) * m
    update = rms_normalise(b, direction, debias(b, v, beta2), eps)
    return b.build(decoupled_weight_decay(b, update, weight_decay) if decoupled else update)


ROWS = (
    Baseline(
        name="nadam",
        optimizer=NAdam,
        build=program,
        paper="Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
        lr_range=(3e-4, 1e-2),
        when="In place of `adam` where the first steps matter. Gains over a tuned Adam are usually small.",
        oracles=(Oracle("torch.optim.NAdam"),),
        cases=(
            {},
            {"beta1": 0.0},
            {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3, "momentum_decay": 0.2},
        ),
    ),
    Baseline(
        name="nadamw",
        optimizer=NAdamW,
        build=partial(program, decoupled=True),
        paper="Dozat 2016, https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ; Dahl et al. 2023, arXiv:2306.07179",
        lr_range=(3e-4, 1e-2),
        when="In place of `adamw`: a tuned baseline of the AlgoPerf benchmark (Dahl et al. 2023).",
        oracles=(Oracle("torch.optim.NAdam", {"decoupled_weight_decay": True}),),
        cases=(
            {},
            {"beta1": 0.0},
            {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3, "momentum_decay": 0.2},
        ),
    ),
)
