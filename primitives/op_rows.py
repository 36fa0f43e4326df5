"""Rows of the op table: one row per operation, one column per meaning.

The torch meaning is a template. The interpreter turns it into a function, the code generator pastes it into source, so
the two cannot drift apart. `{0}`, `{1}`, … are the arguments and `{dims}` the parameter's dimensions, over which
reductions run with ``keepdim=True``: the same template thus serves one parameter and a stack of them. Ops keep their
raw IEEE meaning (a division by zero is infinite); protected variants are rows of their own.

Precision: what is one number for all parameters (hyperparameters, bias corrections) is computed in float64 and rounded
to the parameter's dtype where it meets a tensor, so all arguments of one call share a dtype.

The table itself, and how rows from elsewhere join it, is in `primitives.ops`.
"""

from __future__ import annotations

import math
from typing import Any

from optforge.primitives.op import (
    LEFT,
    RIGHT,
    C,
    Derivative,
    Op,
    R,
    T,
    blocks_of,
    col_reduction,
    elementwise,
    fold_row_or_col,
    of_square,
    outer_product,
    product_of,
    reduction,
    row_reduction,
    side,
    signature,
    square_to_scalar,
    two_squares,
    whole_tensor,
)

_SUM = "torch.sum({}, dim={{dims}}, keepdim=True)"
_COUNT = "torch.amax(torch.sum(torch.ones_like({{0}}), dim={{dims}}[{}], keepdim=True), dim={{dims}}, keepdim=True)"
_LION = frozenset({"lion45"})
_PROTECTED = frozenset({"protected"})
_MATRIX = frozenset({"matrix"})
_LAZY = frozenset({"lazy"})
_SQUARES = frozenset({"preconditioners"})
_QUINTIC = "4*min(r, k)*r*k + 2*min(r, k)**3"
_CHEN = "Chen et al. 2023, appendix H"  # Symbolic Discovery of Optimization Algorithms, arXiv:2302.06675


def _unary(
    name: str, sympy: str, torch: str = "", flops: float = 1, domain: str = "real", *, derivative: Derivative
) -> Op:
    torch = torch or f"torch.{name}({{0}})"
    return Op(name, 1, torch, sympy, elementwise, flops, False, (domain,), _CHEN, _LION, derivative)


def _binary(
    name: str, torch: str, sympy: str, commutative: bool = False, domain: str = "real", *, derivative: Derivative
) -> Op:
    return Op(name, 2, torch, sympy, elementwise, 1, commutative, ("real", domain), _CHEN, _LION, derivative)


def _above(b: Any, x: Any, y: Any) -> Any:
    """1 where x > y, ½ at ties, else 0."""
    return (1.0 + b.less(y, x) - b.less(x, y)) * 0.5


def _inverse_root(p: int) -> Op:
    products = 2 + p.bit_length() - 1  # a power of the step, which then changes two matrices
    return Op(
        f"inverse_root{p}", 2, f"linalg.inverse_root({{0}}, {{1}}, {p}, {{dims}})", None, of_square,
        f"{30 * products}*2*r**3", False, ("real", "nonnegative"),
        f"(x + y |x|)^(-1/{p}) of a positive semidefinite matrix by 30 coupled Newton steps; Anil et al. 2020,"
        " arXiv:2002.09018, Shampoo", _SQUARES,
    )  # fmt: skip


ROWS: tuple[Op, ...] = (
    # arithmetic
    _binary("add", "{0} + {1}", "{0} + {1}", True, derivative=lambda b, r, x, y: (1.0, 1.0)),
    _binary("sub", "{0} - {1}", "{0} - {1}", derivative=lambda b, r, x, y: (1.0, -1.0)),
    _binary("mul", "{0} * {1}", "{0} * {1}", True, derivative=lambda b, r, x, y: (y, x)),
    _binary("div", "{0} / {1}", "{0} / {1}", domain="nonzero", derivative=lambda b, r, x, y: (1.0 / y, -(r / y))),
    _binary("max", "torch.maximum({0}, {1})", "Max({0}, {1})", True,
            derivative=lambda b, r, x, y: (_above(b, x, y), _above(b, y, x))),
    _binary("min", "torch.minimum({0}, {1})", "Min({0}, {1})", True,
            derivative=lambda b, r, x, y: (_above(b, y, x), _above(b, x, y))),
    Op("pow", 2, "torch.pow({0}, {1})", "Pow({0}, {1})", flops=20, domain=("positive", "real"), source=_CHEN,
       subsets=_LION, derivative=lambda b, r, x, y: (y * b.pow(x, y - 1.0), r * b.log(x))),
    Op("lerp", 3, "torch.lerp({0}, {1}, {2})", "(1 - {2})*{0} + {2}*{1}", flops=3, domain=("real",) * 3,
       source="linear interpolation (1 - c) x + c y; " + _CHEN, subsets=_LION,
       derivative=lambda b, r, x, y, c: (1.0 - c, c, y - x)),
    # unary
    _unary("neg", "-{0}", "-{0}", derivative=lambda b, r, x: (-1.0,)),
    _unary("abs", "Abs({0})", derivative=lambda b, r, x: (b.sign(x),)),
    _unary("sign", "sign({0})", derivative=lambda b, r, x: (None,)),
    _unary("square", "{0}**2", derivative=lambda b, r, x: (2.0 * x,)),
    _unary("sqrt", "sqrt({0})", flops=4, domain="nonnegative", derivative=lambda b, r, x: (b.safe_div(0.5, r),)),
    _unary("cube", "{0}**3", "{0} * {0} * {0}", flops=2, derivative=lambda b, r, x: (3.0 * b.square(x),)),
    # the released code returned the function itself instead of a root; this is the real cube root
    _unary("cbrt", "sign({0})*Abs({0})**Rational(1, 3)", "torch.sign({0}) * torch.abs({0}).pow(1 / 3)", flops=22,
           derivative=lambda b, r, x: (b.safe_div(r, 3.0 * x),)),
    _unary("reciprocal", "1/{0}", flops=4, domain="nonzero", derivative=lambda b, r, x: (-b.square(r),)),
    # the released code inverted bits; the paper's text means one minus
    _unary("invert", "1 - {0}", "1 - {0}", derivative=lambda b, r, x: (-1.0,)),
    _unary("exp", "exp({0})", flops=10, derivative=lambda b, r, x: (r,)),
    _unary("exp2", "2**{0}", flops=10, derivative=lambda b, r, x: (math.log(2) * r,)),
    _unary("exp10", "10**{0}", "torch.pow(10.0, {0})", flops=20, derivative=lambda b, r, x: (math.log(10) * r,)),
    _unary("expm1", "exp({0}) - 1", flops=10, derivative=lambda b, r, x: (b.exp(x),)),
    _unary("log", "log({0})", flops=10, domain="positive", derivative=lambda b, r, x: (1.0 / x,)),
    _unary("log2", "log({0})/log(2)", flops=10, domain="positive",
           derivative=lambda b, r, x: (1.0 / (math.log(2) * x),)),
    _unary("log10", "log({0})/log(10)", flops=10, domain="positive",
           derivative=lambda b, r, x: (1.0 / (math.log(10) * x),)),
    _unary("log1p", "log(1 + {0})", flops=10, domain="above_minus_one", derivative=lambda b, r, x: (1.0 / (1.0 + x),)),
    _unary("sin", "sin({0})", flops=10, derivative=lambda b, r, x: (b.cos(x),)),
    _unary("cos", "cos({0})", flops=10, derivative=lambda b, r, x: (-b.sin(x),)),
    _unary("tan", "tan({0})", flops=20, derivative=lambda b, r, x: (1.0 + b.square(r),)),
    _unary("arcsin", "asin({0})", flops=20, domain="unit_ball",
           derivative=lambda b, r, x: (1.0 / b.sqrt(1.0 - b.square(x)),)),
    _unary("arccos", "acos({0})", flops=20, domain="unit_ball",
           derivative=lambda b, r, x: (-1.0 / b.sqrt(1.0 - b.square(x)),)),
    _unary("arctan", "atan({0})", flops=20, derivative=lambda b, r, x: (1.0 / (1.0 + b.square(x)),)),
    _unary("sinh", "sinh({0})", flops=20, derivative=lambda b, r, x: (b.cosh(x),)),
    _unary("cosh", "cosh({0})", flops=20, derivative=lambda b, r, x: (b.sinh(x),)),
    _unary("tanh", "tanh({0})", flops=20, derivative=lambda b, r, x: (1.0 - b.square(r),)),
    _unary("arcsinh", "asinh({0})", flops=20, derivative=lambda b, r, x: (1.0 / b.sqrt(1.0 + b.square(x)),)),
    _unary("arccosh", "acosh({0})", flops=20, domain="at_least_one",
           derivative=lambda b, r, x: (1.0 / b.sqrt(b.square(x) - 1.0),)),
    _unary("arctanh", "atanh({0})", flops=20, domain="unit_ball",
           derivative=lambda b, r, x: (1.0 / (1.0 - b.square(x)),)),
    # over the whole parameter
    Op("norm", 1, "torch.sqrt(" + _SUM.format("torch.square({0})") + ")", None, reduction, 2, False, ("real",),
       "Euclidean norm of the parameter-shaped argument; " + _CHEN, _LION,
       derivative=lambda b, r, x: b.sqrt(b.dot(x, x))),
    Op("dot", 2, _SUM.format("{0} * {1}"), None, reduction, 2, True, ("real", "real"), _CHEN, _LION,
       derivative=lambda b, r, x, y: (lambda d: b.dot(d, y), lambda d: b.dot(x, d))),
    Op("cosine", 2, f"{_SUM.format('{0} * {1}')} / torch.sqrt({_SUM.format('torch.square({0})')}"
       f" * {_SUM.format('torch.square({1})')})", None, reduction, 6, True, ("nonzero", "nonzero"),
       "cosine similarity; " + _CHEN, _LION,
       derivative=lambda b, r, x, y: b.dot(x, y) / b.sqrt(b.dot(x, x) * b.dot(y, y))),
    Op("mean", 1, "torch.mean({0}, dim={dims}, keepdim=True)", None, reduction, 1, False, ("real",),
       "arithmetic mean of the elements", frozenset({"statistics"}), derivative=lambda b, r, x: (b.mean,)),
    Op("rms", 1, "torch.sqrt(torch.mean(torch.square({0}), dim={dims}, keepdim=True))", None, reduction, 2, False,
       ("real",), "root mean square, RMS(x) of Shazeer & Stern 2018", frozenset({"statistics"}),
       derivative=lambda b, r, x: b.sqrt(b.mean(b.square(x)))),
    # beyond Lion's space, elementwise
    Op("clip", 2, "torch.maximum(torch.minimum({0}, {1}), -{1})", "Max(Min({0}, {1}), -{1})", flops=2,
       domain=("real", "positive"), source="to [-c, c]; " + _CHEN, subsets=_LION,
       derivative=lambda b, r, x, c: b.max(b.min(x, c), -c)),
    Op("clip_norm", 3, "{0} * ({2} / torch.maximum({1}, {2}))", "{0}*({2}/Max({1}, {2}))", flops=3,
       domain=("real", "nonnegative", "positive"), source="x min(1, c / n) for a norm n, as"
       " global_norm; " + _CHEN, subsets=_LION, derivative=lambda b, r, x, n, c: x * (c / b.max(n, c))),
    Op("clamp", 3, "torch.minimum(torch.maximum({0}, {1}), {2})", "Min(Max({0}, {1}), {2})", flops=2,
       domain=("real",) * 3, source="to [low, high]; high where low > high, as torch.clamp does",
       subsets=frozenset({"bounds"}), derivative=lambda b, r, x, low, high: b.min(b.max(x, low), high)),
    Op("softsign", 1, "{0} / (1 + torch.abs({0}))", "{0}/(1 + Abs({0}))", flops=6, domain=("real",),
       source="x / (1 + |x|)", subsets=frozenset({"smooth"}), derivative=lambda b, r, x: x / (1.0 + b.abs(x))),
    Op("agree", 2, "torch.gt({0} * {1}, 0).to(({0} * {1}).dtype)", "Heaviside({0}*{1}, 0)", flops=2, commutative=True,
       domain=("real", "real"), source="mask of equal signs: Liang et al. 2024, Cautious Optimizers, algorithm 1",
       subsets=frozenset({"masks"}), derivative=lambda b, r, x, y: (None, None)),
    Op("less", 2, "torch.lt({0}, {1}).to(({0} * {1}).dtype)", "Heaviside({1} - {0}, 0)", flops=1,
       domain=("real", "real"), source="1 where x < y, else 0", subsets=frozenset({"masks"}),
       derivative=lambda b, r, x, y: (None, None)),
    # what is computed anew every so many steps, or from some step on (see `primitives.lazy`)
    Op("due", 2, "torch.lt(torch.remainder({0} - 1, torch.clamp({1}, 1.0, 1e30)), 1).to(({0} * {1}).dtype)",
       "Piecewise((1, Mod({0} - 1, Max({1}, 1)) < 1), (0, True))", flops=20, domain=("real", "real"),
       source="1 if step x is the first or one of every y after it, else 0; y below 1 counts as 1", subsets=_LAZY,
       derivative=lambda b, r, x, y: (None, None)),
    Op("choose", 3, "torch.where(torch.gt({0}, 0), {1}, {2})", "Piecewise(({1}, {0} > 0), ({2}, True))", flops=1,
       domain=("real",) * 3, source="y where x > 0, else z; of one number x for all parameters, only that is computed",
       subsets=_LAZY,
       derivative=lambda b, r, c, x, y: (None, lambda d: b.choose(c, d, 0.0), lambda d: b.choose(c, 0.0, d))),
    # protected: total functions, finite for finite arguments of moderate size
    Op("safe_div", 2, "torch.where({1} == 0, torch.zeros_like({0} * {1}), {0} / {1})",
       "Piecewise((0, Eq({1}, 0)), ({0}/{1}, True))", flops=2, domain=("real", "real"),
       source="0 where the divisor is 0", subsets=_PROTECTED,
       derivative=lambda b, r, x, y: (b.safe_div(1.0, y), -b.safe_div(r, y))),
    Op("sqrt_abs", 1, "torch.sqrt(torch.abs({0}))", "sqrt(Abs({0}))", flops=5, domain=("real",),
       source="square root of the magnitude", subsets=_PROTECTED, derivative=lambda b, r, x: b.sqrt(b.abs(x))),
    Op("log_abs", 1, "torch.log(torch.abs({0}) + 1e-12)", "log(Abs({0}) + 1e-12)", flops=11, domain=("real",),
       source="log(|x| + 1e-12)", subsets=_PROTECTED, derivative=lambda b, r, x: b.log(b.abs(x) + 1e-12)),
    Op("exp_clip", 1, "torch.exp(torch.clamp({0}, -30.0, 30.0))", "exp(Max(-30, Min(30, {0})))", flops=11,
       domain=("real",), source="exponential of an argument clipped to [-30, 30]", subsets=_PROTECTED,
       derivative=lambda b, r, x: b.exp(b.clamp(x, -30.0, 30.0))),
    Op("pow_abs", 2, "torch.pow(torch.abs({0}) + 1e-12, {1})", "(Abs({0}) + 1e-12)**{1}", flops=21,
       domain=("real", "real"), source="(|x| + 1e-12)^y", subsets=_PROTECTED,
       derivative=lambda b, r, x, y: b.pow(b.abs(x) + 1e-12, y)),
    # rows, columns and whole matrices: the parameter seen as (n, everything else)
    Op("row_mean", 1, "torch.mean({0}, dim={dims}[1:], keepdim=True)", None, row_reduction, 1, False, ("real",),
       "Shazeer & Stern 2018, Adafactor, algorithm 4", _MATRIX, derivative=lambda b, r, x: (b.row_mean,)),
    Op("col_mean", 1, "torch.mean({0}, dim={dims}[:1], keepdim=True)", None, col_reduction, 1, False, ("real",),
       "Shazeer & Stern 2018, Adafactor, algorithm 4", _MATRIX, derivative=lambda b, r, x: (b.col_mean,)),
    Op("row_norm", 1, "torch.sqrt(torch.sum(torch.square({0}), dim={dims}[1:], keepdim=True))", None, row_reduction,
       2, False, ("real",), "Euclidean norm of each row", _MATRIX,
       derivative=lambda b, r, x: b.sqrt(b.row_mean(b.square(x)) * b.cols(x))),
    Op("col_norm", 1, "torch.sqrt(torch.sum(torch.square({0}), dim={dims}[:1], keepdim=True))", None, col_reduction,
       2, False, ("real",), "Euclidean norm of each column", _MATRIX,
       derivative=lambda b, r, x: b.sqrt(b.col_mean(b.square(x)) * b.rows(x))),
    Op("mean_of", 1, "torch.mean({0}, dim={dims}, keepdim=True)", None, fold_row_or_col, 1, False, ("real",),
       "mean over the entries of a row or column statistic", _MATRIX, derivative=lambda b, r, x: (b.mean_of,)),
    Op("block_mean", 2, "linalg.block_mean({0}, {1}, {dims})", None, blocks_of, 4, False, ("real", "at_least_one"),
       "mean over each of y blocks of a row or column statistic, in place of its entries; Zhang et al. 2024, Adam-mini",
       _MATRIX, derivative=lambda b, r, x, n: (lambda d: b.block_mean(d, n), None)),
    Op("rows", 1, _COUNT.format(":1"), None, side, 1, False, ("real",),
       "number of rows; Liu et al. 2025, arXiv:2502.16982, scales with it", _MATRIX,
       derivative=lambda b, r, x: (None,)),
    Op("cols", 1, _COUNT.format("1:"), None, side, 1, False, ("real",),
       "number of columns, which is that of elements in a row; Liu et al. 2025", _MATRIX,
       derivative=lambda b, r, x: (None,)),
    Op("outer", 2, "{0} * {1}", None, outer_product, 1, False, ("real", "real"),
       "row statistic times column statistic; Shazeer & Stern 2018", _MATRIX,
       derivative=lambda b, r, x, y: (lambda d: b.outer(d, y), lambda d: b.outer(x, d))),
    Op("centralise", 1, "{0} - torch.mean({0}, dim={dims}[1:], keepdim=True)", None, whole_tensor, 2, False, ("real",),
       "Yong et al. 2020, Gradient Centralization, equation 1", _MATRIX, derivative=lambda b, r, x: (b.centralise,)),
    Op("orthogonalise", 1, "linalg.newton_schulz({0}, {dims})", None, whole_tensor, f"5*({_QUINTIC})", False, ("real",),
       "five quintic Newton-Schulz steps; Jordan et al. 2024, Muon", _MATRIX),
    Op("quintic", 4, "linalg.quintic({0}, {1}, {2}, {3}, {dims})", None, whole_tensor, _QUINTIC, False,
       ("real",) * 4, "a s + b s^3 + c s^5 of each singular value s: one Newton-Schulz step with coefficients of one's"
       " own; Jordan et al. 2024, Muon", _SQUARES,
       derivative=lambda b, r, x, a, c, e: a * x + b.matmul(c * (s := b.row_gram(x)) + e * b.matmul(s, s), x)),
    # square matrices of the left side (rows by rows) and of the right side (columns by columns)
    Op("row_gram", 1, "linalg.row_gram({0}, {dims})", None, signature(T, LEFT), "2*r*r*k", False, ("real",),
       "x x^T, of the left side; Gupta et al. 2018, Shampoo, algorithm 1", _SQUARES),
    Op("col_gram", 1, "linalg.col_gram({0}, {dims})", None, signature(T, RIGHT), "2*r*k*k", False, ("real",),
       "x^T x, of the right side; Gupta et al. 2018, Shampoo, algorithm 1", _SQUARES),
    Op("matmul", 2, "linalg.matmul({0}, {1}, {dims})", None, product_of, "2*r*k*c", False, ("real", "real"),
       "product of matrices, which their kinds let fit without transposing one", _SQUARES,
       derivative=lambda b, r, x, y: (lambda d: b.matmul(d, y), lambda d: b.matmul(x, d))),
    Op("left_t", 2, "linalg.left_t({0}, {1}, {dims})", None, signature(LEFT, T, T), "2*r*k*c", False,
       ("real", "real"), "x^T y: into the basis of x's columns; Vyas et al. 2024, SOAP, algorithm 3", _SQUARES,
       derivative=lambda b, r, x, y: (lambda d: b.left_t(d, y), lambda d: b.left_t(x, d))),
    Op("right_t", 2, "linalg.right_t({0}, {1}, {dims})", None, signature(T, RIGHT, T), "2*r*k*c", False,
       ("real", "real"), "x y^T: out of the basis of y's columns; Vyas et al. 2024, SOAP, algorithm 3", _SQUARES,
       derivative=lambda b, r, x, y: (lambda d: b.right_t(d, y), lambda d: b.right_t(x, d))),
    Op("trace", 1, "linalg.trace({0}, {dims})", None, square_to_scalar, "r", False, ("real",),
       "sum of the diagonal, which is that of the eigenvalues", _SQUARES, derivative=lambda b, r, x: (b.trace,)),
    Op("row_diagonal", 1, "linalg.row_diagonal({0}, {dims})", None, signature(LEFT, R), "r", False, ("real",),
       "diagonal of a square matrix of the left side, one number for each row", _SQUARES,
       derivative=lambda b, r, x: (b.row_diagonal,)),
    Op("col_diagonal", 1, "linalg.col_diagonal({0}, {dims})", None, signature(RIGHT, C), "r", False, ("real",),
       "diagonal of a square matrix of the right side, one number for each column", _SQUARES,
       derivative=lambda b, r, x: (b.col_diagonal,)),
    Op("identity", 1, "linalg.identity({0}, {dims})", None, of_square, "r", False, ("real",),
       "the identity of the side of a square matrix, whose numbers do not count", _SQUARES,
       derivative=lambda b, r, x: (None,)),
    _inverse_root(1),
    _inverse_root(2),
    _inverse_root(4),
    Op("basis", 3, "linalg.basis({0}, {1}, {2}, {dims})", None, two_squares, "7*r**3", False,
       ("real", "real", "nonnegative"), "QR((x + z mean eigenvalue) y): one step of power iteration from basis y to"
       " eigenvectors of x; Vyas et al. 2024, SOAP, algorithm 4", _SQUARES),
)  # fmt: skip
