"""MARS: Yuan et al. 2024, MARS: Unleashing the Power of Variance Reduction for Training Large Models, algorithm 2
(MARS-AdamW)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines.adam import Adam
from optforge.baselines.base import HandWritten, Lists, decay_weights
from optforge.baselines.checks import check_not_negative
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import debias, decoupled_weight_decay, momentum, rms_normalise


class MARS(Adam):
    """AdamW of gradients from which some of the noise is taken: a share of the change since the last one is added.

    The corrected gradient of a tensor is scaled to norm 1 where it is longer.

    Variant: MARS-AdamW with the gradient that the step before saw in place of one of the present batch at the former
    weights (the paper's MARS-approx, the authors' default). The first change is 0. All tensors are treated alike; the
    authors' code leaves vectors to AdamW.

    Args:
        params: parameters or parameter groups.
        lr: step size.
        betas: decays of both moments.
        eps: added to the root of second moments.
        weight_decay: decoupled.
        gamma: how much of the change is added, in units of ``betas[0] / (1 - betas[0])``.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        gamma: float = 0.025,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "gamma": gamma}
        HandWritten.__init__(self, params, options, maximize=maximize, state_dtype=state_dtype)

    _zeros = ("m", "v", "previous")

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_not_negative(group, "gamma")

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        beta1, previous = group["betas"][0], state["previous"]
        corrected = torch._foreach_sub(grads, grads if step == 1 else previous)
        for old, g in zip(previous, grads, strict=True):  # shards know no _foreach_copy_
            old.copy_(g)
        torch._foreach_mul_(corrected, group["gamma"] * beta1 / (1 - beta1))
        torch._foreach_add_(corrected, grads)
        torch._foreach_div_(corrected, torch._foreach_clamp_min(torch._foreach_norm(corrected), 1))
        decay_weights(group, params)
        self._adam(group, params, list(corrected), state, step)


def program() -> Program:
    """MARS in the primitive language."""
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.95, "unit"), b.hyper("beta2", 0.99, "unit")
    eps, weight_decay = b.hyper("eps", 1e-8, "log"), b.hyper("weight_decay", 0.0, "log")
    share = b.hyper("gamma", 0.025, "log") * beta1 / (1.0 - beta1)
    previous = b.slot("previous", init="g")
    previous.next = b.g
    corrected = b.g + share * (b.g - previous)
    corrected = corrected / b.max(b.norm(corrected), 1.0)
    m = debias(b, momentum(b, b.slot("m"), corrected, beta1), beta1)
    v = debias(b, momentum(b, b.slot("v"), b.square(corrected), beta2), beta2)
    return b.build(decoupled_weight_decay(b, rms_normalise(b, m, v, eps), weight_decay))


ROWS = (
    Baseline(
        name="mars",
        optimizer=MARS,
        build=program,
        paper="Yuan et al. 2024, arXiv:2411.10438",
        lr_range=(1e-3, 1e-2),
        when="Language models in small and medium batches, whose gradients are noisy: its authors report fewer tokens "
        "than `adamw` to the same loss, for a third piece of state.",
        oracles=(Oracle("pytorch_optimizer.MARS", note="the first change is the whole first gradient", dims=()),),
        cases=(
            {},
            {"gamma": 0.0, "weight_decay": 0.3},
            {"gamma": 0.5, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3},
        ),
    ),
)
