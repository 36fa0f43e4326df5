"""Formulas say what the interpreter does; LaTeX and Unicode say what the formula says."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import sympy
import torch
from hypothesis import given
from support import strategies as S

from optforge.baselines import BASELINES, NAMED
from optforge.primitives import OPS, Builder, Const, Instr, Kind, Program, ProgramError, execute, parse_program
from optforge.primitives.analysis.formula import formula, latex, unicode_text

PROGRAMS = {name: replace(row.program, fallback=None) for name, row in (BASELINES | NAMED).items()}
SMOOTH = tuple(
    name for name in S.TOTAL_OPS
    if not OPS[name].reduces and name not in ("sign", "less", "agree", "safe_div", "reciprocal")
)  # fmt: skip
MEANINGS = [
    {"Heaviside": lambda x, _: float(x > 0), "Max": max, "Min": min, "sign": lambda x: (x > 0) - (x < 0)},
    "math",
]


def moderate(program):
    """The same program with small literals, whose sums lose no digits that a formula keeps."""
    tame = [
        Instr(op, tuple(Const(round(a.value % 3, 2)) if isinstance(a, Const) else a for a in args))
        for op, args in program.body
    ]
    return Program(program.state, program.hypers, tuple(tame), program.update, program.next_state)


def value(expression, numbers):
    """What a sympy expression is for the given numbers, by symbol."""
    symbols = sorted(expression.free_symbols, key=str)
    plain = [sympy.Symbol(f"v{n}", real=True) for n in range(len(symbols))]  # a slot may be called log
    function = sympy.lambdify(plain, expression.xreplace(dict(zip(symbols, plain, strict=True))), MEANINGS)
    return float(function(*(numbers[s] for s in symbols)))


def inputs_of(program, seed=0):
    inputs = S.random_inputs(program, (), seed)
    return inputs | {h.name: torch.tensor(0.1 + 0.2 * n, dtype=torch.float64) for n, h in enumerate(program.hypers)}


def assert_equals_interpreter(program, seed):
    inputs, found = inputs_of(program, seed), formula(program)
    update, following = execute(program, inputs)
    if not all(bool(x.isfinite()) and float(x.abs()) < 1e6 for x in (update, *following)):
        return
    numbers = {found.symbols[name]: float(x) for name, x in inputs.items()}
    wanted = dict(zip((s.name for s in program.state), following, strict=True)) | {"p": update}
    wholes = found.next_state | {"p": found.update}
    for name, expression in wholes.items():
        assert value(expression, numbers) == pytest.approx(float(wanted[name]), rel=1e-6, abs=1e-9)
    for line in found.lines:  # in order, each overwriting what it names
        numbers[line.target] = value(line.value, numbers)
    for name in wholes:
        assert numbers[found.symbols[name]] == pytest.approx(float(wanted[name]), rel=1e-6, abs=1e-9)


@given(S.programs(SMOOTH, S.FLAT_KINDS, fallback=False).map(moderate), S.seeds)
def test_formulas_equal_the_interpreter(program, seed):
    assert_equals_interpreter(program, seed)


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if not program.reduces])
@pytest.mark.parametrize("seed", range(3))
def test_formulas_of_named_programs_equal_the_interpreter(name, seed):
    assert_equals_interpreter(PROGRAMS[name], seed)


@pytest.mark.parametrize("name", [n for n, op in OPS.items() if op.sympy is not None])
def test_every_closed_form_is_used(name):
    b, op = Builder(), OPS[name]
    program = b.build(b.op(name, *(b.tanh(b.g) * 0.4 + 1.5 * (op.domain[0] == "at_least_one"), b.p, b.lr)[: op.arity]))
    assert name in ("pow",) or not any(f.func.__name__ == name for f in formula(program).update.atoms(sympy.Function)
                                       if isinstance(f, sympy.core.function.AppliedUndef))  # fmt: skip
    assert_equals_interpreter(program, 4)


def test_lion():
    found = formula(PROGRAMS["lion"])
    g, theta, m, beta1, beta2, decay = (found.symbols[n] for n in ("g", "p", "m", "beta1", "beta2", "weight_decay"))
    assert found.update == decay * theta + sympy.sign(beta1 * m + (1 - beta1) * g)
    assert found.next_state == {"m": beta2 * m + (1 - beta2) * g}
    assert {str(found.symbols[n]) for n in ("p", "lr", "step")} == {"theta", "eta", "t"}
    assert latex(PROGRAMS["lion"]).splitlines() == [
        r"\begin{aligned}",
        r"\theta &\leftarrow \theta - \eta \left(\theta \lambda + "
        r"\operatorname{sign}{\left(\beta_{1} m + g \left(1 - \beta_{1}\right)\right)}\right) \\",
        r"m &\leftarrow \beta_{2} m + g \left(1 - \beta_{2}\right)",
        r"\end{aligned}",
    ]


def test_adamw_in_unicode():
    text = unicode_text(PROGRAMS["adamw"])
    assert text.splitlines()[0] == "m ← β₁⋅m + g⋅(1 - β₁)"
    assert "θ ← θ - η⋅" in text and "λ" in text and "ε" in text and "─" in text


def test_operations_without_a_closed_form_have_a_notation():
    b = Builder()
    rows = b.slot("rows", Kind.ROW)
    rows.next = b.row_mean(b.square(b.g))
    scale = b.square(b.norm(b.p)) / b.dot(b.g, b.p)
    program = b.build(b.orthogonalise(b.g) * scale * rows * b.agree(b.g, b.p) * b.global_norm)
    text = latex(program)
    for part in (r"\left\lVert \theta \right\rVert}^{2}", r"\left\langle g, \theta \right\rangle",
                 "NewtonSchulz", r"\operatorname{mean}_{\mathrm{row}}", r"\mathbf{1}\left[g \theta > 0\right]",
                 r"\lVert g \rVert"):  # fmt: skip
        assert part in text
    assert "││θ││" in unicode_text(program) and "[g⋅θ > 0]" in unicode_text(program)
    norm = next(f for f in formula(program).update.atoms(sympy.Function) if f.func.__name__ == "norm")
    assert norm.args == (formula(program).symbols["p"],)


def test_what_is_used_twice_gets_a_line():
    lines = latex(PROGRAMS["lion-raw-ablated"]).splitlines()
    assert lines[1] == r"x_{0} &= 0.101 g + 0.899 v \\" and lines[2].startswith(r"v &\leftarrow")
    b = Builder()
    x = b.tanh(b.g + b.p)
    assert "x_{1} &=" in latex(b.build(b.safe_div(b.g, x)))  # its closed form names the divisor twice


def test_a_number_times_a_power_of_another_is_no_longer_number() -> None:
    b = Builder()
    program = b.build(b.g * (1.0 - 0.5 * b.pow(0.96, b.step)))
    assert r"0.5 \cdot {0.96}^{t}" in latex(program)


def test_names_never_collide():
    program = parse_program(
        "optforge 1\nhyper weight_decay = 0.1 log\nhyper lambda = 0.2 log\nhyper eta = 0.3 log\n"
        "slot theta = 0.0 tensor\nslot t = 0.0 tensor\n"
        "slot theta_ = 0.0 tensor\nx0 = mul(g, weight_decay)\nx1 = mul(x0, lambda)\n"
        "x2 = mul(x1, eta)\nx3 = mul(x2, theta)\nx4 = mul(x3, theta_)\nx5 = mul(x4, t)\nx6 = mul(x5, step)\n"
        "x7 = mul(x6, lr)\nx8 = mul(x7, p)\nupdate x8\nnext theta = g\nnext t = g\nnext theta_ = g\n"
    )
    found = formula(program)
    assert len(set(map(str, found.symbols.values()))) == len(found.symbols)
    assert len(found.update.free_symbols) == 10
    assert_equals_interpreter(program, 1)
    factors = re.search(r"\\theta &\\leftarrow \\theta - \\eta (.*)", latex(program).replace("\\\\", ""))[1].split()
    assert len(set(factors)) == 10


def test_the_fallback_follows():
    b = Builder()
    program = b.build(b.centralise(b.g), PROGRAMS["lion"])
    assert latex(PROGRAMS["lion"]) in latex(program) and r"\begin{gathered}" in latex(program)
    assert unicode_text(program).endswith("for parameters without rows and columns:\n" + unicode_text(PROGRAMS["lion"]))


@pytest.mark.parametrize("text", ["div(1.0, 0.0)", "log(-1.0)", "exp2(1e300)", "arcsin(2.0)", "pow(-1.0, 0.5)"])
def test_numbers_that_are_none_stay_as_they_are_written(text):
    program = parse_program(f"optforge 1\nx0 = {text}\nx1 = max(g, x0)\nupdate x1\n")
    assert not formula(program).update.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I)
    assert text.partition("(")[0] in latex(program)


@pytest.mark.parametrize("op", ["square", "cube", "exp2", "expm1", "safe_div", "cbrt", "pow", "clip", "max"])
@pytest.mark.parametrize("begin", ["g * 3.7", "g + g"])
def test_long_chains_take_no_time(op, begin):
    b = Builder()
    x = b.g * 3.7 if begin == "g * 3.7" else b.g + b.g  # sympy makes that an exact 2 g
    for _ in range(60):
        x = b.op(op, *[x, b.p][: OPS[op].arity])
    program = b.build(b.op(op, *[b.g, x, x][-OPS[op].arity :]))
    start = time.perf_counter()
    assert latex(program) and unicode_text(program)
    assert time.perf_counter() - start < 5


def test_a_formula_too_large_to_write_out_is_refused():
    b = Builder()
    x = b.g
    for _ in range(50):
        x = x * b.tanh(x)
    found = formula(b.build(x))
    assert len(found.lines) > 10
    with pytest.raises(ProgramError, match="take its lines instead"):
        _ = found.update


@given(S.programs(max_body=20))
def test_any_program_can_be_printed(program):
    text = latex(program)
    assert text.count("{") == text.count("}") and text.count(r"\left") - text.count(r"\leftarrow") == text.count(
        r"\right"
    )
    assert unicode_text(program)


def test_sympy_comes_only_when_it_is_asked_for():
    code = "import sys, optforge.primitives.analysis.formula, optforge.primitives.export.one_file\n"
    code += "import optforge.experiments.cli\nassert 'sympy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
