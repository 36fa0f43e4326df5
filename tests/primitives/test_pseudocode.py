"""Pseudo-code is exact: read back as Python and carried out line by line, it does what the interpreter does."""

from __future__ import annotations

import ast
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import strategies as S

from optforge.baselines import BASELINES, NAMED
from optforge.primitives import OPS, Builder, execute, parse_program
from optforge.primitives.analysis.assignments import assignments
from optforge.primitives.export.pseudocode import ARROW, expression, number, pseudo_code

PROGRAMS = {name: replace(row.program, fallback=None) for name, row in (BASELINES | NAMED).items()}


class _Literals(ast.NodeTransformer):
    """Numbers become tensors, so that Python's own arithmetic on them (which raises on 1 / 0) has no part."""

    def visit_Constant(self, node):
        return ast.Call(ast.Name("literal", ast.Load()), [node], [])


def carry_out(text, values, dims):
    """The values of all names after the lines of `text`, which stand for one step of a program without fallback."""
    scope = {f"{name}_": value for name, value in values.items()}  # a slot may be called `if`, or as an op is
    text = re.sub(r"\b(\d[\d.e+-]*|[a-z_]\w*)\b(?!\()", lambda m: m[1] + "_" * m[1].isidentifier(), text)
    functions = {n: lambda *args, op=op: op.function(*args, dims=dims) for n, op in OPS.items()}
    functions |= {"literal": lambda x: torch.tensor(float(x), dtype=torch.float64)}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        target, _, right = line.partition(f" {ARROW} " if ARROW in line else " = ")
        tree = ast.fix_missing_locations(_Literals().visit(ast.parse(right, mode="eval")))
        scope[target] = eval(compile(tree, "<pseudo-code>", "eval"), functions, scope)
    return {name[:-1]: value for name, value in scope.items()}


def stepped(program, shape, seed):
    """What pseudo-code and interpreter make of the same inputs: parameter and live slots."""
    inputs = S.random_inputs(program, shape, seed)
    dims = tuple(range(len(shape)))
    got = carry_out(pseudo_code(program), inputs, dims)
    update, following = execute(program, inputs)
    wanted = {s.name: x for s, x in zip(program.state, following, strict=True) if s in program.live_state}
    wanted["p"] = inputs["p"] - inputs["lr"] * update
    return got, wanted


def assert_reads_back(program, shape, seed):
    got, wanted = stepped(program, shape, seed)
    for name, value in wanted.items():
        S.assert_same(got[name].expand(value.shape), value)


@given(S.programs(fallback=False), st.data(), S.seeds)
def test_pseudo_code_of_any_program_does_what_the_interpreter_does(program, data, seed):
    assert_reads_back(program, data.draw(S.shapes_for(program)), seed)


@given(S.programs(("add", "sub", "mul", "div", "neg", "pow", "invert", "abs"), max_body=20, fallback=False), S.seeds)
def test_precedence(program, seed):
    assert_reads_back(program, (3, 4), seed)


@given(S.programs(max_body=3, max_state=4, fallback=False), S.seeds)
def test_slots_that_exchange_their_values(program, seed):
    assert_reads_back(program, (3, 4), seed)


@pytest.mark.parametrize("name", PROGRAMS)
def test_named_programs_read_back(name):
    assert_reads_back(PROGRAMS[name], (3, 4), 5)


def test_lion_is_three_lines():
    assert pseudo_code(PROGRAMS["lion"]).splitlines() == [
        "# beta1 = 0.9, beta2 = 0.99, weight_decay = 0",
        "# state: m = 0",
        "update = sign(lerp(m, g, 1 - beta1)) + weight_decay * p",
        "m ← lerp(m, g, 1 - beta2)",
        "p ← p - lr * update",
    ]


def test_new_values_are_used_where_they_are_assigned():
    lines = pseudo_code(PROGRAMS["adamw"]).splitlines()
    assert lines[2] == "m ← lerp(m, g, 1 - beta1)" and "lerp" not in "".join(lines[4:])


def test_circular_slots_get_a_name_in_between():
    b = Builder()
    one, two = b.slot("one"), b.slot("two", init="p")
    one.next, two.next = two, one
    lines = pseudo_code(b.build(b.g + one)).splitlines()
    assert lines[-5:] == ["update = g + one", "x1 = two", "two ← one", "one ← x1", "p ← p - lr * update"] or lines[
        -5:
    ] == ["update = g + one", "x1 = one", "one ← two", "two ← x1", "p ← p - lr * update"]


def test_dead_code_is_left_out_and_the_fallback_is_told():
    raw = pseudo_code(PROGRAMS["lion-raw"])
    assert "cosh" not in raw and "m =" not in raw
    b = Builder()
    rows = b.build(b.centralise(b.g), PROGRAMS["lion"])
    assert "# for parameters without rows and columns:\n" + pseudo_code(PROGRAMS["lion"]) in pseudo_code(rows)
    b = Builder()
    assert "rows" not in pseudo_code(b.build(b.sign(b.g), PROGRAMS["lion"]))


def test_long_lines_are_broken_up():
    b = Builder()
    x = b.g
    for _ in range(200):
        x = b.tanh(x)
    text = pseudo_code(b.build(x))
    assert max(map(len, text.splitlines())) <= 110 and text.count("tanh") == 200


@given(S.programs(max_body=40, fallback=False))
def test_every_line_is_short_and_every_name_is_defined_before_it_is_used(program):
    known = set(program.names) | {"update"}
    for line in assignments(program):
        todo = [line.tree]
        while todo:
            tree = todo.pop()
            if isinstance(tree, tuple):
                todo.extend(tree[1:])
            elif isinstance(tree, str):
                assert tree in known
        known.add(line.target)


@given(S.finite_floats)
def test_numbers_read_back_exactly(x):
    assert float(number(x)) == x


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        (("sub", "a", ("sub", "b", "c")), "a - (b - c)"),
        (("sub", ("sub", "a", "b"), "c"), "a - b - c"),
        (("mul", "a", ("div", "b", "c")), "a * (b / c)"),
        (("neg", ("pow", "a", 2.0)), "-a**2"),
        (("pow", ("neg", "a"), ("neg", "b")), "(-a)**(-b)"),
        (("pow", ("pow", "a", "b"), ("pow", "c", "d")), "(a**b)**(c**d)"),
        (("pow", -2.0, "b"), "(-2)**b"),
        (("add", "a", -1e-8), "a + -1e-08"),
        (("neg", ("add", "a", "b")), "-(a + b)"),
        (("invert", ("invert", "a")), "1 - (1 - a)"),
        (("max", ("add", "a", "b"), 1.0), "max(a + b, 1)"),
    ],
)
def test_parentheses(tree, text):
    assert expression(tree) == text


def test_a_program_that_only_copies():
    assert pseudo_code(parse_program("optforge 1\nupdate g\n")) == "p ← p - lr * g"
