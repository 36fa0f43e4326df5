"""Schedule-Free AdamW: Defazio et al. 2024, The Road Less Scheduled, algorithm 1, arXiv:2405.15682."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from optforge.baselines.base import HandWritten, Lists, average_squares, corrected_root
from optforge.baselines.checks import check_positive
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Kind, Program
from optforge.primitives.blocks import debias, decoupled_weight_decay, momentum, rms_normalise
from optforge.primitives.parameters import REST


class ScheduleFreeAdamW(HandWritten):
    """Adam without momentum moves z; x is the average of all z; gradients are taken at y, between the two.

    Between steps the parameters hold y. Call `eval` before you evaluate or save the model, which puts x in its place,
    and `train` before the next step; or evaluate inside ``with averaged(optimizer):``.

    Variant: as in the authors' package schedulefree, second moments are corrected for their start at zero (in the
    paper the rate is) and weight decay is taken at y. As in the paper, z counts in the average by the square of its
    learning rate; the package takes the largest rate so far, which is the same until the rate falls. Every parameter
    has an average of its own, begun at its first step. Warm-up is a scheduler's.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: share of x in y, above 0; and decay of second moments.
        eps: added to the root of second moments.
        weight_decay: decoupled.

    With parameters of 16 bits, use ``state_dtype=torch.float32``: the sum of squared rates outgrows their precision.

    Checkpoints know from the groups' entry ``training`` whether the parameters hold y, and from ``mixed`` which share
    of x is in it: ``betas[0]`` may change on the way, as `torch.optim.lr_scheduler.OneCycleLR` changes it.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "training": True}
        super().__init__(params, options, maximize=maximize, state_dtype=state_dtype)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        check_positive({"betas[0]": group["betas"][0]}, "betas[0]")  # else x would be lost

    def _start(self, p: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {"z": p.clone(), "v": torch.zeros_like(p), "total": p.new_zeros(())}

    def _before_step(self, ready: Sequence[Sequence[Tensor]]) -> None:
        if not all(group["training"] for group in self.param_groups):
            raise RuntimeError("the parameters hold averages; call optimizer.train() before the next step")
        for group in self.param_groups:
            if _mixed(group) != group["betas"][0]:
                self._move(group, 1 - group["betas"][0] / _mixed(group))
            group["mixed"] = group["betas"][0]

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        lr, (beta1, beta2), z, v = group["lr"], group["betas"], state["z"], state["v"]
        average_squares(v, grads, beta2)
        if lr == 0:
            return  # nothing moves, nothing counts
        torch._foreach_add_(state["total"], lr**2)
        shares = [lr**2 / total for total in state["total"]]
        updates = torch._foreach_div(grads, corrected_root(v, beta2, step, group["eps"]))
        torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        torch._foreach_lerp_(params, z, shares)
        torch._foreach_sub_(z, updates, alpha=lr)
        # of the step that z makes, x gets its share, and y the rest of z's weight
        torch._foreach_mul_(updates, [beta1 * (1 - share) - 1 for share in shares])
        torch._foreach_add_(params, updates, alpha=lr)

    @torch.no_grad()
    def eval(self) -> None:
        """Let the parameters hold the averages x, for evaluation and saving. Does nothing if they do."""
        self._switch(training=False)

    @torch.no_grad()
    def train(self) -> None:
        """Let the parameters hold y again, for training. Does nothing if they do."""
        self._switch(training=True)

    def _switch(self, *, training: bool) -> None:
        for group in self.param_groups:
            if group["training"] != training:
                self._move(group, 1 - _mixed(group) if training else 1 - 1 / _mixed(group))
            group["training"] = training

    def _move(self, group: dict[str, Any], weight: float) -> None:
        """Move what the parameters of a group hold by `weight` of the way to z."""
        for p in group["params"]:
            if state := self.state.get(p):
                whole = _towards_z(p, state, weight)
                p.copy_(whole)
                if REST in state:
                    state[REST].copy_(whole - p)


@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """Within the block parameters hold the averages x, for evaluation and saving; after it, exactly what they held.

    `optimizer` is a `ScheduleFreeAdamW`, or a `ProgramOptimizer` with the program of this module, for which this is
    the way to the averages: ``x = y + (1 - 1/β₁) · (z - y)``. β₁ of the program must stay the same all the way.

    Raises:
        ValueError: for an optimizer without a slot ``z``, and for ``beta1 = 0``, with which x is not kept.
    """
    held: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for group in optimizer.param_groups:
            beta1 = _mixed(group)
            moved = [p for p in group["params"] if optimizer.state.get(p)]  # what has not moved is its own average
            if moved and not (beta1 and "z" in optimizer.state[moved[0]]):
                raise ValueError("expected an optimizer with a slot z and beta1 above 0, as Schedule-Free AdamW is")
            for p in moved if group.get("training", True) else ():
                held.append((p, p.clone()))
                p.copy_(_towards_z(p, optimizer.state[p], 1 - 1 / beta1))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, y in held:
                p.copy_(y)


def is_schedule_free(optimizer: Optimizer) -> bool:
    """Whether the parameters that `optimizer` holds are to be evaluated inside `averaged`."""
    trained = getattr(optimizer, "program", None)
    own = isinstance(trained, Program) and trained.body == program().body
    return own or isinstance(optimizer, ScheduleFreeAdamW)


def _mixed(group: dict[str, Any]) -> float:
    """The share of x in what the parameters of a group hold between steps: β₁ of the latest one."""
    return group.get("mixed") or (group["betas"][0] if "betas" in group else group.get("beta1", 0))


def _towards_z(p: Tensor, state: dict[str, Any], weight: float) -> Tensor:
    """What lies by `weight` of the way from `p` to z, in the dtype of z."""
    z = state["z"]
    return torch.lerp(p.to(z.dtype) + state[REST] if REST in state else p, z, weight)


def program() -> Program:
    """Schedule-Free AdamW in the primitive language, with y as the parameter.

    The update is (y - y')/lr for the next y' = (1 - c) y + c z - lr (1 - β₁ (1 - c)) d, where d is the step's direction
    and c the share of the new z in x. At lr = 0 nothing moves. `averaged` gives x.
    """
    b = Builder()
    beta1, beta2 = b.hyper("beta1", 0.9, "unit"), b.hyper("beta2", 0.999, "unit")
    eps, weight_decay = b.hyper("eps", 1e-8, "log"), b.hyper("weight_decay", 0.0, "log")
    z, v, total = b.slot("z", init="p"), b.slot("v"), b.slot("total", Kind.SCALAR)
    second_moment = debias(b, momentum(b, v, b.square(b.g), beta2), beta2)
    direction = decoupled_weight_decay(b, rms_normalise(b, b.g, second_moment, eps), weight_decay)
    total.next = total + b.square(b.lr)
    share = b.safe_div(b.square(b.lr), total.next)
    z.next = z - b.lr * direction
    return b.build(b.safe_div(share * (b.p - z), b.lr) + (1.0 - beta1 * (1.0 - share)) * direction)


ROWS = (
    Baseline(
        name="schedule-free-adamw",
        optimizer=ScheduleFreeAdamW,
        build=program,
        paper="Defazio et al. 2024, arXiv:2405.15682",
        lr_range=(1e-2, 1e-1),
        when="The length of training is not known beforehand, or no schedule is wanted (warm-up still is). "
        "Evaluate and save the averages: `optimizer.eval()`, or `with averaged(optimizer):`. Batch norm "
        "needs its statistics taken anew with them.",
        oracles=(Oracle("schedulefree.AdamWScheduleFree"),),
        cases=(
            {},
            {"weight_decay": 0.3},
            {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3},
        ),
    ),
)
