"""Shampoo with grafting: Gupta, Koren & Singer 2018, Shampoo: Preconditioned Stochastic Tensor Optimization,
arXiv:1802.09568, in the form in which Anil et al. 2020, arXiv:2002.09018, and Shi et al. 2023, arXiv:2309.06497, use it
for networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from optforge.baselines import adamw
from optforge.baselines.base import HandWritten, Lists, decay_weights
from optforge.baselines.checks import check_not_negative
from optforge.baselines.row import Baseline
from optforge.primitives import Builder, Kind, Program
from optforge.primitives.blocks import debias, decoupled_weight_decay, every, momentum
from optforge.primitives.linalg import inverse_root
from optforge.primitives.routing import LARGEST_SIDE


class Shampoo(adamw.AdamW):
    """``L^(-1/4) M R^(-1/4)``, M the average of gradients, as long as the step that AdamW would make; AdamW for others.

    L and R are averages of G Gᵀ and Gᵀ G, and their roots are computed every `every` steps. To take the length of a
    step from another optimizer is grafting (Agarwal et al. 2020, Disentangling Adaptive Gradient Methods from Learning
    Rates, arXiv:2002.11803).

    Variant: the roots have a relative damping (see `primitives.linalg.inverse_root`) and are first computed in the
    first step; L and R are not corrected for their bias, which the grafted length cancels. A tensor of more dimensions
    is a matrix of its first dimension by all others. AdamW trains vectors, and matrices with a side of more than
    10,000, which the papers cut into blocks.

    Args:
        params: parameters or parameter groups.
        lr: learning rate of both rules.
        betas: decays of the average of gradients, and of all second moments.
        eps: AdamW's.
        damping: what is added to the diagonals of L and R, as a share of their size.
        every: number of steps from one computation of the roots to the next.
        weight_decay: decoupled, of both rules.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        damping: float = 1e-6,
        every: float = 10,
        weight_decay: float = 0.01,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "damping": damping, "every": every}
        options["weight_decay"] = weight_decay
        HandWritten.__init__(self, params, options, maximize=maximize, state_dtype=state_dtype)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_not_negative(group, "every", "damping")

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = super()._start(p, group)
        if self._mixes(p, group):
            for side, n in (("l", len(p)), ("r", p[0].numel())):
                state[side] = p.new_zeros(n, n)
                state[f"{self._root}_{side}"] = torch.eye(n, dtype=p.dtype, device=p.device)
        return state

    _root = "root"  # name of what is computed from the averages of Gram matrices, l and r

    def _mixes(self, p: Tensor, group: dict[str, Any]) -> bool:
        """Whether both sides of `p` have square matrices."""
        return p.ndim >= 2 and p.numel() > 0 and max(len(p), p[0].numel()) <= LARGEST_SIDE

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        if "l" not in state:
            super()._apply(group, params, grads, state, step)
            return
        decay_weights(group, params)
        for i, (p, g) in enumerate(zip(params, grads, strict=True)):
            own = {name: values[i] for name, values in state.items()}
            p.sub_(group["lr"] * self._direction(group, g, own, step).view_as(p))

    def _direction(self, group: dict[str, Any], gradient: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        """What a matrix moves against at learning rate 1."""
        (beta1, beta2), g = group["betas"], gradient.flatten(1)
        state["m"].lerp_(gradient, 1 - beta1)
        state["v"].lerp_(gradient.square(), 1 - beta2)
        self._average_grams(group, g, state)
        if self._due(group, step):
            damping = torch.tensor(group["damping"], dtype=g.dtype)
            for side in "lr":
                state[f"root_{side}"].copy_(inverse_root(state[side], damping, 4, (0, 1)))
        shampoo = state["root_l"] @ state["m"].flatten(1) @ state["root_r"]
        adam = (state["m"] / (1 - beta1**step)) / ((state["v"] / (1 - beta2**step)).sqrt() + group["eps"])
        length = torch.linalg.vector_norm(shampoo)
        return torch.where(length > 0, torch.linalg.vector_norm(adam) / length, 0.0) * shampoo

    @staticmethod
    def _average_grams(group: dict[str, Any], g: Tensor, state: dict[str, Tensor]) -> None:
        state["l"].lerp_(g @ g.mT, 1 - group["betas"][1])
        state["r"].lerp_(g.mT @ g, 1 - group["betas"][1])

    @staticmethod
    def _due(group: dict[str, Any], step: int) -> bool:
        return (step - 1) % max(group["every"], 1) < 1


def program() -> Program:
    """Shampoo in the primitive language; its fallback is AdamW."""
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.999, "unit")
    eps, damping, period = b.hyper("eps", 1e-8, "log"), b.hyper("damping", 1e-6, "log"), b.hyper("every", 10.0, "log")
    weight_decay = b.hyper("weight_decay", 0.01, "log")
    m = momentum(b, b.slot("m"), b.g, beta1)
    v = momentum(b, b.slot("v"), b.square(b.g), beta2)
    left = momentum(b, b.slot("l", Kind.LEFT), b.row_gram(b.g), beta2)
    right = momentum(b, b.slot("r", Kind.RIGHT), b.col_gram(b.g), beta2)
    root_l = every(b, period, b.inverse_root4(left, damping), b.slot("root_l", Kind.LEFT, 1.0))
    root_r = every(b, period, b.inverse_root4(right, damping), b.slot("root_r", Kind.RIGHT, 1.0))
    shampoo = b.matmul(b.matmul(root_l, m), root_r)
    adam = debias(b, m, beta1) / (b.sqrt(debias(b, v, beta2)) + eps)
    grafted = b.safe_div(b.norm(adam), b.norm(shampoo)) * shampoo
    return b.build(decoupled_weight_decay(b, grafted, weight_decay), adamw.program())


ROWS = (
    Baseline(
        name="shampoo",
        optimizer=Shampoo,
        build=program,
        paper="Gupta, Koren & Singer 2018, arXiv:1802.09568; Anil et al. 2020, arXiv:2002.09018; Shi et al. 2023, "
        "arXiv:2309.06497",
        lr_range=(3e-4, 1e-2),
        when="Large batches and long runs, where steps are few and each may cost more: its preconditioners take the "
        "curvature between rows and between columns into account, and its learning rate is AdamW's.",
        cases=(
            {},
            {"every": 1.0, "beta1": 0.0},
            {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3, "every": 3.0},
        ),
        # with less damping, no short run in single precision knows directions in which there was no gradient yet
        visible={"damping": 0.1},
    ),
)
