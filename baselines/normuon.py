"""NorMuon: Li et al. 2025, NorMuon: Making Muon more efficient and scalable, algorithm 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optforge.baselines.muon import CASES, Muon, fallback, hidden
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Kind, Program
from optforge.primitives.blocks import decoupled_weight_decay, momentum, nesterov
from optforge.primitives.builder import Expr
from optforge.primitives.linalg import newton_schulz


class NorMuon(Muon):
    """Muon whose rows, which are neurons, are divided by the root of an average of their mean squares.

    Orthogonalised momentum has singular values of about 1, but rows of unlike sizes. The update is then scaled to a
    root mean square of 0.2, as AdamW's.

    Variant: with Nesterov's momentum, as Muon and the authors' code have it; algorithm 1 has plain momentum. The second
    of `betas` is the decay of the average of rows and AdamW's, `eps` serves both, too.
    """

    def _matrix(self, p: Tensor) -> dict[str, Tensor]:
        return {"m": torch.zeros_like(p), "row": p.new_zeros(len(p), *[1] * (p.ndim - 1))}

    def _direction(self, group: dict[str, Any], g: Tensor, state: dict[str, Tensor]) -> Tensor:
        x = newton_schulz(g + group["momentum"] * state["m"], range(g.ndim))
        state["row"].lerp_(x.square().mean(tuple(range(1, x.ndim)), keepdim=True), 1 - group["betas"][1])
        return to_rms(x / (state["row"].sqrt() + group["eps"]))


def to_rms(x: Tensor, size: float = 0.2) -> Tensor:
    """`x` scaled to a root mean square of `size`; zero stays zero."""
    rms = x.square().mean().sqrt()
    return x * torch.where(rms > 0, size / rms, 0.0)


def program() -> Program:
    """NorMuon in the primitive language; its fallback is AdamW."""
    b = Builder()
    beta, weight_decay = b.hyper("momentum", 0.95, "unit"), b.hyper("weight_decay", 0.1, "log")
    beta2, eps = b.hyper("beta2", 0.95, "unit"), b.hyper("eps", 1e-8, "log")
    x = b.orthogonalise(nesterov(b, b.slot("m"), b.g, beta))
    row = momentum(b, b.slot("row", Kind.ROW), b.row_mean(b.square(x)), beta2)
    return b.build(decoupled_weight_decay(b, rms_of_adamw(b, x / (b.sqrt(row) + eps)), weight_decay), fallback())


def rms_of_adamw(b: Builder, x: Expr) -> Expr:
    """`x` scaled to a root mean square of 0.2; zero stays zero."""
    return b.safe_div(0.2 * x, b.rms(x))


ROWS = (
    Baseline(
        name="normuon",
        optimizer=NorMuon,
        build=program,
        paper="Li et al. 2025, arXiv:2510.05491",
        lr_range=(3e-3, 3e-2),
        when="Wherever `muon` is used, for one more number in each row: its authors report fewer steps than Muon's to "
        "the same loss at the same cost.",
        oracles=(Oracle("pytorch_optimizer.NorMuon", note="orthogonalises in bfloat16", dims=()),),
        cases=CASES,
        where=hidden,
        visible={"lr": 0.2},
    ),
)
