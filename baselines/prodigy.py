"""Prodigy: Mishchenko & Defazio 2023, Prodigy: An Expeditiously Adaptive Parameter-Free Learner, algorithm 4,
arXiv:2306.06101."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.base import HandWritten, Lists
from optforge.baselines.checks import check_bool, check_positive
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Kind, Program
from optforge.primitives.blocks import decoupled_weight_decay, heavy_ball, momentum, rms_normalise


class Prodigy(HandWritten):
    """Adam with a learning rate ``lr · d``, where d is an estimate from below of the distance to the solution.

    d begins at `d0` and only ever grows, to what gradients say of the way from the starting point, ``⟨g, p₀ - p⟩``.

    Variant: the paper's, with one d for all parameters of all groups, decoupled weight decay scaled by ``lr · d``, and
    no bias correction. With ``per_tensor=True`` each tensor has a d of its own; a program sees one parameter, so that
    this is what the program of this module does. For a model of a single tensor the two are the same. Epsilon is scaled
    by the d of the step; in the authors' package prodigyopt by that of the next one, which may be much larger.

    Args:
        params: parameters or parameter groups.
        lr: factor of d, lowered by schedulers.
        betas: decays of both moments; sums that estimate d decay by the root of the second.
        eps: added to the root of second moments.
        weight_decay: decoupled.
        d0: first d, which should be too small.
        d_coef: factor of the estimates of d.
        per_tensor: whether each tensor has a d of its own; one decision for all groups.
    """

    # What all parameters share in this step, for those that begin in it; torch's copies of optimizers do not hold it.
    _d: Tensor | None = None

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        d0: float = 1e-6,
        d_coef: float = 1.0,
        *,
        per_tensor: bool = False,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "d0": d0, "d_coef": d_coef}
        options["per_tensor"] = per_tensor
        super().__init__(params, options, maximize=maximize, state_dtype=state_dtype)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_positive(group, "d0", "d_coef")
        check_bool(group, "per_tensor")
        for name in ("per_tensor",) if group["per_tensor"] else ("per_tensor", "d0", "d_coef"):
            if group[name] != self.defaults[name]:
                raise ValueError(f"{name} must be {self.defaults[name]!r} as in all groups, got {group[name]!r}")

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        d = p.new_full((), group["d0"]) if self._d is None else self._d.to(p, copy=True)
        tensors = {name: torch.zeros_like(p) for name in ("m", "v", "s")}
        return {"start": p.clone(), **tensors, "r": p.new_zeros(()), "d": d}

    def _before_step(self, ready: Sequence[Sequence[Tensor]]) -> None:
        """Let d grow to the estimate that the step before made possible."""
        states = [self.state[p] for group in self.param_groups for p in group["params"] if self.state.get(p)]
        coefs = [g["d_coef"] for g in self.param_groups for p in g["params"] if self.state.get(p)]
        if self.defaults["per_tensor"]:
            for state, coef in zip(states, coefs, strict=True):
                _grow([state], coef)
        elif states:
            self._d = _grow(states, coefs[0])

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        lr, (beta1, beta2), d, s = group["lr"], group["betas"], state["d"], state["s"]
        m, v, decay = state["m"], state["v"], math.sqrt(beta2)
        scaled = torch._foreach_mul(grads, d)
        torch._foreach_lerp_(m, scaled, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, scaled, scaled, 1 - beta2)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_add_(denominator, [group["eps"] * x for x in d])
        # the sums are weighted by d²/d₀, not the paper's d²: the same quotient, of numbers that are no smaller than d₀
        torch._foreach_mul_(scaled, [lr / group["d0"] * x for x in d])
        way = torch._foreach_sub(state["start"], params)
        torch._foreach_mul_(way, scaled)
        for r, products in zip(state["r"], way, strict=True):
            r.mul_(decay).add_(products.sum())
        torch._foreach_mul_(s, decay)
        torch._foreach_add_(s, scaled)
        torch._foreach_mul_(params, [1 - lr * group["weight_decay"] * x for x in d])
        moves = torch._foreach_div(m, denominator)
        torch._foreach_mul_(moves, d)
        torch._foreach_add_(params, moves, alpha=-lr)


def _grow(states: list[dict[str, Any]], coef: float) -> Tensor:
    """The d that `states` share, raised to its estimate if that is larger."""
    device = states[0]["d"].device
    r, d = (torch.stack([state[name].to(device) for state in states]) for name in ("r", "d"))
    length = torch.stack([torch.linalg.vector_norm(state["s"], 1).to(device) for state in states]).sum()
    estimate = torch.where(length > 0, coef * r.sum() / length, 0.0)
    largest = torch.maximum(d.max(), estimate)
    for state in states:
        state["d"].copy_(largest)
    return largest


def program() -> Program:
    """Prodigy for a single tensor in the primitive language.

    A slot begins at a number that no hyperparameter can choose, hence ``growth``, which is d/d₀. Sums over the tensor
    are means here, which leaves their quotient as it is.
    """
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.999, "unit")
    eps, weight_decay = b.hyper("eps", 1e-8, "log"), b.hyper("weight_decay", 0.0, "log")
    d0, d_coef = b.hyper("d0", 1e-6, "log"), b.hyper("d_coef", 1.0, "log")
    start, growth = b.slot("start", init="p"), b.slot("growth", Kind.SCALAR, 1.0)
    start.next = start
    d = d0 * growth
    m = momentum(b, b.slot("m"), d * b.g, beta1)
    v = momentum(b, b.slot("v"), b.square(d * b.g), beta2)
    weight, decay = b.lr * growth * d, b.sqrt(beta2)  # growth in place of d, lest the sums be too small for a float
    r = heavy_ball(b, b.slot("r", Kind.SCALAR), weight * b.mean(b.g * (start - b.p)), decay)
    s = heavy_ball(b, b.slot("s"), weight * b.g, decay)
    growth.next = b.max(growth, b.safe_div(d_coef * r, d0 * b.mean(b.abs(s))))
    direction = rms_normalise(b, m, v, d * eps)
    return b.build(d * decoupled_weight_decay(b, direction, weight_decay))


ROWS = (
    Baseline(
        name="prodigy",
        optimizer=partial(Prodigy, per_tensor=True),  # a program sees one parameter
        build=program,
        paper="Mishchenko & Defazio 2023, arXiv:2306.06101",
        lr_range=(3e-2, 1.0),
        when="There is no time to tune the learning rate: leave `lr` at 1 and let a cosine schedule lower it. "
        "It costs twice the state of Adam.",
        oracles=(Oracle("prodigyopt.Prodigy", note="one d for all parameters; scales epsilon by the next d", dims=()),),
        cases=(
            {"d0": 1.0},
            {"d0": 1e-2, "d_coef": 500.0},
            {"d0": 1.0, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3},
        ),
        visible={"lr": 1.0, "d0": 0.1},
    ),
)
