"""Ops as C++ functions of values held at full shape, ``[ROWS, COLS]`` in double: the op table's templates, traced.

Elementwise ops are one loop. Ops that mix elements see their arguments at the shapes of their kinds, as torch does.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from optforge.primitives.backends.toolchain import build
from optforge.primitives.backends.trace import Node, Untraceable, trace_op
from optforge.primitives.kinds import Kind
from optforge.primitives.op import Op
from optforge.primitives.ops import OPS

ROWS = COLS = 8
SHAPE = (ROWS, COLS)
Call = tuple[str, tuple[Kind, ...]]  # name of an op; kinds of its arguments if it mixes elements, else ()

_AXES = {Kind.SCALAR: "", Kind.ROW: "i", Kind.COL: "j", Kind.TENSOR: "ij"}
_PLACE = {Kind.SCALAR: "0", Kind.ROW: "i", Kind.COL: "j", Kind.TENSOR: f"i * {COLS} + j"}
_LOOP = {"i": f"for (int i = 0; i < {ROWS}; i++) ", "j": f"for (int j = 0; j < {COLS}; j++) "}
_SIGNATURE = "(double* o, const double* a, const double* b, const double* c, int n)"


class Loops(NamedTuple):
    """The engine of together.hpp with all functions, and which number each has."""

    library: ctypes.CDLL
    numbers: Mapping[Call, int]


@cache
def loops() -> Loops | None:
    """All that can be traced, compiled once in a process; None without a compiler."""
    functions: list[str] = []
    numbers: dict[Call, int] = {}
    for op in list(OPS.values()):
        for call in calls_of(op):
            try:
                functions.append(_function(f"f{len(numbers)}", op, call[1]))
            except Untraceable:
                continue
            numbers[call] = len(numbers)
    folder = Path(__file__).parent
    library = build("\n".join([
        f"#define T double\n#define P T\n#define SLOTS\n#define ROWS {ROWS}\n#define COLS {COLS}",
        (folder / "native.hpp").read_text(encoding="utf-8"),
        "static const struct { int64_t size, rows, cols; } t = {ROWS * COLS, ROWS, COLS};",
        *functions,
        f"#define FUNCTIONS {', '.join(f'f{i}' for i in range(len(functions)))}",
        f"#define ELEMENTWISE {', '.join(str(int(not kinds)) for _, kinds in numbers)}",
        (folder / "together.hpp").read_text(encoding="utf-8"),
    ]))  # fmt: skip
    return None if library is None else Loops(library, MappingProxyType(numbers))


def calls_of(op: Op) -> list[Call]:
    """The functions an op may be: one, or if it mixes elements one for each choice of its arguments' kinds.

    None for ops of more than three arguments, which the engine cannot pass.
    """
    if op.arity > 3:
        return []
    return [(op.name, kinds) for kinds in op.result] if op.reduces else [(op.name, ())]


def _function(name: str, op: Op, kinds: Sequence[Kind]) -> str:
    nodes, result = trace_op(op, kinds or [Kind.TENSOR] * op.arity)
    body = _whole(nodes, result) if kinds else _elementwise(nodes, result)
    return f"static void {name}{_SIGNATURE} {{\n{body}\n}}"


def _elementwise(nodes: Sequence[Node], result: int) -> str:
    defined = [f"const double x{k} = {_formula(node, '[i]', '')};" for k, node in enumerate(nodes)]
    return f"#pragma omp simd\nfor (int i = 0; i < n; i++) {{ {' '.join(defined)} o[i] = x{result}; }}"


def _whole(nodes: Sequence[Node], result: int) -> str:
    """Each node an array of its kind's size."""
    lines = []
    for k, node in enumerate(nodes):
        here = _PLACE[node.kind]
        lines.append(f"double x{k}[{(ROWS if 'i' in here else 1) * (COLS if 'j' in here else 1)}] = {{0}};")
        if node.is_sum:
            (arg,) = node.args
            lines.append(f"{_over(nodes[arg].kind)}x{k}[{here}] += x{arg}[{_PLACE[nodes[arg].kind]}];")
        else:
            places = [f"[{_PLACE[nodes[a].kind]}]" for a in node.args]
            at = " + ".join([f"i * {COLS}"] * ("i" in here) + ["j"] * ("j" in here)) or "0"
            lines.append(f"{_over(node.kind)}x{k}[{here}] = {_formula(node, f'[{at}]', *places)};")
    return "\n".join([*lines, f"{_over(Kind.TENSOR)}o[i * {COLS} + j] = x{result}[{_PLACE[nodes[result].kind]}];"])


def _over(kind: Kind) -> str:
    return "".join(_LOOP[axis] for axis in _AXES[kind])


def _formula(node: Node, at: str, *places: str) -> str:
    """The expression of a node; arguments are read at their `places`, inputs ``a``, ``b``, ``c`` at `at`."""
    if not node.args:
        return node.code + at if node.code in "abc" else node.code
    where = places if any(places) else [""] * len(node.args)
    return node.code.format(*(f"x{a}{place}" for a, place in zip(node.args, where, strict=True)))
