"""Every row of the op table against its own columns, and its meaning against numpy and sympy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
import sympy
import torch
from strategies import MATRIX_SHAPES, SHAPES, assert_same, random_tensor
from torch import Tensor

from primitives import OPS, Instr, Kind, Op, Program, ProgramError, execute, subset
from primitives.interpret import slot_shape
from primitives.ops import DOMAINS, register

ELEMENTWISE = [name for name, op in OPS.items() if not op.reduces]
REDUCING = [name for name, op in OPS.items() if op.reduces]
COMMUTATIVE = [name for name, op in OPS.items() if op.commutative]
WITH_FORMULA = [name for name, op in OPS.items() if op.sympy is not None]
WITHOUT_FORMULA = [name for name, op in OPS.items() if op.sympy is None]

POINTS = torch.tensor([0.0, 1.0, -1.0, 0.5, -0.25, 3.0, -3.0, 2.0, 1e-3, -1e-3, 0.7, -2.2], dtype=torch.float64)


def arguments(op: Op, kinds: Sequence[Kind], shape: Sequence[int], seed: int = 0) -> list[Tensor]:
    """Random arguments from the op's domain, zeros among them where zero belongs to it."""
    generator = torch.Generator().manual_seed(seed)
    values = [random_tensor(slot_shape(kind, shape), generator) for kind in kinds]
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


@pytest.mark.parametrize("name", OPS)
def test_row_is_complete(name: str) -> None:
    op = OPS[name]
    assert op.name == name
    assert len(op.domain) == op.arity
    assert set(op.domain) <= set(DOMAINS)
    assert op.flops > 0
    assert op.source
    assert op.result, "accepts no arguments at all"
    assert not op.commutative or op.arity == 2


@pytest.mark.parametrize("name", OPS)
def test_result_has_the_declared_shape_and_is_finite(name: str) -> None:
    op = OPS[name]
    for kinds, kind, shape in cases(op):
        result = op.function(*arguments(op, kinds, shape), dims=tuple(range(len(shape))))
        assert result.shape == slot_shape(kind, shape), (kinds, shape)
        assert result.dtype == torch.float64
        assert result.isfinite().all(), (kinds, shape)


@pytest.mark.parametrize("name", OPS)
def test_finite_on_zeros_and_extremes_of_the_domain(name: str) -> None:
    op = OPS[name]
    for points in ([0.0], [1.0, -1.0], [0.0, 10.0, -10.0, 1e-8, -1e-8]):
        for values in product(points, repeat=op.arity):
            for kinds in op.result:
                args = [
                    DOMAINS[where](torch.full(slot_shape(kind, (2, 3)), v, dtype=torch.float64))
                    for v, kind, where in zip(values, kinds, op.domain, strict=True)
                ]
                assert op.function(*args, dims=(0, 1)).isfinite().all(), (values, kinds)


MEMBERSHIP: dict[str, Callable[[Tensor], Tensor]] = {
    "real": torch.isfinite,
    "nonzero": lambda x: x != 0,
    "nonnegative": lambda x: x >= 0,
    "positive": lambda x: x > 0,
    "unit_ball": lambda x: x.abs() < 1,
    "at_least_one": lambda x: x >= 1,
    "above_minus_one": lambda x: x > -1,
}


@pytest.mark.parametrize("name", DOMAINS)
def test_domains_map_into_the_set_they_are_called_after(name: str) -> None:
    x = torch.cat([torch.linspace(-50, 50, 1001, dtype=torch.float64), torch.zeros(1), torch.tensor([1e-300, -1e-300])])
    assert MEMBERSHIP[name](DOMAINS[name](x)).all()
    assert torch.unique(DOMAINS[name](POINTS)).numel() >= 6, "most of the set is never tried"


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_ops_do_not_mix_elements(name: str) -> None:
    """What stands in the other elements makes no difference, not even a not-a-number."""
    op = OPS[name]
    args = arguments(op, [Kind.TENSOR] * op.arity, (3, 5))
    whole = op.function(*args, dims=(0, 1))
    keep = torch.zeros(3, 5, dtype=torch.bool)
    keep[1, 2] = keep[2, 4] = True
    poisoned = [torch.where(keep, a, torch.nan) for a in args]
    assert_same(op.function(*poisoned, dims=(0, 1))[keep], whole[keep])
    single = op.function(*(a[1, 2] for a in args), dims=())
    torch.testing.assert_close(single, whole[1, 2], rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_ops_broadcast(name: str) -> None:
    op = OPS[name]
    for kinds, kind in op.result.items():
        args = arguments(op, kinds, (3, 4))
        spread = [a.expand(3, 4).contiguous() for a in args]
        result = op.function(*args, dims=(0, 1))
        assert kind == max(np.bitwise_or.reduce([int(k) for k in kinds]), 0)
        torch.testing.assert_close(result.expand(3, 4), op.function(*spread, dims=(0, 1)), rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("name", REDUCING)
def test_stack_of_parameters_agrees_with_one_at_a_time(name: str) -> None:
    op = OPS[name]
    for kinds, _, shape in cases(op):
        if shape == ():
            continue  # see test_stack_of_numbers_needs_a_dimension
        ones = [arguments(op, kinds, shape, seed) for seed in range(6)]
        stack = [torch.stack(column).unflatten(0, (2, 3)) for column in zip(*ones, strict=True)]
        together = op.function(*stack, dims=tuple(range(2, 2 + len(shape)))).flatten(0, 1)
        for one, result in zip(ones, together, strict=True):
            alone = op.function(*one, dims=tuple(range(len(shape))))
            torch.testing.assert_close(result, alone, rtol=1e-12, atol=1e-13)


def test_stack_of_numbers_needs_a_dimension() -> None:
    """Torch reduces over everything when told to reduce over nothing, so this must not reach it."""
    program = Program((), (), (Instr("norm", ("g",)), Instr("mul", (0, "g"))), 1, ())
    stack = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="one dimension of size 1"):
        execute(program, {"g": stack}, dims=())
    assert_same(execute(program, {"g": stack[:, None]}, dims=(1,)).update[:, 0], stack**2)
    assert_same(execute(program, {"g": stack[2]}).update, torch.tensor(9.0))


@pytest.mark.parametrize("name", COMMUTATIVE)
def test_commutative_flags_are_true(name: str) -> None:
    op = OPS[name]
    for kinds in op.result:
        a, b = arguments(op, kinds, (3, 4))
        assert_same(op.function(a, b, dims=(0, 1)), op.function(b, a, dims=(0, 1)))
    if not op.reduces:
        a, b = grid(op)
        assert_same(op.function(a, b), op.function(b, a))


def test_no_commutative_flag_is_missing() -> None:
    """Two-argument ops that are not marked give something else when swapped."""
    for name, op in OPS.items():
        if op.arity == 2 and not op.commutative and (Kind.TENSOR, Kind.TENSOR) in op.result:
            a, b = arguments(op, (Kind.TENSOR, Kind.TENSOR), (3, 4))
            assert not torch.equal(op.function(a, b, dims=(0, 1)), op.function(b, a, dims=(0, 1))), name


NUMPY: dict[str, Callable[..., Any]] = {
    # Lion's space took its names from numpy, so most rows are their own reference
    **{n: getattr(np, n) for n in (
        "abs", "sign", "square", "sqrt", "cbrt", "reciprocal", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p",
        "sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh",
    )},
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum,
    "pow": np.power, "neg": np.negative, "cube": lambda x: x**3, "exp10": lambda x: 10.0**x, "invert": lambda x: 1 - x,
    "lerp": lambda x, y, c: (1 - c) * x + c * y,
    "clip": lambda x, c: np.clip(x, -c, c),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "agree": lambda x, y: (np.sign(x) == np.sign(y)) * (x != 0.0) * 1.0,
    "less": lambda x, y: np.where(x < y, 1.0, 0.0),
    "safe_div": lambda x, y: np.where(y == 0, 0.0, x / np.where(y == 0, 1.0, y)),
    "sqrt_abs": lambda x: np.abs(x) ** 0.5,
    "log_abs": lambda x: np.log(np.abs(x) + 1e-12),
    "exp_clip": lambda x: np.exp(np.clip(x, -30, 30)),
    "pow_abs": lambda x, y: (np.abs(x) + 1e-12) ** y,
    # over dimensions; a parameter of shape (n, *rest) is a matrix of n rows
    "norm": lambda x: np.linalg.norm(x.ravel()),
    "dot": lambda x, y: x.ravel() @ y.ravel(),
    "cosine": lambda x, y: x.ravel() @ y.ravel() / np.linalg.norm(x.ravel()) / np.linalg.norm(y.ravel()),
    "mean": lambda x: np.sum(x) / x.size,
    "rms": lambda x: np.linalg.norm(x.ravel()) / np.sqrt(x.size),
    "row_mean": lambda x: np.array([np.average(row) for row in x]).reshape(-1, *[1] * (x.ndim - 1)),
    "col_mean": lambda x: sum(x)[None] / len(x),
    "row_norm": lambda x: np.array([np.linalg.norm(row.ravel()) for row in x]).reshape(-1, *[1] * (x.ndim - 1)),
    "col_norm": lambda x: sum(row * row for row in x)[None] ** 0.5,
    "mean_of": lambda x: np.average(x),
    "outer": lambda r, c: np.multiply.outer(r.ravel(), c[0]),
    "centralise": lambda x: np.stack([row - np.average(row) for row in x]),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMPY)
def test_meaning_agrees_with_numpy(name: str) -> None:
    op = OPS[name]
    for kinds, kind, shape in cases(op):
        args = arguments(op, kinds, shape, seed=len(shape))
        result = op.function(*args, dims=tuple(range(len(shape)))).numpy()
        expected = np.asarray(NUMPY[name](*(a.numpy() for a in args)))
        expected = np.broadcast_to(expected.reshape(expected.shape or (1,) * len(shape)), slot_shape(kind, shape))
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-13)


def test_ops_without_formula_have_another_reference() -> None:
    assert set(WITHOUT_FORMULA) - set(NUMPY) == {"orthogonalise"}


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (4, 2, 3)])
def test_orthogonalise_keeps_singular_vectors_and_equalises_singular_values(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = OPS["orthogonalise"].function(1e3 * x, dims=tuple(range(len(shape)))).reshape(shape[0], -1)
    u, _, vt = torch.linalg.svd(x.reshape(shape[0], -1), full_matrices=False)
    core = u.mT @ result @ vt.mT
    values = core.diagonal()
    torch.testing.assert_close(core, torch.diag(values), rtol=0, atol=1e-9)
    assert ((values > 0.6) & (values < 1.25)).all()  # the band of Jordan et al. 2024


@pytest.mark.parametrize("name", WITH_FORMULA)
def test_formula_agrees_with_torch(name: str) -> None:
    op = OPS[name]
    symbols = sympy.symbols([f"a{i}" for i in range(op.arity)], real=True)
    assert op.sympy is not None
    formula = sympy.sympify(op.sympy.format(*map(str, symbols)), locals={str(s): s for s in symbols})
    points = grid(op)
    pick = torch.randperm(len(points[0]), generator=torch.Generator().manual_seed(0))[:40]
    for values in zip(*(x[pick].tolist() for x in points), strict=True):
        exact = formula.subs({s: sympy.Float(v, 40) for s, v in zip(symbols, values, strict=True)}).evalf(30)
        got = op.function(*(torch.tensor(v, dtype=torch.float64) for v in values))
        assert got.item() == pytest.approx(float(exact), rel=1e-12, abs=1e-14), values


@pytest.mark.parametrize("name", OPS)
def test_single_precision_stays_single(name: str) -> None:
    op = OPS[name]
    for kinds in op.result:
        args = [a.float() for a in arguments(op, kinds, (3, 4))]
        assert op.function(*args, dims=(0, 1)).dtype == torch.float32


def test_raw_operations_keep_their_ieee_meaning() -> None:
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    assert OPS["div"].function(one, zero).item() == float("inf")
    assert OPS["sqrt"].function(-one).isnan()
    assert OPS["log"].function(zero).item() == float("-inf")
    assert OPS["sign"].function(zero).item() == 0
    assert OPS["safe_div"].function(one, zero).item() == 0


def test_known_values_that_released_code_got_wrong() -> None:
    x = torch.tensor([27.0, -8.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(OPS["cbrt"].function(x), torch.tensor([3.0, -2.0, 0.0], dtype=torch.float64))
    assert OPS["invert"].function(x).tolist() == [-26.0, 9.0, 1.0]


def test_flags_follow_from_the_kind_rules() -> None:
    assert {n for n in OPS if OPS[n].reduces} == set(NUMPY) & set(WITHOUT_FORMULA) | {"orthogonalise"}
    assert not OPS["norm"].needs_matrix
    assert OPS["outer"].needs_matrix
    assert (Kind.ROW,) not in OPS["norm"].result
    assert (Kind.TENSOR,) not in OPS["mean_of"].result


def test_subsets() -> None:
    assert subset("all") == tuple(OPS)
    assert set(subset("elementwise")) == set(ELEMENTWISE)
    assert subset("sign", "add") == ("add", "sign"), "table order"
    assert {"norm", "lerp", "cosh"} <= set(subset("lion45"))
    assert not set(subset("protected")) & set(subset("lion45"))
    with pytest.raises(ProgramError, match=r"'lion46'.*lion45"):
        subset("lion46")


def test_a_row_from_elsewhere_is_an_op_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Op(
        "hypotenuse", 2, "torch.hypot({0}, {1})", None, domain=("real", "real"), commutative=True, source="Pythagoras"
    )
    register([row])
    try:
        program = Program((), (), (Instr("hypotenuse", ("g", "p")),), 0, ())
        inputs = {"g": torch.tensor([3.0]), "p": torch.tensor([4.0])}
        assert execute(program, inputs).update.tolist() == [5.0]
        with pytest.raises(ProgramError, match="'hypotenuse' is already in the table"):
            register([row])
    finally:
        del OPS["hypotenuse"]
