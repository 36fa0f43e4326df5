"""Gradient descent, and what adds a memory to it: SGD, momentum (Polyak 1964), Nesterov's momentum (1983).

Weight decay is coupled here, as in `torch.optim.SGD`: it enters the gradient, and hence the momentum. Without momentum
that is the same as decoupled decay scaled by the learning rate; with momentum it is not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.base import HandWritten, Lists, with_l2
from optforge.baselines.checks import check_unit
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import heavy_ball, nesterov


class GradientDescent(HandWritten):
    """Cauchy's steepest descent, ``p ← p - lr · g``: meant for gradients of the whole training set.

    The rule is that of `SGD` without weight decay; what sets it apart is the batch, which is not the optimizer's.
    """

    def __init__(
        self, params: ParamsT, lr: float = 1e-3, *, maximize: bool = False, state_dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(params, {"lr": lr}, maximize=maximize, state_dtype=state_dtype)

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        torch._foreach_add_(params, grads, alpha=-group["lr"])


class SGD(HandWritten):
    """Stochastic gradient descent (Robbins & Monro 1951), with the gradient of an L2 penalty."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay}, maximize=maximize, state_dtype=state_dtype)

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        torch._foreach_add_(params, with_l2(group, params, grads), alpha=-group["lr"])


class Momentum(HandWritten):
    """Heavy ball: ``m ← momentum · m + (1 - dampening) · g``, ``p ← p - lr · m``.

    Variant: the learning rate multiplies the memory when it is used, as in `torch.optim.SGD`, not when it is written,
    as in Polyak 1964 and Sutskever et al. 2013. The two differ only where the learning rate changes. Also as in torch,
    the first gradient is never dampened.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, options, maximize=maximize, state_dtype=state_dtype)

    _zeros = ("m",)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_unit(group, "dampening")

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        grads, m = with_l2(group, params, grads), state["m"]
        torch._foreach_mul_(m, group["momentum"])
        torch._foreach_add_(m, grads, alpha=1 - group["dampening"] if step > 1 else 1)
        torch._foreach_add_(params, m, alpha=-group["lr"])


class Nesterov(HandWritten):
    """Momentum that looks ahead: the step is ``g + momentum · m``, with `m` already holding `g`.

    Variant: the form of `torch.optim.SGD`. Nesterov 1983 and Sutskever et al. 2013 evaluate the gradient at the point
    where the momentum alone would lead, ``q + momentum · v``; that point is the parameter here, so that gradients are
    taken where the parameters are. Both walk the same path, up to that change of variables, at a constant learning
    rate.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
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
        lr, momentum, m = group["lr"], group["momentum"], state["m"]
        grads = with_l2(group, params, grads)
        torch._foreach_mul_(m, momentum)
        torch._foreach_add_(m, grads)
        torch._foreach_add_(params, grads, alpha=-lr)
        torch._foreach_add_(params, m, alpha=-lr * momentum)


def gradient_descent_program() -> Program:
    """Gradient descent in the primitive language: no statement at all."""
    b = Builder()
    return b.build(b.g)


def sgd_program() -> Program:
    """SGD in the primitive language; the L2 penalty's gradient is `weight_decay` times the parameter."""
    b = Builder()
    return b.build(b.g + b.hyper("weight_decay", 0.0, "log") * b.p)


def momentum_program(*, dampened: bool = False) -> Program:
    """Heavy ball in the primitive language; `dampened` adds the hyperparameter `dampening`."""
    b = Builder()
    momentum, weight_decay = b.hyper("momentum", 0.9, "unit"), b.hyper("weight_decay", 0.0, "log")
    g = b.g + weight_decay * b.p
    if dampened:
        g = g * (1.0 - b.hyper("dampening", 0.0, "unit") * b.less(1.0, b.step))
    return b.build(heavy_ball(b, b.slot("m"), g, momentum))


def nesterov_program() -> Program:
    """Nesterov's momentum in the primitive language."""
    b = Builder()
    momentum, weight_decay = b.hyper("momentum", 0.9, "unit"), b.hyper("weight_decay", 0.0, "log")
    return b.build(nesterov(b, b.slot("m"), b.g + weight_decay * b.p, momentum))


ROWS = (
    Baseline(
        name="gradient-descent",
        optimizer=GradientDescent,
        build=gradient_descent_program,
        paper="Cauchy 1847; Curry 1944, doi:10.1090/qam/10667",
        lr_range=(3e-1, 3.0),
        when="The whole training set is one batch: small and convex problems, and as the rule that theory "
        "speaks of. `optforge train` gives it such batches.",
        oracles=(Oracle("torch.optim.SGD"),),
        cases=({},),
        visible={"lr": 0.5},
        full_batch=True,
    ),
    Baseline(
        name="sgd",
        optimizer=SGD,
        build=sgd_program,
        paper="Robbins & Monro 1951, doi:10.1214/aoms/1177729586",
        lr_range=(1e-1, 1.0),
        when="There is no memory to spare for state, or a plain reference is needed. With momentum it usually "
        "gets further in as many steps.",
        oracles=(Oracle("torch.optim.SGD"),),
        cases=(
            {},
            {"weight_decay": 0.3},
        ),
        visible={"lr": 0.5},
    ),
    Baseline(
        name="momentum",
        optimizer=Momentum,
        build=momentum_program,
        paper="Polyak 1964, doi:10.1016/0041-5553(64)90137-5",
        lr_range=(1e-2, 1e-1),
        when="Convolutional networks for images, with a schedule that lowers the learning rate: tuned well, it"
        " is hard to beat there. Seldom for transformers, whose gradients differ too much in size between"
        " layers.",
        oracles=(Oracle("torch.optim.SGD"),),
        cases=(
            {},
            {"momentum": 0.0},
            {"momentum": 0.5, "weight_decay": 0.3},
        ),
    ),
    Baseline(
        name="nesterov",
        optimizer=Nesterov,
        build=nesterov_program,
        paper="Nesterov 1983; Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html",
        lr_range=(1e-2, 1e-1),
        when="Wherever momentum is used: at the same cost it damps oscillations somewhat better.",
        oracles=(Oracle("torch.optim.SGD", {"nesterov": True}),),
        cases=(
            {},
            {"momentum": 0.5, "weight_decay": 0.3},
        ),
    ),
)
