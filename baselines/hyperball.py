"""Hyperball: Wen et al. 2026, Fantastic Pretraining Optimizers and Where to Find Them II: Hyperball Optimization,
arXiv:2606.16899, for Adam and Muon."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines import adam, adamw
from optforge.baselines.base import HandWritten, Lists
from optforge.baselines.checks import check_bool
from optforge.baselines.muon import Muon, fallback, hidden
from optforge.baselines.row import Baseline
from optforge.primitives import Builder, Kind, Program
from optforge.primitives.blocks import nesterov
from optforge.primitives.builder import Expr
from optforge.primitives.linalg import newton_schulz


class AdamH(adamw.AdamW):
    """Adam that keeps the Frobenius norm of every matrix where it began, in place of weight decay; AdamW for vectors.

    The step of a matrix has the length ``lr`` times its norm, whatever Adam's length is, and is projected back on the
    sphere: the learning rate is the angle by which a matrix turns.

    Variant: the paper's, for whole matrices of the first dimension by all others. The norm is taken before the first
    step. A matrix that is zero stays zero: send it to AdamW, as should be embeddings and heads, with a group
    ``use_hyperball=False``; for the program with ``where=BASELINES["adam-h"].where``.

    Args:
        params: parameters or parameter groups.
        lr: learning rate of both rules.
        betas: of both rules.
        eps: of both rules.
        weight_decay: AdamW's.
        use_hyperball: whether matrices stay on their sphere; for groups.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        use_hyperball: bool = True,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "use_hyperball": use_hyperball}
        HandWritten.__init__(self, params, options, maximize=maximize, state_dtype=state_dtype)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_bool(group, "use_hyperball")

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        radius = {"radius": p.norm()} if self._mixes(p, group) else {}
        return super()._start(p, group) | radius

    def _mixes(self, p: Tensor, group: dict[str, Any]) -> bool:
        """Whether `p` is kept on its sphere, for which all of its elements must be in one place."""
        return bool(group["use_hyperball"]) and p.ndim >= 2

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        if "radius" not in state:
            super()._apply(group, params, grads, state, step)
            return
        directions = [torch.zeros_like(p) for p in params]
        self._adam({**group, "lr": -1.0}, directions, grads, state, step)
        _turn(params, directions, state["radius"], group["lr"])


class MuonH(Muon):
    """Muon that keeps the Frobenius norm of every matrix where it began, in place of weight decay; AdamW for vectors.

    Variant: that of `AdamH`, with Muon's Nesterov momentum and orthogonalisation in place of Adam's direction.

    Args:
        params: parameters or parameter groups.
        lr: learning rate of both rules.
        momentum: decay of the undamped sum of gradients.
        weight_decay: AdamW's.
        betas: AdamW's.
        eps: AdamW's.
        use_muon: whether matrices are orthogonalised and stay on their sphere; for groups.
    """

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = super()._start(p, group)
        return state if "v" in state else state | {"radius": p.norm()}

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        if "v" in state:
            super()._apply(group, params, grads, state, step)
            return
        torch._foreach_mul_(state["m"], group["momentum"])
        torch._foreach_add_(state["m"], grads)
        ahead = torch._foreach_add(grads, state["m"], alpha=group["momentum"])
        _turn(params, [newton_schulz(x, range(x.ndim)) for x in ahead], state["radius"], group["lr"])


def _turn(params: list[Tensor], directions: list[Tensor], radii: list[Tensor], lr: float) -> None:
    """Move each parameter against a direction by `lr` times its radius, then back to its sphere."""
    if lr == 0:
        return
    for p, x, radius in zip(params, directions, radii, strict=True):
        length = x.norm()
        p.sub_(x * torch.where(length > 0, lr * radius / length, 0.0))
        length = p.norm()
        p.mul_(torch.where(length > 0, radius / length, 1.0))


def _norm(b: Builder, x: Expr) -> Expr:
    """Frobenius norm from those of rows: unlike `norm` it exists for matrices alone, so that vectors go elsewhere."""
    return b.sqrt(b.rows(x) * b.mean_of(b.square(b.row_norm(x))))


def _turned(b: Builder, x: Expr) -> Expr:
    """The update by which ``p - lr · update`` is what `_turn` makes of `p`."""
    radius = b.slot("radius", Kind.SCALAR)
    radius.next = b.max(radius, b.less(b.step, 2.0) * _norm(b, b.p))
    moved = b.p - b.safe_div(b.lr * radius.next, _norm(b, x)) * x
    return b.safe_div(b.p - b.safe_div(radius.next, _norm(b, moved)) * moved, b.lr)


def adam_program() -> Program:
    """AdamH in the primitive language; its fallback is AdamW without weight decay."""
    b = Builder()
    return b.build(_turned(b, adam.direction(b, b.g)), adamw.program().with_defaults(weight_decay=0.0))


def muon_program() -> Program:
    """MuonH in the primitive language; its fallback is Muon's."""
    b = Builder()
    ahead = nesterov(b, b.slot("m"), b.g, b.hyper("momentum", 0.95, "unit"))
    return b.build(_turned(b, b.orthogonalise(ahead)), fallback())


_PAPER = "Wen et al. 2026, arXiv:2606.16899"
ROWS = (
    Baseline(
        name="adam-h",
        optimizer=AdamH,
        build=adam_program,
        paper=_PAPER,
        lr_range=(3e-3, 3e-2),
        when="Networks whose layers are normalised, so that the size of a matrix says nothing: no weight decay to "
        "tune, and, its authors report, a learning rate that carries over between widths and depths.",
        cases=({}, {"beta1": 0.0}, {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3}),
        where=hidden,
    ),
    Baseline(
        name="muon-h",
        optimizer=MuonH,
        build=muon_program,
        paper=_PAPER,
        lr_range=(3e-3, 3e-2),
        when="Wherever `muon` is used on networks whose layers are normalised; its authors report that the gain over "
        "`adamw` stays as models grow.",
        cases=({}, {"momentum": 0.0}, {"momentum": 0.5, "weight_decay": 0.3, "beta1": 0.5, "beta2": 0.9, "eps": 1e-3}),
        where=hidden,
    ),
)
