"""Programs as short pseudo-code, in the style in which papers print update rules."""

from __future__ import annotations

import math
from collections.abc import Iterator

from optforge.primitives.analysis.assignments import UPDATE, Assignment, Tree, assignments
from optforge.primitives.kinds import Kind
from optforge.primitives.program import Program

# How an op is written between its arguments, how tightly it binds, and how tightly each argument must bind.
_INFIX: dict[str, tuple[str, int, tuple[int, ...]]] = {
    "add": ("{} + {}", 1, (1, 2)),
    "sub": ("{} - {}", 1, (1, 2)),
    "invert": ("1 - {}", 1, (2,)),
    "mul": ("{} * {}", 2, (2, 3)),
    "div": ("{} / {}", 2, (2, 3)),
    "neg": ("-{}", 3, (3,)),
    "pow": ("{}**{}", 4, (5, 5)),
}
_ATOM = 5
ARROW = "←"


def pseudo_code(program: Program) -> str:
    """The live part of `program` as readable lines.

    ``name = …`` names an intermediate value, ``name ← …`` overwrites a slot or the parameter; lines are carried out in
    order. Operators have Python's precedence, everything else is an op of the table. Comments say what the
    hyperparameters are, how state begins, and what vectors are trained with.
    """
    return "\n".join(_lines(program))


def _lines(program: Program) -> Iterator[str]:
    hypers = [h for h in program.hypers if h.name in program.live.names]
    if hypers:
        yield "# " + ", ".join(f"{h.name} = {number(h.default)}" for h in hypers)
    if program.live_state:
        yield "# state: " + ", ".join(
            f"{s.name} = {s.init if isinstance(s.init, str) else number(s.init)}"
            + ("" if s.kind is Kind.TENSOR else f" ({s.kind.name.lower()})")
            for s in program.live_state
        )
    yield from map(line, assignments(program))
    if program.fallback is not None and program.needs_matrix:
        yield "# for parameters without rows and columns:"
        yield from _lines(program.fallback)


def line(assignment: Assignment) -> str:
    """One line of pseudo-code."""
    target, tree, stores = assignment
    if target == "p":
        return f"p {ARROW} p - lr * {_at_least(tree, 3)}"
    return f"{target} {ARROW if stores else '='} {expression(tree)}"


def expression(tree: Tree) -> str:
    """Text of an expression, with no more parentheses than Python needs to read it back as it is."""
    return _write(tree)[0]


def _write(tree: Tree) -> tuple[str, int]:
    """Text and how tightly it binds."""
    if isinstance(tree, str):
        return tree, _ATOM
    if not isinstance(tree, tuple):
        return number(tree), _ATOM if math.copysign(1, tree) > 0 else 3
    op, *args = tree
    infix = _INFIX.get(str(op))
    if infix is None:
        return f"{op}({', '.join(expression(a) for a in args)})", _ATOM
    template, binds, needed = infix
    return template.format(*(_at_least(a, n) for a, n in zip(args, needed, strict=True))), binds


def _at_least(tree: Tree, needed: int) -> str:
    text, binds = _write(tree)
    return text if binds >= needed else f"({text})"


def number(value: float) -> str:
    """Shortest text of a literal that reads back exactly: ``1`` for 1.0."""
    return str(int(value)) if value.is_integer() and abs(value) < 1e6 else repr(value)


__all__ = ["ARROW", "UPDATE", "expression", "line", "number", "pseudo_code"]
