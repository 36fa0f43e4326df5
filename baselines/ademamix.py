"""AdEMAMix: Pagliardini, Ablin & Grangier 2024, The AdEMAMix Optimizer: Better, Faster, Older, algorithm 1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.adam import Adam
from optforge.baselines.base import HandWritten, Lists, average_squares, corrected_root, decay_weights
from optforge.baselines.checks import check_not_negative
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import debias, decoupled_weight_decay, momentum, rms_normalise


class AdEMAMix(Adam):
    """AdamW with a second, much slower average of gradients beside the first: it remembers tens of thousands of steps.

    Variant: the paper's, whose slow average begins at zero, uncorrected, with both of its schedules. Over the first
    `warmup` steps `alpha` grows from 0 in a line, and the decay of the slow average from ``betas[0]`` to ``betas[2]``
    such that its half-life grows in a line (appendix A.1). The paper has `warmup` equal to the length of training.

    Args:
        params: parameters or parameter groups.
        lr: step size.
        betas: decay of the fast average, of second moments, and of the slow average.
        eps: added to the root of second moments.
        weight_decay: decoupled.
        alpha: weight of the slow average.
        warmup: steps over which the slow average is brought in; 1 for none.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        alpha: float = 5.0,
        warmup: float = 1.0,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "alpha": alpha, "warmup": warmup}
        HandWritten.__init__(self, params, options, maximize=maximize, state_dtype=state_dtype)

    _zeros = ("m", "slow", "v")
    _betas = 3

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_not_negative(group, "alpha", "warmup")

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        lr, (beta1, beta2, beta3), m, slow, v = group["lr"], group["betas"], *(state[x] for x in ("m", "slow", "v"))
        share = min(step / group["warmup"], 1.0) if group["warmup"] else 1.0
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_lerp_(slow, grads, 1 - _decay(share, beta1, beta3))
        average_squares(v, grads, beta2)
        denominator = corrected_root(v, beta2, step, group["eps"])
        direction = torch._foreach_div(m, 1 - beta1**step)
        torch._foreach_add_(direction, slow, alpha=group["alpha"] * share)
        decay_weights(group, params)
        torch._foreach_addcdiv_(params, direction, denominator, -lr)


def _decay(share: float, first: float, last: float) -> float:
    """Decay of the slow average once `share` of the warm-up is over: ``1 / ln β``, as the half-life, goes in a line."""
    inverse = sum(w / math.log(beta) for w, beta in ((1 - share, first), (share, last)) if beta)  # 1 / ln 0 is 0
    return math.exp(1 / inverse) if inverse else 0.0


def program() -> Program:
    """AdEMAMix in the primitive language."""
    b = Builder()
    beta1, beta2, beta3 = (b.hyper(f"beta{i}", x, "unit") for i, x in enumerate((0.9, 0.999, 0.9999), 1))
    eps, weight_decay = b.hyper("eps", 1e-8, "log"), b.hyper("weight_decay", 0.0, "log")
    alpha, warmup = b.hyper("alpha", 5.0, "log"), b.hyper("warmup", 1.0, "log")
    share = b.min(b.step / warmup, 1.0)
    inverse = (1.0 - share) / b.log(beta1) + share / b.log(beta3)
    slow = momentum(b, b.slot("slow"), b.g, b.exp(b.reciprocal(inverse)))
    m = debias(b, momentum(b, b.slot("m"), b.g, beta1), beta1)
    v = debias(b, momentum(b, b.slot("v"), b.square(b.g), beta2), beta2)
    return b.build(decoupled_weight_decay(b, rms_normalise(b, m + alpha * share * slow, v, eps), weight_decay))


ROWS = (
    Baseline(
        name="ademamix",
        optimizer=AdEMAMix,
        build=program,
        paper="Pagliardini, Ablin & Grangier 2024, arXiv:2409.03137",
        lr_range=(3e-4, 3e-3),
        when="Long training of language models, with `warmup` set to its length: old gradients help, and forgetting is "
        "slower. In short runs the slow average has nothing to remember.",
        oracles=(Oracle("pytorch_optimizer.AdEMAMix", {"weight_decouple": True}, renamed={"warmup": "t_alpha_beta3"}),),
        cases=(
            {},
            {"beta1": 0.5, "beta2": 0.9, "beta3": 0.95, "eps": 1e-3, "weight_decay": 0.3, "alpha": 2.0},
            {"beta3": 0.99, "warmup": 20.0},
        ),
    ),
)
