"""AdaMuon: Si, Zhang & Shen 2025, AdaMuon: Adaptive Muon Optimizer, algorithm 1 of version 3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optforge.baselines.muon import CASES, Muon, fallback, hidden
from optforge.baselines.normuon import rms_of_adamw, to_rms
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import decoupled_weight_decay, heavy_ball, momentum, rms_normalise
from optforge.primitives.linalg import newton_schulz


class AdaMuon(Muon):
    """Muon of the signs of momentum, whose every element is divided by the root of its average square.

    The update is then scaled to a root mean square of 0.2, as AdamW's.

    Variant: that of the paper's version 3, with signs before the orthogonalisation and without Nesterov's momentum;
    version 1 and the authors' first code have it the other way round. The second of `betas` is the decay of squares
    (the paper takes the momentum's) and AdamW's, `eps` serves both, too.
    """

    def _matrix(self, p: Tensor) -> dict[str, Tensor]:
        return {"m": torch.zeros_like(p), "squares": torch.zeros_like(p)}

    def _direction(self, group: dict[str, Any], g: Tensor, state: dict[str, Tensor]) -> Tensor:
        x = newton_schulz(state["m"].sign(), range(g.ndim))
        state["squares"].lerp_(x.square(), 1 - group["betas"][1])
        return to_rms(x / (state["squares"].sqrt() + group["eps"]))


def program() -> Program:
    """AdaMuon in the primitive language; its fallback is AdamW."""
    b = Builder()
    beta, weight_decay = b.hyper("momentum", 0.95, "unit"), b.hyper("weight_decay", 0.1, "log")
    beta2, eps = b.hyper("beta2", 0.95, "unit"), b.hyper("eps", 1e-8, "log")
    x = b.orthogonalise(b.sign(heavy_ball(b, b.slot("m"), b.g, beta)))
    squares = momentum(b, b.slot("squares"), b.square(x), beta2)
    update = rms_of_adamw(b, rms_normalise(b, x, squares, eps))
    return b.build(decoupled_weight_decay(b, update, weight_decay), fallback())


ROWS = (
    Baseline(
        name="adamuon",
        optimizer=AdaMuon,
        build=program,
        paper="Si, Zhang & Shen 2025, arXiv:2507.11005",
        lr_range=(3e-3, 3e-2),
        when="Wherever `muon` is used and twice its state can be afforded, which is Adam's. `normuon` has the same "
        "idea for rows.",
        oracles=(Oracle("pytorch_optimizer.AdaMuon", note="version 1; orthogonalises in bfloat16", dims=()),),
        cases=CASES,
        where=hidden,
        visible={"lr": 0.2},
    ),
)
