"""Cautious variants of any rule: Liang et al. 2024, Cautious Optimizers: Improving Training with One Line of Code,
arXiv:2411.16085."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from optforge.baselines import adamw, lion
from optforge.baselines.base import HandWritten, Lists, decay_weights
from optforge.baselines.row import Baseline, Oracle
from optforge.primitives import Builder, Instr, Kind, Program, blocks
from optforge.primitives.program import Arg


class _Cautious(HandWritten):
    """Mixed into an optimizer with decoupled weight decay whose step does not depend on where the parameters are."""

    def _apply(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], state: Lists, step: int) -> None:
        lr, moves = group["lr"], [torch.zeros_like(p) for p in params]
        super()._apply({**group, "lr": 1.0, "weight_decay": 0.0}, moves, grads, state, step)
        masks = [torch.lt(move * g, 0).to(g.dtype) for move, g in zip(moves, grads, strict=True)]
        torch._foreach_mul_(moves, masks)
        torch._foreach_div_(moves, [mask.mean().clamp(min=1e-3) for mask in masks])
        decay_weights(group, params)
        torch._foreach_add_(params, moves, alpha=lr)


class CautiousAdamW(_Cautious, adamw.AdamW):
    """AdamW without the elements of its step that point against the present gradient; the rest is divided by its share.

    Variant: the share is that of one tensor, and counts as no less than 1e-3, as in the authors' code; weight decay is
    not masked. `baselines.cautious.cautious` makes the same of any program.
    """


class CautiousLion(_Cautious, lion.Lion):
    """Lion without the elements of its step that point against the present gradient; the rest is divided by its share.

    Variant: that of `CautiousAdamW`.
    """


def cautious(program: Program) -> Program:
    """`program` without the elements of its update that point against the present gradient.

    What the update keeps is divided by the share of elements that are kept, but by no less than 1e-3, as in the
    authors' code; the paper adds one over the number of elements to the share instead. The share is that of one tensor.

    As in the paper, weight decay is not masked: if the update is a sum with a term that is a scalar times the
    parameter, as `primitives.blocks.decoupled_weight_decay` makes it, that term stays as it is. Decay in any other
    place, as inside LAMB's ratio, is masked with the rest. A fallback becomes cautious, too.
    """
    b = Builder()
    value, (direction, decay) = b.append(program), _parts(program)
    update = blocks.cautious(b, value(direction))
    if decay is not None:
        update = update + value(decay)
    return b.build(update, cautious(program.fallback) if program.fallback is not None else None).pruned()


def _parts(program: Program) -> tuple[Arg, Arg | None]:
    """The update without its weight decay, and that."""
    if type(program.update) is int:
        op, args = program.body[program.update]
        for direction, decay in (args, args[::-1]) if op == "add" else ():
            if type(decay) is int and _scales_p(program, program.body[decay]):
                return direction, decay
    return program.update, None


def _scales_p(program: Program, instr: Instr) -> bool:
    kinds = [program.kind_of(arg) for arg in instr.args]
    return instr.op == "mul" and "p" in instr.args and Kind.SCALAR in kinds


def adamw_program() -> Program:
    """Cautious AdamW in the primitive language."""
    return cautious(adamw.program())


def lion_program() -> Program:
    """Cautious Lion in the primitive language."""
    return cautious(lion.program())


ROWS = (
    Baseline(
        name="cautious-adamw",
        optimizer=CautiousAdamW,
        build=adamw_program,
        paper="Liang et al. 2024, arXiv:2411.16085",
        lr_range=(3e-4, 1e-2),
        when="Wherever `adamw` is used, with the same hyperparameters and memory; how much it helps depends on the "
        "model.",
        cases=({}, {"weight_decay": 0.0}, {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3, "weight_decay": 0.3}),
    ),
    Baseline(
        name="cautious-lion",
        optimizer=CautiousLion,
        build=lion_program,
        paper="Liang et al. 2024, arXiv:2411.16085",
        lr_range=(3e-5, 1e-3),
        when="Wherever `lion` is used, with the same hyperparameters and memory; how much it helps depends on the "
        "model.",
        oracles=(Oracle("lion_pytorch.cautious_lion.Lion", {"cautious_factor": 0.0}),),
        cases=({}, {"weight_decay": 0.1}, {"beta1": 0.0, "beta2": 0.0}, {"beta1": 0.95, "beta2": 0.98}),
    ),
)
