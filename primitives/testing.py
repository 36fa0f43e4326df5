"""Checks that every row of the op table must pass: ours in our tests, and a plug-in's in its own.

::

    from optforge.primitives.testing import check_op

    def test_my_row():
        check_op(MY_ROW)

Each check raises `AssertionError` saying what is wrong with which column of the row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from optforge.primitives.kinds import Kind, join
from optforge.primitives.linalg import jvp
from optforge.primitives.op import Op
from optforge.primitives.ops import DOMAINS, get_op

MATRIX_SHAPES = ((3, 4), (4, 3), (1, 5), (5, 1), (2, 3, 2))
SHAPES = ((), (1,), (5,), *MATRIX_SHAPES)
POINTS = torch.tensor([0.0, 1.0, -1.0, 0.5, -0.25, 3.0, -3.0, 2.0, 1e-3, -1e-3, 0.7, -2.2], dtype=torch.float64)


def arguments(op: Op, kinds: Sequence[Kind], shape: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Random arguments from the op's domain, zeros among them where zero belongs to it."""
    generator = torch.Generator().manual_seed(seed)
    values = []
    for kind in kinds:
        own = kind.shape(shape)
        x = torch.randn(own, generator=generator, dtype=torch.float64)
        values.append(torch.where(torch.rand(own, generator=generator) < 0.05, 0.0, x))
    return [DOMAINS[where](x) for where, x in zip(op.domain, values, strict=True)]


def cases(op: Op) -> Iterator[tuple[tuple[Kind, ...], Kind, tuple[int, ...]]]:
    """Every admissible tuple of kinds, the kind of its result, and shapes to try it on."""
    for kinds, kind in op.result.items():
        for shape in MATRIX_SHAPES if op.needs_matrix else SHAPES:
            yield kinds, kind, shape


def grid(op: Op) -> list[Tensor]:
    """All combinations of the points, each brought into its argument's domain; one vector per argument."""
    columns = torch.cartesian_prod(*[POINTS] * op.arity).reshape(-1, op.arity).unbind(-1)
    return [DOMAINS[where](x) for where, x in zip(op.domain, columns, strict=True)]


def check_columns(op: Op) -> None:
    """The row is complete, and its columns fit each other."""
    assert len(op.domain) == op.arity, f"{op.name}: {op.arity} arguments but {len(op.domain)} domains"
    assert set(op.domain) <= set(DOMAINS), f"{op.name}: unknown domain in {op.domain}"
    assert isinstance(op.flops, str) or op.flops > 0, f"{op.name}: flops must be positive"
    assert op.source, f"{op.name}: source is empty; say in one line where the op comes from"
    assert op.result, f"{op.name}: its kind rule accepts no arguments at all"
    assert not op.commutative or op.arity == 2, f"{op.name}: only an op of two arguments can be commutative"
    for kinds, kind in op.result.items():
        values = sum(k.elements((3, 4)) for k in kinds) + kind.elements((3, 4))
        assert op.traffic(kinds, (3, 4)) == 4 * values
        assert op.work(kinds, (3, 4)) >= (1 if isinstance(op.flops, str) else op.flops)


def check_shapes(op: Op) -> None:
    """Results have the declared kind and the arguments' dtype, and are finite on the domain."""
    for kinds, kind, shape in cases(op):
        result = op.function(*arguments(op, kinds, shape), dims=tuple(range(len(shape))))
        expected = kind.shape(shape)
        assert result.shape == expected, f"{op.name}{kinds}: shape {tuple(result.shape)}, declared {expected}"
        assert result.isfinite().all(), f"{op.name}{kinds}: not finite on its domain, for a parameter of shape {shape}"
        for dtype in (torch.float64, torch.float32):
            given = [a.to(dtype) for a in arguments(op, kinds, shape)]
            got = op.function(*given, dims=tuple(range(len(shape)))).dtype
            assert got == dtype, f"{op.name}{kinds}: {dtype} in, {got} out"


def check_extremes(op: Op) -> None:
    """Finite on zeros and on the edges of the domain."""
    for points in ([0.0], [1.0, -1.0], [0.0, 10.0, -10.0, 1e-8, -1e-8]):
        for values in product(points, repeat=op.arity):
            for kinds in op.result:
                args = [
                    DOMAINS[where](torch.full(kind.shape((2, 3)), v, dtype=torch.float64))
                    for v, kind, where in zip(values, kinds, op.domain, strict=True)
                ]
                assert op.function(*args, dims=(0, 1)).isfinite().all(), f"{op.name}: not finite for {values}, {kinds}"


def check_elements(op: Op) -> None:
    """An elementwise op broadcasts as it says, and no element sees another, not even a not-a-number."""
    if op.reduces:
        return
    args = arguments(op, [Kind.TENSOR] * op.arity, (3, 5))
    whole = op.function(*args, dims=(0, 1))
    keep = torch.zeros(3, 5, dtype=torch.bool)
    keep[1, 2] = keep[2, 4] = True
    poisoned = op.function(*(torch.where(keep, a, torch.nan) for a in args), dims=(0, 1))
    assert torch.equal(poisoned[keep], whole[keep]), f"{op.name}: elements see each other, but its rule is elementwise"
    for kinds, kind in op.result.items():
        args, own = arguments(op, kinds, (3, 4)), kind.shape((3, 4))
        spread = op.function(*(a.expand(own).contiguous() for a in args), dims=(0, 1))
        assert kind is join(*kinds)
        torch.testing.assert_close(op.function(*args, dims=(0, 1)).expand(own), spread, rtol=1e-14, atol=1e-16)


def check_stacks(op: Op) -> None:
    """A stack of parameters gives what each gives alone: nothing reduces over more than ``{dims}``."""
    for kinds, _, shape in cases(op):
        if shape == ():
            continue  # stacks of single numbers have a dimension of size 1 for each of them
        ones = [arguments(op, kinds, shape, seed) for seed in range(6)]
        stack = [torch.stack(column).unflatten(0, (2, 3)) for column in zip(*ones, strict=True)]
        together = op.function(*stack, dims=tuple(range(2, 2 + len(shape)))).flatten(0, 1)
        for one, result in zip(ones, together, strict=True):
            alone = op.function(*one, dims=tuple(range(len(shape))))
            torch.testing.assert_close(result, alone, rtol=1e-12, atol=1e-13, msg=lambda m: f"{op.name}: stacked: {m}")


def check_commutative(op: Op) -> None:
    """The flag is true where it is set, and set where it is true."""
    if op.arity != 2:
        return
    if op.commutative:
        for kinds in op.result:
            a, b = arguments(op, kinds, (3, 4))
            same = torch.equal(op.function(a, b, dims=(0, 1)), op.function(b, a, dims=(0, 1)))
            assert same, f"{op.name}: called commutative, but its arguments cannot be swapped"
        if not op.reduces:
            a, b = grid(op)
            assert torch.equal(op.function(a, b), op.function(b, a)), f"{op.name}: called commutative, but is not"
    elif (Kind.TENSOR, Kind.TENSOR) in op.result:
        a, b = arguments(op, (Kind.TENSOR, Kind.TENSOR), (3, 4))
        same = torch.equal(op.function(a, b, dims=(0, 1)), op.function(b, a, dims=(0, 1)))
        assert not same, f"{op.name}: its arguments can be swapped; set commutative=True"


def check_formula(op: Op) -> None:
    """The sympy meaning equals the torch meaning, to twelve digits, on forty points of the domain."""
    if op.sympy is None:
        return
    import sympy

    symbols = sympy.symbols([f"a{i}" for i in range(op.arity)], real=True)
    formula = sympy.sympify(op.sympy.format(*map(str, symbols)), locals={str(s): s for s in symbols})
    points = grid(op)
    pick = torch.randperm(len(points[0]), generator=torch.Generator().manual_seed(0))[:40]
    for values in zip(*(x[pick].tolist() for x in points), strict=True):
        exact = float(formula.subs({s: sympy.Float(v, 40) for s, v in zip(symbols, values, strict=True)}).evalf(30))
        got = op.function(*(torch.tensor(v, dtype=torch.float64) for v in values)).item()
        assert abs(got - exact) <= 1e-12 * abs(exact) + 1e-14, f"{op.name}{values}: torch {got!r}, sympy {exact!r}"


class _Eager:
    """Stands in for a builder where a derivative is to be computed at once: every op is a function of tensors."""

    def __getattr__(self, name: str) -> Callable[..., Tensor]:
        function = get_op(name).function
        return lambda *args: function(*(torch.as_tensor(a, dtype=torch.float64) for a in args), dims=(0, 1))


def check_derivative(op: Op) -> None:
    """The derivative is that of `torch.func.jvp`, or the expression that stands in its place has the op's value."""
    if op.derivative is None:
        return
    for kinds in op.result:
        args = arguments(op, kinds, (3, 4), seed=1)
        moves = arguments(replace(op, domain=("real",) * op.arity), kinds, (3, 4), seed=2)
        result = op.function(*args, dims=(0, 1))
        parts = op.derivative(_Eager(), result, *args)
        if isinstance(parts, Tensor):
            torch.testing.assert_close(parts.expand_as(result), result, msg=lambda m: f"{op.name} in other words: {m}")
            continue
        assert len(parts) == op.arity, f"{op.name}: {op.arity} arguments but {len(parts)} derivatives"
        terms = [
            part(d) if callable(part) else part * d for part, d in zip(parts, moves, strict=True) if part is not None
        ]
        moved = torch.stack([term.expand_as(result) for term in terms]).sum(0) if terms else torch.zeros_like(result)
        expected = jvp(lambda *a: op.function(*a, dims=(0, 1)), args, moves)
        usable = expected.isfinite()  # not at 0 of a root
        torch.testing.assert_close(
            moved[usable], expected[usable], rtol=1e-9, atol=1e-12, msg=lambda m: f"derivative of {op.name}: {m}"
        )


CHECKS: dict[str, Callable[[Op], None]] = {
    f.__name__.removeprefix("check_"): f
    for f in (check_columns, check_shapes, check_extremes, check_elements, check_stacks, check_commutative,
              check_formula, check_derivative)
}  # fmt: skip


def check_op(op: Op) -> None:
    """All checks of this module on one row, which need not be in the table."""
    for check in CHECKS.values():
        check(op)
