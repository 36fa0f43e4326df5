"""What a row of the op table is: name, kinds, meanings, price, domain and source of one operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any

from primitives.kinds import Kind, join

S, R, C, T = Kind.SCALAR, Kind.ROW, Kind.COL, Kind.TENSOR

KindRule = Callable[..., Kind | None]


def elementwise(*kinds: Kind) -> Kind:
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


def side(kind: Kind) -> Kind | None:
    """A tensor to a number that its shape as a matrix decides."""
    return S if kind is T else None


def outer_product(a: Kind, b: Kind) -> Kind | None:
    """A row statistic times a column statistic: a tensor."""
    return T if (a, b) == (R, C) else None


def whole_tensor(kind: Kind) -> Kind | None:
    """A tensor to a tensor, mixing its elements."""
    return T if kind is T else None


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        name: how programs refer to it.
        arity: number of arguments.
        torch: template of the torch expression.
        sympy: template of the sympy expression, or None where there is no closed form per element.
        rule: kinds of the arguments to the kind of the result, or None when they do not fit.
        flops: floating-point operations per element of the widest argument.
        commutative: whether the two arguments may be swapped.
        domain: for each argument the set on which the op is finite and real (a key of `DOMAINS`).
        source: where the operation or this variant of it comes from, in one line.
        subsets: names of the sets of ops it belongs to (see `primitives.ops.subset`).
    """

    name: str
    arity: int
    torch: str
    sympy: str | None
    rule: KindRule = elementwise
    flops: float = 1.0
    commutative: bool = False
    domain: tuple[str, ...] = ()
    source: str = ""
    subsets: frozenset[str] = field(default_factory=frozenset)

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
        return self.flops * max(kind.elements(shape) for kind in (*kinds, self.result[tuple(kinds)]))

    def traffic(self, kinds: Sequence[Kind], shape: Sequence[int], itemsize: int = 4) -> int:
        """Bytes that one call on its own reads and writes: every argument once, and the result."""
        return itemsize * sum(kind.elements(shape) for kind in (*kinds, self.result[tuple(kinds)]))

    @property
    def needs_matrix(self) -> bool:
        """Whether it is only meaningful for parameters with at least two dimensions."""
        return self.rule in (row_reduction, col_reduction, fold_row_or_col, side, outer_product, whole_tensor)


def namespace() -> dict[str, Any]:
    """Names that torch templates may use. The only place where this package's tables meet `eval`."""
    import math

    import torch

    from primitives import linalg

    return {"torch": torch, "math": math, "linalg": linalg}
