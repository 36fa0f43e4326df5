"""What a row of the op table is: name, kinds, meanings, price, domain and source of one operation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

from optforge.primitives.kinds import Kind, join

S, R, C, T, LEFT, RIGHT = Kind.SCALAR, Kind.ROW, Kind.COL, Kind.TENSOR, Kind.LEFT, Kind.RIGHT

KindRule = Callable[..., Kind | None]
Derivative = Callable[..., Any]


def elementwise(*kinds: Kind) -> Kind | None:
    """Broadcast: the result varies wherever an argument does."""
    return join(*kinds)


def reduction(*kinds: Kind) -> Kind | None:
    """All arguments are tensors; the result is one number per parameter."""
    return S if all(k is T for k in kinds) else None


def row_reduction(kind: Kind) -> Kind | None:
    """A tensor to one number per row."""
    return R if kind is T else None


def col_reduction(kind: Kind) -> Kind | None:
    """A tensor to one number per column."""
    return C if kind is T else None


def fold_row_or_col(kind: Kind) -> Kind | None:
    """A row or column statistic to one number per parameter."""
    return S if kind in (R, C) else None


def blocks_of(kind: Kind, count: Kind) -> Kind | None:
    """A row or column statistic, and a number of blocks, to a statistic of the same kind."""
    return kind if kind in (R, C) and count is S else None


def side(kind: Kind) -> Kind | None:
    """A tensor to a number that its shape as a matrix decides."""
    return S if kind is T else None


def outer_product(a: Kind, b: Kind) -> Kind | None:
    """A row statistic times a column statistic: a tensor."""
    return T if (a, b) == (R, C) else None


def whole_tensor(kind: Kind, *numbers: Kind) -> Kind | None:
    """A tensor, and numbers, to a tensor, mixing its elements."""
    return T if kind is T and all(n is S for n in numbers) else None


def product_of(x: Kind, y: Kind) -> Kind | None:
    """Matrices that fit without transposing one: left with left or tensor, tensor or right with right."""
    if (x, y) in ((LEFT, LEFT), (RIGHT, RIGHT)):
        return x
    return T if (x, y) in ((LEFT, T), (T, RIGHT)) else None


def signature(*kinds: Kind) -> KindRule:
    """Arguments of exactly these kinds, of which the last is that of the result."""
    return lambda *given: kinds[-1] if given == kinds[:-1] else None


def of_square(kind: Kind, *numbers: Kind) -> Kind | None:
    """A square matrix of either side, and numbers, to one of the same side."""
    return kind if kind.is_square and all(n is S for n in numbers) else None


def two_squares(a: Kind, b: Kind, number: Kind) -> Kind | None:
    """Two square matrices of one side, and a number, to a third."""
    return a if a.is_square and a is b and number is S else None


def square_to_scalar(kind: Kind) -> Kind | None:
    """A square matrix of either side to one number."""
    return S if kind.is_square else None


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        name: how programs refer to it.
        arity: number of arguments.
        torch: template of the torch expression.
        sympy: template of the sympy expression, or None where there is no closed form per element.
        rule: kinds of the arguments to the kind of the result, or None when they do not fit.
        flops: floating-point operations per element of the widest argument; or, for products of matrices, a formula of
            those of one call, in which the first argument has r rows and k columns, and the last has c columns.
        commutative: whether the two arguments may be swapped.
        domain: for each argument the set on which the op is finite and real (a key of `DOMAINS`).
        source: where the operation or this variant of it comes from, in one line.
        subsets: names of the sets of ops it belongs to (see `primitives.ops.subset`).
        derivative: of ``(b, result, *arguments)``, expressions of a `primitives.builder.Builder`: for each argument
            None if the result does not move with it, a factor of its derivative, or a function of that; or, in place of
            all, an expression of other ops that means the same. None leaves it to `torch.func.jvp` (see `moving`).
    """

    name: str
    arity: int
    torch: str
    sympy: str | None
    rule: KindRule = elementwise
    flops: float | str = 1.0
    commutative: bool = False
    domain: tuple[str, ...] = ()
    source: str = ""
    subsets: frozenset[str] = field(default_factory=frozenset)
    derivative: Derivative | None = None

    @cached_property
    def result(self) -> Mapping[tuple[Kind, ...], Kind]:
        """Every admissible tuple of argument kinds, mapped to the kind of the result."""
        table = ((kinds, self.rule(*kinds)) for kinds in product(Kind, repeat=self.arity))
        return {kinds: kind for kinds, kind in table if kind is not None}

    @cached_property
    def function(self) -> Callable[..., Any]:
        """The torch meaning as ``f(*arguments, dims=…)``."""
        names = [f"a{i}" for i in range(self.arity)]
        return eval(f"lambda {', '.join(names)}, dims=(): {self.torch.format(*names, dims='dims')}", namespace())

    @property
    def reduces(self) -> bool:
        """Whether elements of the parameter are mixed, so that a shard of it does not suffice."""
        return self.rule is not elementwise

    def work(self, kinds: Sequence[Kind], shape: Sequence[int]) -> float:
        """Floating-point operations of one call on arguments of these kinds, for a parameter of `shape`."""
        if isinstance(self.flops, float | int):
            return self.flops * max(kind.elements(shape) for kind in (*kinds, self.result[tuple(kinds)]))
        r, last = kinds[0].shape(shape)[0], kinds[-1].shape(shape)
        sides = {"r": r, "k": kinds[0].elements(shape) // r, "c": math.prod(last[1:]), "min": min}
        return float(eval(self.flops, {"__builtins__": {}}, sides))

    def traffic(self, kinds: Sequence[Kind], shape: Sequence[int], itemsize: int = 4) -> int:
        """Bytes that one call on its own reads and writes: every argument once, and the result."""
        return itemsize * sum(kind.elements(shape) for kind in (*kinds, self.result[tuple(kinds)]))

    @cached_property
    def needs_matrix(self) -> bool:
        """Whether it is only meaningful for parameters with at least two dimensions."""
        if not self.reduces:
            return False
        kinds = {kind for signature, result in self.result.items() for kind in (*signature, result)}
        return self.rule in (side, whole_tensor) or any(kind.needs_matrix for kind in kinds)


PUSHED = "jvp_"


def moving(op: Op) -> Op:
    """The op for the derivative of `op`, which has none in its row: of its arguments, and then of their derivatives.

    `torch.func.jvp` computes it from the template. Its name is that of `op` after ``jvp_``.
    """
    count = op.arity
    names, slots = [f"y{i}" for i in range(count)], [f"{{{i}}}" for i in range(2 * count)]
    function = f"lambda {', '.join(names)}: {op.torch.format(*names, dims='{dims}')}"
    template = f"linalg.jvp({function}, ({', '.join(slots[:count])},), ({', '.join(slots[count:])},))"
    table = {kinds * 2: kind for kinds, kind in op.result.items()}
    row = Op(
        PUSHED + op.name, 2 * count, template, None,
        rule=elementwise if op.rule is elementwise else lambda *kinds: table.get(kinds),
        flops=f"3*({op.flops})" if isinstance(op.flops, str) else 3 * op.flops,
        domain=(*op.domain, *("real",) * count),
        source=f"derivative of {op.name} by torch.func.jvp",
    )  # fmt: skip
    row.__dict__.update(result=table, needs_matrix=op.needs_matrix)  # which follow from those of `op`
    return row


def namespace() -> dict[str, Any]:
    """Names that torch templates may use. The only place where this package's tables meet `eval`."""
    import math

    import torch

    from optforge.primitives import linalg

    return {"torch": torch, "math": math, "linalg": linalg}
