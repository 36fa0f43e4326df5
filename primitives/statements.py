"""Statements of programs: what an operation is applied to, and how that is written."""

from __future__ import annotations

from typing import NamedTuple


class Const(NamedTuple):
    """A literal number in a program. A type of its own, because register 1 is not the number 1.0."""

    value: float


Arg = int | str | Const  # an earlier instruction's result | a signal, slot or hyperparameter | a literal


class Instr(NamedTuple):
    """One statement: apply `op` to `args`. Its result is known by its position in the body."""

    op: str
    args: tuple[Arg, ...]

    def __str__(self) -> str:
        return f"{self.op}({', '.join(map(show_arg, self.args))})"


def show_arg(arg: Arg) -> str:
    """Text of an argument: ``x3`` for a register, a name, or a number that reads back exactly."""
    if type(arg) is Const:
        return repr(arg.value)
    return f"x{arg}" if type(arg) is int else str(arg)
