"""A step as a graph of numbers, rows, columns and tensors: the op table's templates, run on symbols.

Templates are written for torch. Here they meet a stand-in for it that notes what they compute, so that a native kernel
needs no second meaning for any op. What the stand-in does not know raises `Untraceable`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any, NamedTuple

from optforge.primitives.backends.source import HoistedStep
from optforge.primitives.kinds import Kind, join
from optforge.primitives.op import Op
from optforge.primitives.program import Program

S, TENSOR = Kind.SCALAR, Kind.TENSOR

COUNTS = {S: "T(1)", Kind.ROW: "T(t.rows)", Kind.COL: "T(t.cols)", TENSOR: "T(t.size)"}
"""Expressions for the number of elements along the axes of a kind."""


class Untraceable(Exception):
    """A template uses something that has no meaning here."""


class Node(NamedTuple):
    """One value: a C++ expression of other values, a sum of one over some axes, or an input.

    Attributes:
        kind: its shape relative to the parameter.
        code: template of the expression; of an input its name; of a sum ``"sum"``.
        args: positions of the nodes in the template.
        level: how many passes over the parameter must be finished before it is known.
    """

    kind: Kind
    code: str
    args: tuple[int, ...] = ()
    level: int = 0

    @property
    def is_orthogonalised(self) -> bool:
        """Whether it is its only argument, a matrix, with all singular values set to about 1."""
        return self.code == "orthogonalise"

    @property
    def is_sum(self) -> bool:
        """Whether it adds up its only argument along the axes that its kind lacks."""
        return self.code == "sum"


@dataclass(frozen=True)
class Step:
    """What one step computes.

    Attributes:
        nodes: all values, each after those it is made of. Inputs have the names ``p``, ``g``, ``k0``, ``k1``, … (the
            numbers) and ``s0``, ``s1``, … (live slots).
        update: position of the update.
        following: for each live slot the position of its next value, or None if it stays what it is.
    """

    nodes: tuple[Node, ...]
    update: int
    following: tuple[int | None, ...]


class Value:
    """A symbol that templates calculate with."""

    def __init__(self, trace: Trace, index: int) -> None:
        self.trace, self.index = trace, index

    @property
    def kind(self) -> Kind:
        """Shape relative to the parameter."""
        return self.trace.nodes[self.index].kind

    dtype = None  # templates convert masks to it; here all numbers have one dtype

    def to(self, dtype: None) -> Value:
        """A mask as numbers."""
        return self.trace("T({0})", self)

    def pow(self, exponent: Any) -> Value:
        """Elementwise power."""
        return self.trace("std::pow({0}, {1})", self, exponent)

    def __add__(self, other: Any) -> Value:
        return self.trace("{0} + {1}", self, other)

    def __radd__(self, other: Any) -> Value:
        return self.trace("{0} + {1}", other, self)

    def __sub__(self, other: Any) -> Value:
        return self.trace("{0} - {1}", self, other)

    def __rsub__(self, other: Any) -> Value:
        return self.trace("{0} - {1}", other, self)

    def __mul__(self, other: Any) -> Value:
        return self.trace("{0} * {1}", self, other)

    def __rmul__(self, other: Any) -> Value:
        return self.trace("{0} * {1}", other, self)

    def __truediv__(self, other: Any) -> Value:
        if isinstance(other, Value) and self.kind is TENSOR is not other.kind:
            return self * (1.0 / other)  # one division for many elements; the last bit may differ
        return self.trace("{0} / {1}", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self.trace("{0} / {1}", other, self)

    def __neg__(self) -> Value:
        return self.trace("-{0}", self)

    def __eq__(self, other: object) -> Value:  # type: ignore[override]
        return self.trace("{0} == {1}", self, other)

    __hash__ = None  # type: ignore[assignment]


class Trace:
    """Collects nodes; equal ones become one. Called with a template and its arguments."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._known: dict[Node, int] = {}

    def node(self, kind: Kind, code: str, args: Sequence[Value] = (), level: int | None = None) -> Value:
        """The value with these properties; its level is that of its arguments unless given."""
        indices = tuple(a.index for a in args)
        if level is None:
            level = max((self.nodes[i].level for i in indices), default=0)
        new = Node(kind, code, indices, level)
        index = self._known.setdefault(new, len(self.nodes))
        if index == len(self.nodes):
            self.nodes.append(new)
        return Value(self, index)

    def __call__(self, code: str, *args: Any) -> Value:
        """An elementwise expression of values and plain numbers."""
        values = [a if isinstance(a, Value) else self.number(a) for a in args]
        kind = join(*(v.kind for v in values))
        if kind is None or kind.is_square:
            raise Untraceable("square matrices")
        return self.node(kind, code, values)

    def number(self, value: object) -> Value:
        """A number that stands in a template."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise Untraceable(f"{value!r} in a template")
        return self.node(S, f"T({float(value)!r})")


_FUNCTIONS = {
    "abs": "std::fabs({0})", "neg": "-{0}", "square": "{0} * {0}", "reciprocal": "T(1) / {0}",
    "sign": "T(({0} > 0) - ({0} < 0))", "maximum": "maximum({0}, {1})", "minimum": "minimum({0}, {1})",
    "lerp": "lerp({0}, {1}, {2})", "where": "({0} ? {1} : {2})", "gt": "{0} > {1}", "lt": "{0} < {1}",
    "clamp": "minimum(maximum({0}, {1}), {2})", "remainder": "modulo({0}, {1})", "pow": "std::pow({0}, {1})",
    "zeros_like": "T(0)", "arcsin": "std::asin({0})", "arccos": "std::acos({0})", "arctan": "std::atan({0})",
    "arcsinh": "std::asinh({0})", "arccosh": "std::acosh({0})", "arctanh": "std::atanh({0})",
} | {name: f"std::{name}({{0}})" for name in ("sqrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin",
                                               "cos", "tan", "sinh", "cosh", "tanh")}  # fmt: skip


class _Torch:
    """Stands in for torch; `axes` maps dimensions to the bits of `Kind`."""

    def __init__(self, trace: Trace, axes: dict[int, Kind]) -> None:
        self._trace, self._axes = trace, axes

    def __getattr__(self, name: str) -> Callable[..., Value]:
        if name not in _FUNCTIONS:
            raise Untraceable(f"torch.{name}")
        return lambda *args: self._trace(_FUNCTIONS[name], *args)

    def _lost(self, x: Value, dim: Sequence[int]) -> Kind:
        """The axes of `x` that a reduction over `dim` removes."""
        return Kind(sum(self._axes[d] for d in dim) & x.kind)

    def ones_like(self, x: Value) -> Value:
        return self._trace.node(x.kind, "T(1)")

    def amax(self, x: Value, dim: Sequence[int], keepdim: bool) -> Value:
        if self._lost(x, dim):
            raise Untraceable("torch.amax")
        return x

    def sum(self, x: Value, dim: Sequence[int], keepdim: bool) -> Value:
        lost = self._lost(x, dim)
        if self._trace.nodes[x.index].code == "T(1)":
            return self._count(lost)
        level = self._trace.nodes[x.index].level + (x.kind is TENSOR)  # rows and columns need no pass of their own
        return self._trace.node(Kind(x.kind & ~lost), "sum", [x], level) if lost else x

    def mean(self, x: Value, dim: Sequence[int], keepdim: bool) -> Value:
        return self.sum(x, dim, keepdim) / self._count(self._lost(x, dim))

    def _count(self, lost: Kind) -> Value:
        """How many elements there are along these axes."""
        return self._trace.node(S, COUNTS[lost])


class _Linalg:
    """Stands in for `primitives.linalg`."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace

    def newton_schulz(self, x: Value, dim: Sequence[int]) -> Value:
        return self._trace.node(TENSOR, "orthogonalise", [x], self._trace.nodes[x.index].level + 1)


def trace_op(op: Op, kinds: Sequence[Kind]) -> tuple[tuple[Node, ...], int]:
    """One op, given the kinds of its arguments: all values, of which inputs have the names ``a``, ``b``, ``c``, ….

    Returns:
        The nodes, each after those it is made of, and the position of the result.

    Raises:
        Untraceable: if its template is more than elementwise functions, sums and means.
    """
    graph = Trace()
    args = [graph.node(kind, "abcd"[i]) for i, kind in enumerate(kinds)]
    result = _run(op.function, graph, {0: Kind.ROW, 1: Kind.COL}, *args, dims=(0, 1))
    return tuple(graph.nodes), result.index


def trace(program: Program, *, matrices: bool = False) -> Step:
    """`program` for one parameter, with its live slots and the numbers of `primitives.backends.source.HoistedStep`.

    With `matrices`, an orthogonalised matrix is a node, too (see `Node.is_orthogonalised`).

    Raises:
        Untraceable: if it contains an op whose template is more than elementwise functions, sums and means.
    """
    graph, hoisted = Trace(), HoistedStep(program, lazy=False)
    axes = {0: Kind.ROW, 1: Kind.COL} if program.needs_matrix else {0: TENSOR}
    live = {slot.name: graph.node(slot.kind, f"s{i}") for i, slot in enumerate(program.live_state)}
    inputs = {"g": graph.node(TENSOR, "g"), "p": graph.node(TENSOR, "p"), **live}
    numbers = [graph.node(S, f"k{i}") for i in range(hoisted.count)]
    reads = [None if name is None else inputs.get(name) for name in hoisted.reads]
    names = {"linalg": _Linalg(graph)} if matrices else {}
    update, state = _run(hoisted.function, graph, axes, reads, numbers, tuple(axes), (), names=names)
    after = {slot.name: value for slot, value in zip(program.state, state, strict=True)}
    following = [None if after[name].index == before.index else after[name].index for name, before in live.items()]
    return Step(tuple(graph.nodes), update.index, tuple(following))


def _run(
    function: Callable[..., Any],
    graph: Trace,
    axes: dict[int, Kind],
    *args: Any,
    names: dict[str, Any] | None = None,
    **more: Any,
) -> Any:
    """What generated code returns if it meets another torch, and what else `names` has."""
    names = {"torch": _Torch(graph, axes), "math": math} | (names or {})
    try:
        return FunctionType(function.__code__, names)(*args, **more)
    except (NameError, TypeError, KeyError, AttributeError) as error:
        raise Untraceable(str(error)) from error
