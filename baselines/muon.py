"""Muon: Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks, kellerjordan.github.io/posts/muon,
with the scale of Liu et al. 2025, Muon is Scalable for LLM Training, arXiv:2502.16982, section 2.2, or its first.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines import adamw
from optforge.baselines.base import HandWritten, Lists, decay_weights
from optforge.baselines.checks import check_bool
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import decoupled_weight_decay, nesterov
from optforge.primitives.builder import Expr
from optforge.primitives.linalg import newton_schulz


class Muon(adamw.AdamW):
    """Nesterov momentum with all singular values set to about 1; AdamW for vectors and whatever else is no such matrix.

    Variant: the update ``0.2 · √max(rows, columns) · NewtonSchulz(…)`` has entries of the size that AdamW's have, so
    that one `lr` and one `weight_decay` (decoupled) serve both (Liu et al.); `MuonOriginal` has the scale of Jordan et
    al. Five quintic steps, in the dtype of the state, not always in bfloat16. A tensor of more dimensions is a matrix
    of its first dimension by all others.

    Embeddings and the last layer should go to AdamW, too: put them in a group with ``use_muon=False``. For the program,
    give `ProgramOptimizer` the predicate ``where=BASELINES["muon"].where`` and named parameters, or the group
    ``use_fallback=True``; its `routes` say what goes where.

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
        super()._check(group)
        check_bool(group, "use_muon")

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return self._matrix(p) if self._mixes(p, group) else super()._start(p, group)

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        if "v" in state:
            super()._apply(group, params, grads, state, step)
            return
        torch._foreach_mul_(state["m"], group["momentum"])
        torch._foreach_add_(state["m"], grads)
        decay_weights(group, params)
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            p.sub_(self._direction(group, g, {name: values[i] for name, values in state.items()}), alpha=group["lr"])

    def _mixes(self, p: Tensor, group: dict[str, Any]) -> bool:
        """Whether `p` is orthogonalised, for which all of its elements must be in one place."""
        return bool(group["use_muon"]) and p.ndim >= 2

    def _matrix(self, p: Tensor) -> dict[str, Tensor]:
        """State of an orthogonalised parameter; it has no key ``v``, by which AdamW's state is known."""
        return {"m": torch.zeros_like(p)}

    def _direction(self, group: dict[str, Any], g: Tensor, state: dict[str, Tensor]) -> Tensor:
        """What a parameter moves against at learning rate 1, with ``state["m"]`` already holding `g`."""
        ahead = g + group["momentum"] * state["m"]
        return self._size(len(g), g[0].numel()) * newton_schulz(ahead, range(g.ndim))

    def _size(self, rows: int, columns: int) -> float:
        return 0.2 * math.sqrt(max(rows, columns))


class MuonOriginal(Muon):
    """Muon with the scale that it was published with, ``√max(1, rows / columns) · NewtonSchulz(…)``.

    Variant: the rule that `torch.optim.Muon` calls ``original``; all else as in `Muon`. AdamW wants a learning rate of
    its own here, 10 to 100 times smaller: put its parameters into a group with that `lr`.
    """

    def _size(self, rows: int, columns: int) -> float:
        return math.sqrt(max(1, rows / columns))


_NOT_HIDDEN = re.compile(
    r"(^|[._])(embed\w*|emb|wte|wpe|pos|position\w*|unembed\w*|head|classifier|logits)(\.|$)|(^|\.)output\.weight$"
)


def hidden(name: str, p: Tensor) -> bool:
    """Whether a parameter belongs to a hidden layer by its name, and not to an embedding, table of positions, or head.

    It knows the names that are in use (``embed``, ``wte``, ``lm_head``, ``classifier``, …); look at the optimizer's
    `routes` for a model of yours.
    """
    return _NOT_HIDDEN.search(name) is None


def fallback() -> Program:
    """AdamW with the defaults of Muon's group for everything that is not orthogonalised."""
    return adamw.program().with_defaults(beta2=0.95, weight_decay=0.1)


def program(*, original: bool = False) -> Program:
    """Muon in the primitive language, with the scale of `MuonOriginal` if asked for; its fallback is AdamW."""
    b = Builder()
    momentum, weight_decay = b.hyper("momentum", 0.95, "unit"), b.hyper("weight_decay", 0.1, "log")
    direction = b.orthogonalise(nesterov(b, b.slot("m"), b.g, momentum))
    rows, columns = b.rows(b.g), b.cols(b.g)
    size: Expr = b.sqrt(b.max(1.0, rows / columns)) if original else 0.2 * b.sqrt(b.max(rows, columns))
    return b.build(decoupled_weight_decay(b, size * direction, weight_decay), fallback())


CASES: tuple[dict[str, float], ...] = (
    {},
    {"momentum": 0.0},
    {"momentum": 0.5, "weight_decay": 0.3, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3},
)

ROWS = (
    Baseline(
        name="muon",
        optimizer=Muon,
        build=program,
        paper="Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv:2502.16982",
        lr_range=(3e-3, 3e-2),
        when="The hidden matrices of transformers and other networks, in large batches: its authors report fewer steps "
        "than `adamw` to the same loss, for some matrix products in each. Vectors go to AdamW by themselves; "
        "embeddings and the last layer should be sent there.",
        oracles=(Oracle("torch.optim.Muon", note="orthogonalises in bfloat16; has no part for vectors", dims=()),),
        cases=CASES,
        where=hidden,
        visible={"lr": 0.2},
    ),
    Baseline(
        name="muon-original",
        optimizer=MuonOriginal,
        build=partial(program, original=True),
        paper="Jordan et al. 2024, https://kellerjordan.github.io/posts/muon",
        lr_range=(1e-2, 1e-1),
        when="To repeat what was published with the first scale, as the NanoGPT speedruns. `muon` needs one learning "
        "rate where this needs two.",
        oracles=(Oracle("torch.optim.Muon", note="orthogonalises in bfloat16; has no part for vectors", dims=()),),
        cases=CASES,
        where=hidden,
        visible={"lr": 0.2},
    ),
)
