"""AdamW: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from optforge.baselines.adam import Adam, direction
from optforge.baselines.base import Lists, decay_weights
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import decoupled_weight_decay


class AdamW(Adam, weight_decay=0.01):
    """Adam with decoupled weight decay, as in `torch.optim.AdamW`: the decay is scaled by the learning rate.

    Variant: the paper's schedule multiplier is the learning rate that a scheduler sets.
    """

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        decay_weights(group, params)
        self._adam(group, params, grads, state, step)


def program() -> Program:
    """AdamW in the primitive language; weight decay enters the update, so that ``lr`` scales both alike."""
    b = Builder()
    step = direction(b, b.g)
    return b.build(decoupled_weight_decay(b, step, b.hyper("weight_decay", 0.01, "log")))


ROWS = (
    Baseline(
        name="adamw",
        optimizer=AdamW,
        build=program,
        paper="Loshchilov & Hutter 2019, arXiv:1711.05101",
        lr_range=(3e-4, 1e-2),
        when="The usual choice for transformers, and for whatever has not been tried yet. Warm up, and keep "
        "biases and norms out of the decay (`optforge.search.training.groups`).",
        oracles=(Oracle("torch.optim.AdamW"),),
        cases=(
            {},
            {"weight_decay": 0.0},
            {"beta1": 0.0},
            {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3},
        ),
    ),
)
