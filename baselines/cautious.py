"""Cautious variants of any rule: Liang et al. 2024, Cautious Optimizers: Improving Training with One Line of Code,
arXiv:2411.16085."""

from __future__ import annotations

from primitives import Const, Instr, Kind, Program
from primitives.program import Arg


def cautious(program: Program) -> Program:
    """`program` without the elements of its update that point against the present gradient.

    What the update keeps is divided by the share of elements that are kept, but by no less than 1e-3, as in the
    authors' code; the paper adds one over the number of elements to the share instead. The share is that of one tensor.

    As in the paper, weight decay is not masked: if the update is a sum with a term that is a scalar times the
    parameter, as `primitives.blocks.decoupled_weight_decay` makes it, that term stays as it is. Decay in any other
    place, as inside LAMB's ratio, is masked with the rest. A fallback becomes cautious, too.
    """
    body = list(program.body)

    def add(op: str, *args: Arg) -> int:
        body.append(Instr(op, args))
        return len(body) - 1

    direction, decay = _parts(program)
    mask = add("agree", direction, "g")
    share = add("max", add("mean", mask), Const(1e-3))
    update = add("mul", direction, add("div", mask, share))
    if decay is not None:
        update = add("add", update, decay)
    fallback = cautious(program.fallback) if program.fallback is not None else None
    return Program(program.state, program.hypers, tuple(body), update, program.next_state, fallback).pruned()


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
