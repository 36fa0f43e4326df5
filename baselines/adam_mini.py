"""Adam-mini: Zhang et al. 2024, Adam-mini: Use Fewer Learning Rates To Gain More, algorithm 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optforge.baselines.adamw import AdamW
from optforge.baselines.base import Lists
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Kind, Program
from optforge.primitives.blocks import debias, decoupled_weight_decay, momentum, rms_normalise
from optforge.primitives.builder import Expr


class AdamMini(AdamW):
    """AdamW with one second moment for each row of a matrix, and one for each vector: half of AdamW's state.

    Variant: a row is an output neuron, or a token of an embedding, as in the paper. The paper has one second moment for
    each head of queries and keys; a rule that sees one tensor does not know of heads, so that they are divided by rows,
    too, which is finer. A tensor of more dimensions is a matrix of its first dimension by all others.
    """

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        blocks = (len(p), *[1] * (p.ndim - 1)) if self._mixes(p, group) else ()
        return {"m": torch.zeros_like(p), "v": p.new_zeros(blocks)}

    def _mixes(self, p: Tensor, group: dict[str, Any]) -> bool:
        """Whether there is a moment for each row of `p`, for which all of its elements must be in one place."""
        return p.ndim >= 2

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        lr, (beta1, beta2), m = group["lr"], group["betas"], state["m"]
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        for p, g, average, v in zip(params, grads, m, state["v"], strict=True):
            v.lerp_(g.square().mean(tuple(range(1, g.ndim)) if g.ndim >= 2 else None, keepdim=g.ndim >= 2), 1 - beta2)
            divisor = (v / (1 - beta2**step)).sqrt() + group["eps"]
            p.sub_(average / divisor, alpha=lr / (1 - beta1**step))


def program() -> Program:
    """Adam-mini in the primitive language; its fallback has one second moment for the whole of a vector."""
    return _program(Kind.ROW, fallback=_program(Kind.SCALAR, None))


def _program(blocks: Kind, fallback: Program | None) -> Program:
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.999, "unit")
    eps, weight_decay = b.hyper("eps", 1e-8, "log"), b.hyper("weight_decay", 0.01, "log")
    squares: Expr = b.row_mean(b.square(b.g)) if blocks is Kind.ROW else b.mean(b.square(b.g))
    m = debias(b, momentum(b, b.slot("m"), b.g, beta1), beta1)
    v = debias(b, momentum(b, b.slot("v", blocks), squares, beta2), beta2)
    return b.build(decoupled_weight_decay(b, rms_normalise(b, m, v, eps), weight_decay), fallback)


ROWS = (
    Baseline(
        name="adam-mini",
        optimizer=AdamMini,
        build=program,
        paper="Zhang et al. 2024, arXiv:2406.16793",
        lr_range=(3e-4, 1e-2),
        when="In place of `adamw` with the same hyperparameters where memory is short: its authors report losses as "
        "low.",
        oracles=(Oracle("pytorch_optimizer.AdamMini", note="needs the model, and has blocks for heads", dims=()),),
        cases=({}, {"weight_decay": 0.0}, {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3}),
    ),
)
