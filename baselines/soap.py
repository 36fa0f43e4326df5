"""SOAP: Vyas et al. 2024, SOAP: Improving and Stabilizing Shampoo using Adam, arXiv:2409.11321, algorithms 3 and 4."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optforge.baselines import adamw
from optforge.baselines.row import Baseline, Oracle
from optforge.baselines.shampoo import Shampoo
from optforge.primitives import Builder, Kind, Program
from optforge.primitives.blocks import debias, decoupled_weight_decay, every, momentum
from optforge.primitives.linalg import basis


class SOAP(Shampoo, lr=3e-3, betas=(0.95, 0.95)):
    """Adam in the eigenbasis of Shampoo's two matrices, which takes a step of power iteration every `every` steps.

    Variant: as algorithm 3 of the paper, from identities as bases, with the bias correction of Adam that the algorithm
    leaves out; the bases first change at the end of the first step, then every `every` steps, and keep their vectors
    where L and R say nothing (see `primitives.linalg.basis`). The authors' code makes no update in the first step,
    computes the first bases exactly, and sorts them. A tensor of more dimensions is a matrix of its first dimension by
    all others. AdamW trains vectors, and matrices with a side of more than 10,000, of which the paper rotates the other
    side alone.

    Args:
        params: parameters or parameter groups.
        lr: learning rate of both rules.
        betas: decays of the average of gradients, and of all second moments.
        eps: added to the root of the second moment.
        damping: what is added to the diagonals of both matrices, as a share of their mean, when bases change.
        every: number of steps from one change of the bases to the next, f in the paper.
        weight_decay: decoupled, of both rules.
    """

    _root = "q"  # the bases

    def _direction(self, group: dict[str, Any], gradient: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        (beta1, beta2), g, q_l, q_r = group["betas"], gradient.flatten(1), state["q_l"], state["q_r"]
        state["m"].lerp_(gradient, 1 - beta1)
        state["v"].lerp_((q_l.mT @ g @ q_r).square().view_as(gradient), 1 - beta2)
        rotated = q_l.mT @ state["m"].flatten(1) @ q_r / (1 - beta1**step)
        direction = q_l @ (rotated / ((state["v"].flatten(1) / (1 - beta2**step)).sqrt() + group["eps"])) @ q_r.mT
        self._average_grams(group, g, state)
        if self._due(group, step):
            damping = torch.tensor(group["damping"], dtype=g.dtype)
            for side in "lr":
                state[f"q_{side}"].copy_(basis(state[side], state[f"q_{side}"], damping, (0, 1)))
        return direction


def program() -> Program:
    """SOAP in the primitive language; its fallback is AdamW with its hyperparameters."""
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.95, "unit"), b.hyper("beta2", 0.95, "unit")
    eps, damping, period = b.hyper("eps", 1e-8, "log"), b.hyper("damping", 1e-6, "log"), b.hyper("every", 10.0, "log")
    weight_decay = b.hyper("weight_decay", 0.01, "log")
    q_l, q_r = b.slot("q_l", Kind.LEFT, 1.0), b.slot("q_r", Kind.RIGHT, 1.0)
    m = momentum(b, b.slot("m"), b.g, beta1)
    v = momentum(b, b.slot("v"), b.square(b.matmul(b.left_t(q_l, b.g), q_r)), beta2)
    rotated = b.matmul(b.left_t(q_l, m), q_r)
    adam = debias(b, rotated, beta1) / (b.sqrt(debias(b, v, beta2)) + eps)
    update = b.right_t(b.matmul(q_l, adam), q_r)
    left = momentum(b, b.slot("l", Kind.LEFT), b.row_gram(b.g), beta2)
    right = momentum(b, b.slot("r", Kind.RIGHT), b.col_gram(b.g), beta2)
    every(b, period, b.basis(left, q_l, damping), q_l)
    every(b, period, b.basis(right, q_r, damping), q_r)
    fallback = adamw.program().with_defaults(beta1=0.95, beta2=0.95)
    return b.build(decoupled_weight_decay(b, update, weight_decay), fallback)


ROWS = (
    Baseline(
        name="soap",
        optimizer=SOAP,
        build=program,
        paper="Vyas et al. 2024, arXiv:2409.11321",
        lr_range=(1e-3, 1e-2),
        when="Where Shampoo is of use, with less to tune: AdamW in a rotated space. The paper reports fewer steps than "
        "both need for language models in large batches; state is several times AdamW's.",
        oracles=(Oracle("pytorch_optimizer.SOAP", note="makes no update in its first step; sorts the bases", dims=()),),
        cases=(
            {},
            {"every": 1.0, "beta1": 0.0},
            {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3, "every": 3.0},
        ),
        visible={"damping": 0.1},
    ),
)
