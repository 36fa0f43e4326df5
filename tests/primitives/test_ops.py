"""Every row of the op table against its own columns, and its meaning against numpy and sympy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.strategies import assert_same
from torch import Tensor

from optforge.primitives import OPS, SIGNALS, Const, Instr, Kind, Op, Program, ProgramError, execute, subset
from optforge.primitives.lion45 import LION45
from optforge.primitives.op import elementwise, reduction
from optforge.primitives.ops import DOMAINS, register, subset_names
from optforge.primitives.testing import CHECKS, POINTS, arguments, cases, check_op

ELEMENTWISE = [name for name, op in OPS.items() if not op.reduces]
WITHOUT_FORMULA = [name for name, op in OPS.items() if op.sympy is None]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", OPS)
def test_row(name: str, check: str) -> None:
    assert OPS[name].name == name
    CHECKS[check](OPS[name])


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


def test_stack_of_numbers_needs_a_dimension() -> None:
    """Torch reduces over everything when told to reduce over nothing, so this must not reach it."""
    program = Program((), (), (Instr("norm", ("g",)), Instr("mul", (0, "g"))), 1, ())
    stack = torch.tensor([1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="one dimension of size 1"):
        execute(program, {"g": stack}, dims=())
    assert_same(execute(program, {"g": stack[:, None]}, dims=(1,)).update[:, 0], stack**2)
    assert_same(execute(program, {"g": stack[2]}).update, torch.tensor(9.0))


def means_of_blocks(x: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """Entry i of n is in block ⌊i · count / n⌋."""
    values, n = x.ravel().tolist(), x.size
    count = min(count, n)
    blocks = [[j for j in range(n) if j * count // n == i * count // n] for i in range(n)]
    return np.array([sum(values[j] for j in block) / len(block) for block in blocks]).reshape(x.shape)


def flat(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x.reshape(len(x), -1)


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
    "clip_norm": lambda x, n, c: np.where(n > c, x * c / np.where(n > c, n, 1.0), x),
    "clamp": lambda x, low, high: np.minimum(np.maximum(x, low), high),
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
    "block_mean": lambda x, count: means_of_blocks(x, round(float(count.ravel()[0]))),
    "rows": len,
    "cols": lambda x: x.size / len(x),
    "outer": lambda r, c: np.multiply.outer(r.ravel(), c[0]),
    "centralise": lambda x: np.stack([row - np.average(row) for row in x]),
    # of whole matrices: the first dimension by all others
    "row_gram": lambda x: np.einsum("ik,jk->ij", flat(x), flat(x)),
    "col_gram": lambda x: np.einsum("ki,kj->ij", flat(x), flat(x)),
    "matmul": lambda x, y: np.einsum("ik,kj->ij", flat(x), flat(y)),
    "left_t": lambda x, y: np.einsum("ki,kj->ij", flat(x), flat(y)),
    "right_t": lambda x, y: np.einsum("ik,jk->ij", flat(x), flat(y)),
    "trace": lambda x: np.einsum("ii->", flat(x)),
    "row_diagonal": lambda x: np.einsum("ii->i", flat(x)),
    "col_diagonal": lambda x: np.einsum("ii->i", flat(x)),
    "identity": lambda x: np.eye(len(x)),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMPY)
def test_meaning_agrees_with_numpy(name: str) -> None:
    op = OPS[name]
    for kinds, kind, shape in cases(op):
        args = arguments(op, kinds, shape, seed=len(shape))
        result = op.function(*args, dims=tuple(range(len(shape)))).numpy()
        expected = np.asarray(NUMPY[name](*(a.numpy() for a in args)))
        own = kind.shape(shape)
        if expected.size == kind.elements(shape):
            expected = expected.reshape(own)
        expected = np.broadcast_to(expected.reshape(expected.shape or (1,) * len(shape)), own)
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-13)


# which have tests of their own, here and in test_squares
OF_SINGULAR_VALUES = {"orthogonalise", "quintic", "basis", *(name for name in OPS if name.startswith("inverse_root"))}


def test_ops_without_formula_have_another_reference() -> None:
    assert set(WITHOUT_FORMULA) - set(NUMPY) == OF_SINGULAR_VALUES


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (4, 2, 3)])
def test_orthogonalise_keeps_singular_vectors_and_equalises_singular_values(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = OPS["orthogonalise"].function(1e3 * x, dims=tuple(range(len(shape)))).reshape(shape[0], -1)
    u, _, vt = torch.linalg.svd(x.reshape(shape[0], -1), full_matrices=False)
    core = u.mT @ result @ vt.mT
    values = core.diagonal()
    torch.testing.assert_close(core, torch.diag(values), rtol=0, atol=1e-9)
    assert ((values > 0.6) & (values < 1.25)).all()  # the band of Jordan et al. 2024


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (4, 2, 3)])
def test_quintic_is_the_polynomial_of_each_singular_value(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    a, b, c = (torch.tensor(v, dtype=torch.float64) for v in (0.7, -1.3, 0.4))
    result = OPS["quintic"].function(x, a, b, c, dims=tuple(range(len(shape))))
    u, s, vt = torch.linalg.svd(x.reshape(shape[0], -1), full_matrices=False)
    expected = u @ torch.diag(a * s + b * s**3 + c * s**5) @ vt
    torch.testing.assert_close(result, expected.reshape(shape), rtol=1e-11, atol=1e-11)


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
    assert {n for n in OPS if OPS[n].reduces} == set(NUMPY) & set(WITHOUT_FORMULA) | OF_SINGULAR_VALUES
    assert not OPS["norm"].needs_matrix
    assert OPS["outer"].needs_matrix
    assert (Kind.ROW,) not in OPS["norm"].result
    assert (Kind.TENSOR,) not in OPS["mean_of"].result


# Chen et al. 2023, appendix H.
LION_FUNCTIONS = (
    "pi", "e", "eps", "abs", "cos", "sin", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "arcsinh",
    "arccosh", "arctanh", "exp", "exp2", "exp10", "expm1", "log", "log10", "log2", "log1p", "square", "sqrt", "cube",
    "cbrt", "sign", "reciprocal", "norm", "invert", "negative", "global_norm", "interpolate", "dot",
    "cosine_similarity", "clip_by_global_norm", "power", "plus", "minus", "times", "divide", "maximum", "minimum",
)  # fmt: skip


def test_the_list_of_lions_45_functions_is_complete() -> None:
    assert sorted(LION45) == sorted(LION_FUNCTIONS)
    assert len(LION45) == 45
    for name, found in LION45.items():
        if isinstance(found, Const):
            assert name in ("pi", "e", "eps")
        elif name == "global_norm":
            assert SIGNALS[found] is Kind.SCALAR
        else:
            assert "lion45" in OPS[found].subsets, name
    assert LION45["pi"] == Const(np.pi) and LION45["e"] == Const(np.e)
    named = {found for found in LION45.values() if found in OPS}
    assert set(subset("lion45")) == named | {"clip"}, "and what the published program uses besides"


def test_clipping_by_the_global_norm() -> None:
    program = Program((), (), (Instr("clip_norm", ("g", "global_norm", Const(1.0))),), 0, ())
    g = torch.tensor([3.0, -4.0], dtype=torch.float64)
    for norm, expected in ((10.0, g / 10), (1.0, g), (0.5, g), (0.0, g)):
        inputs = {"g": g, "global_norm": torch.tensor(norm, dtype=torch.float64)}
        torch.testing.assert_close(execute(program, inputs).update, expected, rtol=1e-15, atol=0)


def test_work_and_traffic_follow_from_the_kinds() -> None:
    shape, tensors = (3, 4, 5), (Kind.TENSOR, Kind.TENSOR)
    assert OPS["add"].traffic(tensors, shape) == 4 * 3 * 60
    assert OPS["add"].traffic((Kind.TENSOR, Kind.SCALAR), shape, itemsize=2) == 2 * 121
    assert OPS["outer"].traffic((Kind.ROW, Kind.COL), shape) == 4 * (3 + 20 + 60)
    assert OPS["outer"].work((Kind.ROW, Kind.COL), shape) == 60
    assert OPS["dot"].work(tensors, shape) == 120
    assert OPS["norm"].traffic((Kind.TENSOR,), ()) == 8


def test_subsets() -> None:
    assert subset("all") == tuple(OPS)
    assert set(subset("elementwise")) == set(ELEMENTWISE)
    assert subset("sign", "add") == ("add", "sign"), "table order"
    assert {"norm", "lerp", "cosh"} <= set(subset("lion45"))
    assert not set(subset("protected")) & set(subset("lion45"))
    assert subset("bounds") == ("clamp",)
    with pytest.raises(ProgramError, match=r"'lion46'.*lion45"):
        subset("lion46")


def test_every_subset_is_documented() -> None:
    for name in subset_names():
        assert f"\n    {name} " in str(subset.__doc__), name
    assert {"elementwise", "all"} | {s for op in OPS.values() for s in op.subsets} == subset_names()


HYPOTENUSE = Op(
    "hypotenuse", 2, "torch.hypot({0}, {1})", "sqrt({0}**2 + {1}**2)", domain=("real", "real"), commutative=True,
    source="Pythagoras",
)  # fmt: skip


def test_a_row_from_elsewhere_is_an_op_like_any_other() -> None:
    row = HYPOTENUSE
    check_op(row)
    register([row])
    try:
        program = Program((), (), (Instr("hypotenuse", ("g", "p")),), 0, ())
        inputs = {"g": torch.tensor([3.0]), "p": torch.tensor([4.0])}
        assert execute(program, inputs).update.tolist() == [5.0]
        with pytest.raises(ProgramError, match="'hypotenuse' is already in the table"):
            register([row])
    finally:
        del OPS["hypotenuse"]


WRONG_ROWS = {
    # check: (what is wrong with the row, what the check says)
    "columns": ({"source": ""}, "source is empty"),
    "shapes": ({"torch": "({0} * {1}).double()"}, "float32 in, torch.float64 out"),
    "extremes": ({"torch": "torch.hypot({0}, {1}) / (torch.abs({0}) - 1)"}, "not finite for"),
    "elements": ({"torch": "{0} + {1} - torch.mean({0})"}, "elements see each other"),
    "stacks": ({"torch": "torch.sum({0} * {1}).reshape([1] * {0}.ndim)", "rule": reduction}, "stacked|Tensor-likes"),
    "commutative": ({"torch": "{0} - {1}", "commutative": True}, "called commutative, but"),
    "derivative": ({"derivative": lambda b, r, x, y: (x / r, x / r)}, "derivative of hypotenuse: Tensor-likes"),
    "formula": ({"sympy": "{0} + {1}"}, "hypotenuse.*torch .*sympy"),
}


@pytest.mark.parametrize("check", WRONG_ROWS)
def test_the_checks_find_what_is_wrong(check: str) -> None:
    change, message = WRONG_ROWS[check]
    with pytest.raises((AssertionError, IndexError, RuntimeError), match=message):
        CHECKS[check](dataclasses.replace(HYPOTENUSE, **change))
    with pytest.raises((AssertionError, RuntimeError)):
        check_op(dataclasses.replace(HYPOTENUSE, **change))


MALFORMED_ROWS = {
    "capitals": {"name": "Hypotenuse"},
    "newline": {"name": "hyp\n"},
    "code": {"name": "hyp();import os"},
    "a builder's attribute": {"name": "slot"},
    "a signal": {"name": "g"},
    "no arguments": {"arity": 0, "domain": ()},
    "too many arguments": {"arity": 5, "domain": ("real",) * 5},
    "domains": {"domain": ("real",)},
    "unknown domain": {"domain": ("real", "imaginary")},
    "flops": {"flops": 0.0},
    "source": {"source": ""},
    "syntax": {"torch": "torch.hypot({0}, {1}"},
    "template": {"torch": "torch.hypot({0}, {7})"},
    "kinds": {"rule": lambda *_: None},
}


@pytest.mark.parametrize("name", MALFORMED_ROWS)
def test_malformed_rows_are_refused(name: str) -> None:
    with pytest.raises(ProgramError, match=r"op name|^op 'hypotenuse' "):
        register([dataclasses.replace(HYPOTENUSE, **MALFORMED_ROWS[name])])  # type: ignore[arg-type]
    assert "hypotenuse" not in OPS


def test_register_is_all_or_nothing() -> None:
    for second in (HYPOTENUSE, OPS["add"], "add"):
        with pytest.raises(ProgramError, match=r"already in the table|expected an Op"):
            register([HYPOTENUSE, second])  # type: ignore[list-item]
        assert "hypotenuse" not in OPS
    assert HYPOTENUSE.rule is elementwise
