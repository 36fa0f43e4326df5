"""AdaFactor: Shazeer & Stern 2018, Adaptive Learning Rates with Sublinear Memory Cost, algorithms 4 and 5."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.base import HandWritten, Lists
from optforge.baselines.checks import check_bool, check_not_negative, check_positive, check_unit
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Kind, Program
from optforge.primitives.blocks import decoupled_weight_decay, momentum
from optforge.primitives.builder import Expr


class AdaFactor(HandWritten):
    """Second moments of a matrix as an outer product of row and column means: n + m numbers instead of n · m.

    Variant: the paper's update clipping and its decay that increases with the step, ``1 - step^-decay``; the step is
    relative to the size of the parameter, ``lr · max(eps[1], RMS(p))``, with `lr` as the paper's relative step ρ.
    Tensors of more than two dimensions are seen as a matrix of their first dimension by all others
    (`torch.optim.Adafactor` factors the last two). Vectors are not factored.

    No option makes another one void. With `relative_step` the paper's ρ = min(1e-2, 1/√step) is ``min(lr, 1/√step)``,
    as in `torch.optim.Adafactor`, where other packages ignore `lr`; the default is the paper's.

    Args:
        params: parameters or parameter groups.
        lr: relative step size.
        decay: exponent of the increasing decay of second moments.
        eps: what is added to squared gradients, and the least size that a parameter counts as.
        clip_threshold: largest root mean square of an update, d in the paper.
        weight_decay: decoupled, scaled by `lr` alone.
        beta1: decay of an average of updates, which takes their place; 0 keeps none. It begins at zero, uncorrected, as
            in the known implementations; `lr` multiplies it, and all else is in it.
        relative_step: whether ρ falls as 1/√step once that is less than `lr`.
        warmup_init: whether ρ is at most 1e-6 · step as well, which leads to 1e-2 in 10,000 steps; for `relative_step`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        decay: float = 0.8,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        beta1: float = 0.0,
        *,
        relative_step: bool = False,
        warmup_init: bool = False,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "decay": decay, "eps": eps, "clip_threshold": clip_threshold, "weight_decay": weight_decay}
        options |= {"beta1": beta1, "relative_step": relative_step, "warmup_init": warmup_init}
        super().__init__(params, options, maximize=maximize, state_dtype=state_dtype)

    def _check(self, group: dict[str, Any]) -> None:
        check_not_negative(group, "lr", "decay", "weight_decay")
        check_positive(group, "clip_threshold")
        if not (isinstance(group["eps"], tuple | list) and len(group["eps"]) == 2):
            raise ValueError(f"eps must be two numbers, got {group['eps']!r}")
        check_not_negative({f"eps[{i}]": eps for i, eps in enumerate(group["eps"])}, "eps[0]", "eps[1]")
        check_unit(group, "beta1")
        check_bool(group, "relative_step", "warmup_init")
        if group["warmup_init"] and not group["relative_step"]:
            raise ValueError("warmup_init must be False, got True without relative_step, which it belongs to")

    def _mixes(self, p: Tensor, group: dict[str, Any]) -> bool:
        return True

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        shapes = {"row": (len(p), 1), "col": (1, math.prod(p.shape[1:]))} if p.ndim >= 2 else {"v": p.shape}
        moment = {"m": p.shape} if group["beta1"] else {}
        return {name: p.new_zeros(shape) for name, shape in (shapes | moment).items()}

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        if group["beta1"] and "m" not in state:
            raise ValueError(f"beta1 must be set before the first step, got {group['beta1']!r} after it")
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):  # each shape has its own means
            self._update_one(group, p, g, {name: values[i] for name, values in state.items()}, step)

    def _update_one(self, group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Tensor], step: int) -> None:
        lr, (eps1, eps2) = group["lr"], group["eps"]
        weight = step ** -group["decay"]  # one minus the decay: all of the first gradient
        squared = g.square() + eps1
        if p.ndim >= 2:
            squared = squared.flatten(1)
            row = state["row"].lerp_(squared.mean(1, keepdim=True), weight)
            col = state["col"].lerp_(squared.mean(0, keepdim=True), weight)
            # The paper divides by √(row · col / sum(row)) of sums, which for means is this; the product of a row and
            # a column may underflow where their roots do not.
            update = (g.flatten(1) * (row.mean() / row).sqrt() * col.rsqrt()).view_as(p)
        else:
            update = g / state["v"].lerp_(squared, weight).sqrt()
        update /= (_rms(update) / group["clip_threshold"]).clamp(min=1.0)
        update *= _rms(p).clamp(min=eps2)
        if group["relative_step"]:
            bound = min(step**-0.5, 1e-6 * step) if group["warmup_init"] else step**-0.5
            update *= min(1.0, bound / lr) if lr else 1.0
        if "m" in state:
            update = state["m"].lerp_(update, 1 - group["beta1"])
        p.mul_(1 - lr * group["weight_decay"])
        p.sub_(update, alpha=lr)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def program(*, first_moment: bool = False, relative_step: bool = False, warmup_init: bool = False) -> Program:
    """AdaFactor in the primitive language; its fallback keeps the whole second moment of a vector.

    With `first_moment` the program has a hyperparameter ``beta1``, 0.9 by default; the rest is as in `AdaFactor`.
    """
    options = (first_moment, relative_step, warmup_init)
    return _program(True, options, fallback=_program(False, options, fallback=None))


def _program(factored: bool, options: tuple[bool, bool, bool], fallback: Program | None) -> Program:
    first_moment, relative_step, warmup_init = options
    b = Builder()
    decay, weight_decay = b.hyper("decay", 0.8, "log"), b.hyper("weight_decay", 0.0, "log")
    eps1, eps2 = b.hyper("eps1", 1e-30, "log"), b.hyper("eps2", 1e-3, "log")
    clip_threshold = b.hyper("clip_threshold", 1.0, "log")
    weight, squared = b.pow(b.step, -decay), b.square(b.g)
    update: Expr
    if factored:
        row, col = b.slot("row", Kind.ROW), b.slot("col", Kind.COL)
        row.next = b.lerp(row, b.row_mean(squared) + eps1, weight)  # the mean of squares + eps1, with less work
        col.next = b.lerp(col, b.col_mean(squared) + eps1, weight)
        update = b.g * b.outer(b.sqrt(b.mean_of(row.next) / row.next), b.reciprocal(b.sqrt(col.next)))
    else:
        v = b.slot("v")
        v.next = b.lerp(v, squared + eps1, weight)
        update = b.g / b.sqrt(v.next)
    update = b.max(b.rms(b.p), eps2) / b.max(b.rms(update) / clip_threshold, 1.0) * update
    if relative_step:
        bound = b.reciprocal(b.sqrt(b.step))
        bound = b.min(bound, 1e-6 * b.step) if warmup_init else bound
        update = b.min(bound / b.lr, 1.0) * update
    if first_moment:
        update = momentum(b, b.slot("m"), update, b.hyper("beta1", 0.9, "unit"))
    return b.build(decoupled_weight_decay(b, update, weight_decay), fallback)


ROWS = (
    Baseline(
        name="adafactor",
        optimizer=AdaFactor,
        build=program,
        paper="Shazeer & Stern 2018, arXiv:1804.04235",
        lr_range=(1e-2, 1e-1),
        when="Large models with little memory: the second moment of an n × m matrix takes n + m numbers. The "
        "relative step suits models whose layers differ in size; keep the clipping of updates.",
        oracles=(
            Oracle("torch.optim.Adafactor", note="has relative_step always, and adds epsilon elsewhere", dims=()),
            Oracle("pytorch_optimizer.AdaFactor", note="ignores lr unless told relative_step=False", dims=()),
        ),
        cases=(
            {},
            {"weight_decay": 0.3, "clip_threshold": 0.5},
            {"decay": 0.5, "eps1": 1e-3, "eps2": 0.1},
        ),
    ),
)
