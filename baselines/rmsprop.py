"""RMSProp: Tieleman & Hinton 2012, Neural Networks for Machine Learning, lecture 6.5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.base import HandWritten, Lists, average_squares, with_l2
from optforge.baselines.checks import check_bool, check_unit
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import heavy_ball, rms_normalise
from optforge.primitives.blocks import momentum as average


class RMSProp(HandWritten):
    """The gradient divided by the root of a moving average of its square.

    Variant: that of `torch.optim.RMSprop`. The lecture averages with 0.9 and names no epsilon; here it is added outside
    the root. The average starts at zero and its bias is not corrected, so that first steps are ``1 / √(1 - alpha)``
    times larger than later ones: `Adam` with ``betas=(0, alpha)`` is the same rule with that correction.

    Args:
        params: parameters or parameter groups.
        lr: step size.
        alpha: decay of the average of squares.
        eps: added to the root.
        weight_decay: coupled, an L2 penalty.
        momentum: heavy ball on the normalised gradient; needs a second piece of state.
        centered: divide by the standard deviation, not the root mean square (Graves 2013, arXiv:1308.0850, equations
            38 to 40); needs the average of gradients as state.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, {**options, "centered": centered}, maximize=maximize, state_dtype=state_dtype)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_unit(group, "alpha")
        check_bool(group, "centered")

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        names = ["v", *["m"] * group["centered"], *["ball"] * (group["momentum"] > 0)]
        return {name: torch.zeros_like(p) for name in names}

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        for option, slot in (("momentum", "ball"), ("centered", "m")):
            if group[option] and slot not in state:
                raise ValueError(f"{option} must be set before the first step, got {group[option]!r} after it")
        lr, alpha, v = group["lr"], group["alpha"], state["v"]
        grads = with_l2(group, params, grads)
        average_squares(v, grads, alpha)
        if group["centered"]:
            torch._foreach_lerp_(state["m"], grads, 1 - alpha)
            denominator = torch._foreach_addcmul(v, state["m"], state["m"], -1)
            torch._foreach_clamp_min_(denominator, 0)  # rounding may leave less than no variance; torch's becomes NaN
            torch._foreach_sqrt_(denominator)
        else:
            denominator = torch._foreach_sqrt(v)
        torch._foreach_add_(denominator, group["eps"])
        if group["momentum"]:
            torch._foreach_mul_(state["ball"], group["momentum"])
            torch._foreach_addcdiv_(state["ball"], grads, denominator)
            torch._foreach_add_(params, state["ball"], alpha=-lr)
        else:
            torch._foreach_addcdiv_(params, grads, denominator, -lr)


def program(*, momentum: bool = False, centered: bool = False) -> Program:
    """RMSProp in the primitive language; `momentum` and `centered` add the state that they need."""
    b = Builder()
    alpha, eps = b.hyper("alpha", 0.99, "unit"), b.hyper("eps", 1e-8, "log")
    weight_decay = b.hyper("weight_decay", 0.0, "log")
    g = b.g + weight_decay * b.p
    spread = average(b, b.slot("v"), b.square(g), alpha)
    if centered:
        spread = b.max(spread - b.square(average(b, b.slot("m"), g, alpha)), 0.0)
    direction = rms_normalise(b, g, spread, eps)
    if momentum:
        direction = heavy_ball(b, b.slot("ball"), direction, b.hyper("momentum", 0.9, "unit"))
    return b.build(direction)


ROWS = (
    Baseline(
        name="rmsprop",
        optimizer=RMSProp,
        build=program,
        paper="Tieleman & Hinton 2012, https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
        lr_range=(3e-4, 1e-2),
        when="Gradients whose size drifts, as in recurrent networks and reinforcement learning, with half of "
        "Adam's state. Warm up: its first steps are ten times too long, see the variant.",
        oracles=(Oracle("torch.optim.RMSprop", note="its centered variance may round to below 0, and becomes NaN"),),
        cases=(
            {},
            {"alpha": 0.0},
            {"alpha": 0.9, "eps": 1e-2, "weight_decay": 0.3},
        ),
    ),
)
