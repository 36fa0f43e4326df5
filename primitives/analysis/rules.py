"""Rewrite rules: one row each, written in the language itself.

In a pattern `x`, `y`, `z` stand for any value and `a`, `b` for literal numbers; a number stands for itself. A rule is
sound: wherever its left side is defined and finite for real arguments, the right side has the same value (up to
rounding). At isolated points where the left side is undefined, such as ``x / |x|`` at 0, the right side may be finite.
Every row is tested on random arguments in its domain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Numbers = dict[str, float]


def always(_: Numbers) -> bool:
    """No condition."""
    return True


@dataclass(frozen=True)
class Rule:
    """Replace `left` by `right`.

    Attributes:
        left: pattern over ops, variables and numbers.
        right: replacement. Numbers computed from `a` and `b` are names of entries of `compute`.
        where: condition on the literals `a` and `b`.
        compute: literals of the right side, as functions of those of the left.
        domain: for each variable the set (a key of `primitives.ops.DOMAINS`) on which the left side is defined.
    """

    left: str
    right: str
    where: Callable[[Numbers], bool] = always
    compute: tuple[tuple[str, Callable[[Numbers], float]], ...] = ()
    domain: tuple[tuple[str, str], ...] = ()


def _row(left: str, right: str, where: Callable[[Numbers], bool] = always, domain: str = "", **compute: object) -> Rule:
    domains = tuple((part.split(":")[0], part.split(":")[1]) for part in domain.split())
    return Rule(left, right, where, tuple(compute.items()), domains)  # type: ignore[arg-type]


_ODD_INCREASING = ("tanh", "arctan", "arcsinh", "sinh", "cube", "cbrt", "softsign")
_EVEN = ("abs", "square", "cosh", "cos", "norm", "rms")
_ODD = (*_ODD_INCREASING, "sin", "tan", "arcsin", "arctanh", "reciprocal", "mean", "row_mean", "col_mean", "centralise")
_NOT_NEGATIVE = ("square", "sqrt", "exp", "exp2", "exp10", "cosh", "norm", "rms", "abs", "sqrt_abs", "exp_clip")
_INVERSES = (
    ("exp", "log", "positive"), ("log", "exp", "real"), ("exp2", "log2", "positive"), ("log2", "exp2", "real"),
    ("exp10", "log10", "positive"), ("log10", "exp10", "real"), ("expm1", "log1p", "above_minus_one"),
    ("log1p", "expm1", "real"), ("sin", "arcsin", "unit_ball"), ("cos", "arccos", "unit_ball"),
    ("tan", "arctan", "real"), ("sinh", "arcsinh", "real"), ("arcsinh", "sinh", "real"),
    ("cosh", "arccosh", "at_least_one"), ("tanh", "arctanh", "unit_ball"), ("arctanh", "tanh", "real"),
    ("cube", "cbrt", "real"), ("cbrt", "cube", "real"), ("reciprocal", "reciprocal", "nonzero"), ("neg", "neg", "real"),
    ("square", "sqrt", "nonnegative"),
)  # fmt: skip

RULES: tuple[Rule, ...] = (
    # neutral elements
    _row("add(x, 0.0)", "x"),
    _row("sub(x, 0.0)", "x"),
    _row("sub(0.0, x)", "neg(x)"),
    _row("mul(x, 1.0)", "x"),
    _row("mul(x, -1.0)", "neg(x)"),
    _row("div(x, 1.0)", "x"),
    _row("div(x, -1.0)", "neg(x)"),
    _row("pow(x, 1.0)", "x"),
    _row("max(x, x)", "x"),
    _row("min(x, x)", "x"),
    _row("lerp(x, x, y)", "x"),
    _row("lerp(x, y, 0.0)", "x"),
    _row("lerp(x, y, 1.0)", "y"),
    # one spelling for each thing
    _row("mul(x, x)", "square(x)"),
    _row("mul(square(x), x)", "cube(x)"),
    _row("pow(x, 2.0)", "square(x)"),
    _row("pow(x, 3.0)", "cube(x)"),
    _row("pow(x, 0.5)", "sqrt(x)", domain="x:nonnegative"),
    _row("pow(x, -1.0)", "reciprocal(x)", domain="x:nonzero"),
    _row("invert(x)", "sub(1.0, x)"),
    _row("add(x, x)", "mul(x, 2.0)"),
    _row("add(x, neg(y))", "sub(x, y)"),
    _row("sub(x, neg(y))", "add(x, y)"),
    _row("div(1.0, x)", "reciprocal(x)", domain="x:nonzero"),
    _row("mul(x, reciprocal(y))", "div(x, y)", domain="y:nonzero"),
    _row("div(x, reciprocal(y))", "mul(x, y)", domain="y:nonzero"),
    _row("div(neg(x), y)", "neg(div(x, y))", domain="y:nonzero"),
    _row("div(x, neg(y))", "neg(div(x, y))", domain="y:nonzero"),
    _row("mul(neg(x), y)", "neg(mul(x, y))"),
    _row("sqrt_abs(x)", "sqrt(abs(x))"),
    # literals meet
    _row("mul(mul(x, a), b)", "mul(x, ab)", ab=lambda n: n["a"] * n["b"]),
    _row("mul(div(x, a), b)", "mul(x, ab)", lambda n: n["a"] != 0, ab=lambda n: n["b"] / n["a"]),
    _row("div(mul(x, a), b)", "mul(x, ab)", lambda n: n["b"] != 0, ab=lambda n: n["a"] / n["b"]),
    _row("div(div(x, a), b)", "div(x, ab)", lambda n: n["a"] * n["b"] != 0, ab=lambda n: n["a"] * n["b"]),
    _row("mul(mul(x, a), y)", "mul(mul(x, y), a)"),
    _row("neg(mul(x, a))", "mul(x, minus)", minus=lambda n: -n["a"]),
    _row("mul(neg(x), a)", "mul(x, minus)", minus=lambda n: -n["a"]),
    _row("add(add(x, a), b)", "add(x, ab)", ab=lambda n: n["a"] + n["b"]),
    _row("sub(x, a)", "add(x, minus)", minus=lambda n: -n["a"]),
    _row("sub(a, sub(b, x))", "add(x, ab)", ab=lambda n: n["a"] - n["b"]),
    _row("sub(a, add(x, b))", "sub(ab, x)", ab=lambda n: n["a"] - n["b"]),
    _row("add(sub(a, x), b)", "sub(ab, x)", ab=lambda n: n["a"] + n["b"]),
    # magnitude and sign
    _row("sqrt(square(x))", "abs(x)"),
    _row("div(x, abs(x))", "sign(x)", domain="x:nonzero"),
    _row("div(abs(x), x)", "sign(x)", domain="x:nonzero"),
    _row("mul(sign(x), abs(x))", "x"),
    _row("square(abs(x))", "square(x)"),
    _row("abs(sign(x))", "square(sign(x))"),
    _row("sign(sign(x))", "sign(x)"),
    _row("sign(neg(x))", "neg(sign(x))"),
    _row("sign(mul(x, a))", "sign(x)", lambda n: n["a"] > 0),
    _row("sign(div(x, a))", "sign(x)", lambda n: n["a"] > 0),
    _row("sign(div(x, sqrt(y)))", "sign(x)", domain="y:positive"),
    _row("sign(div(x, add(sqrt(y), a)))", "sign(x)", lambda n: n["a"] > 0, domain="y:nonnegative"),
    _row("sign(mul(x, exp(y)))", "sign(x)"),
    *(_row(f"sign({f}(x))", "sign(x)") for f in _ODD_INCREASING),
    *(_row(f"{f}(neg(x))", f"{f}(x)") for f in _EVEN),
    *(_row(f"{f}(abs(x))", f"{f}(x)") for f in _EVEN if f != "square"),
    *(_row(f"{f}(neg(x))", f"neg({f}(x))", domain="x:unit_ball" if f.startswith("arc") else "x:nonzero") for f in _ODD),
    *(_row(f"abs({f}(x))", f"{f}(x)", domain="x:nonnegative") for f in _NOT_NEGATIVE if f != "abs"),
    # pairs that undo each other
    *(_row(f"{f}({g}(x))", "x", domain=f"x:{domain}") for f, g, domain in _INVERSES),
    _row("sub(x, sub(x, y))", "y"),
    _row("add(x, sub(y, x))", "y"),
    _row("sub(add(x, y), y)", "x"),
    _row("sub(y, add(x, y))", "neg(x)"),
    _row("div(mul(x, y), y)", "x", domain="y:nonzero"),
    _row("mul(div(x, y), y)", "x", domain="y:nonzero"),
    # interpolations compose: the weights of an average of averages
    _row("lerp(x, lerp(x, y, a), b)", "lerp(x, y, ab)", ab=lambda n: n["a"] * n["b"]),
    _row("lerp(lerp(x, y, a), x, b)", "lerp(x, y, ab)", ab=lambda n: n["a"] * (1 - n["b"])),
    _row("lerp(x, lerp(y, x, a), b)", "lerp(x, y, ab)", ab=lambda n: (1 - n["a"]) * n["b"]),
    _row("lerp(lerp(y, x, a), x, b)", "lerp(x, y, ab)", ab=lambda n: (1 - n["a"]) * (1 - n["b"])),
    _row("lerp(x, y, sub(1.0, z))", "lerp(y, x, z)"),
    _row("add(x, mul(sub(y, x), z))", "lerp(x, y, z)"),
    _row("add(mul(x, sub(1.0, z)), mul(y, z))", "lerp(x, y, z)"),
    _row("add(mul(x, a), mul(y, b))", "lerp(y, x, a)", lambda n: abs(n["a"] + n["b"] - 1) < 1e-15),
    # bounds
    _row("clip(clip(x, a), b)", "clip(x, ab)", lambda n: n["a"] > 0 and n["b"] > 0, ab=lambda n: min(n["a"], n["b"])),
    _row("clip(sign(x), a)", "sign(x)", lambda n: n["a"] >= 1),
    _row("clip(tanh(x), a)", "tanh(x)", lambda n: n["a"] >= 1),
    _row("max(max(x, a), b)", "max(x, ab)", ab=lambda n: max(n["a"], n["b"])),
    _row("min(min(x, a), b)", "min(x, ab)", ab=lambda n: min(n["a"], n["b"])),
    _row("max(abs(x), a)", "abs(x)", lambda n: n["a"] <= 0),
    _row("max(square(x), a)", "square(x)", lambda n: n["a"] <= 0),
    # reductions are homogeneous
    _row("norm(mul(x, a))", "mul(norm(x), size)", size=lambda n: abs(n["a"])),
    _row("rms(mul(x, a))", "mul(rms(x), size)", size=lambda n: abs(n["a"])),
    _row("mean(mul(x, a))", "mul(mean(x), a)"),
    _row("cosine(mul(x, a), y)", "cosine(x, y)", lambda n: n["a"] > 0),
)  # fmt: skip
