"""Muon: Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks, kellerjordan.github.io/posts/muon,
with the scale of Liu et al. 2025, Muon is Scalable for LLM Training, arXiv:2502.16982, section 2.2."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from baselines import adamw
from baselines.base import HandWritten, Lists
from baselines.checks import check_beta, check_bool, check_not_negative, check_unit
from primitives import Builder, Program
from primitives.blocks import decoupled_weight_decay, nesterov
from primitives.linalg import newton_schulz


class Muon(adamw.AdamW):
    """Nesterov momentum with all singular values set to about 1; AdamW for vectors and whatever else is no such matrix.

    Variant: the update ``0.2 · √max(rows, columns) · NewtonSchulz(…)`` has entries of the size that AdamW's have, so
    that one `lr` and one `weight_decay` (decoupled) serve both. Five quintic steps, in the dtype of the state, not
    always in bfloat16. A tensor of more dimensions is a matrix of its first dimension by all others.

    Embeddings and the last layer should go to AdamW, too: put them in a group with ``use_muon=False``. For the program,
    give `ProgramOptimizer` a predicate ``where``, or the group ``use_fallback=True``.

    `OneCycleLR` and `CyclicLR` cycle ``betas[0]`` here, which is AdamW's, and `momentum` of the program; to leave both
    as they are, make them with ``cycle_momentum=False``.

    Args:
        params: parameters or parameter groups.
        lr: learning rate of both rules.
        momentum: decay of the undamped sum of gradients.
        weight_decay: of both rules.
        betas: AdamW's.
        eps: AdamW's.
        use_muon: whether matrices are orthogonalised; for groups.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        *,
        use_muon: bool = True,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "betas": betas, "eps": eps}
        options["use_muon"] = use_muon
        HandWritten.__init__(self, params, options, maximize=maximize, state_dtype=state_dtype)

    def _check(self, group: dict[str, Any]) -> None:
        check_not_negative(group, "lr", "weight_decay", "eps")
        check_unit(group, "momentum")
        check_beta(group, "betas")
        check_bool(group, "use_muon")

    def _mixes(self, p: Tensor, group: dict[str, Any]) -> bool:
        return bool(group["use_muon"]) and p.ndim >= 2

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"m": torch.zeros_like(p)} if self._mixes(p, group) else super()._start(p, group)

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        if "v" in state:
            super()._apply(group, params, grads, state, step)
            return
        lr, momentum, m = group["lr"], group["momentum"], state["m"]
        torch._foreach_mul_(m, momentum)
        torch._foreach_add_(m, grads)
        ahead = torch._foreach_add(grads, m, alpha=momentum)
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        for p, x in zip(params, ahead, strict=True):
            size = 0.2 * math.sqrt(max(len(p), p[0].numel()))
            p.sub_(newton_schulz(x, range(x.ndim)), alpha=lr * size)


def program() -> Program:
    """Muon in the primitive language; its fallback is AdamW."""
    b = Builder()
    momentum, weight_decay = b.hyper("momentum", 0.95, "unit"), b.hyper("weight_decay", 0.1, "log")
    direction = b.orthogonalise(nesterov(b, b.slot("m"), b.g, momentum))
    size = 0.2 * b.sqrt(b.max(b.rows(b.g), b.cols(b.g)))
    rest = adamw.program().with_defaults(beta2=0.95, weight_decay=0.1)
    return b.build(decoupled_weight_decay(b, size * direction, weight_decay), rest)
