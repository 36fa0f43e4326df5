"""Simplification is sound, ends, and turns Lion's raw find into Lion; equivalence answers honestly."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import TOTAL_OPS, programs
from torch import Tensor

from optforge.baselines import BASELINES, NAMED
from optforge.primitives import OPS, Builder, Const, Kind, Program, execute, parse_program, print_program
from optforge.primitives.analysis.equivalence import Answer, equivalent, random_run
from optforge.primitives.analysis.rules import RULES, Rule
from optforge.primitives.analysis.simplify import Pattern, parse_pattern, simplify
from optforge.primitives.ops import DOMAINS

ADAMW, LION = BASELINES["adamw"].program, BASELINES["lion"].program


def _evaluate(pattern: Pattern, values: dict[str, Tensor]) -> Tensor:
    if isinstance(pattern, str):
        return values[pattern]
    if isinstance(pattern, float):
        return torch.tensor(pattern, dtype=torch.float64)
    args = [_evaluate(p, values) for p in pattern[1:]]
    op = OPS[str(pattern[0])]
    if op.reduces:
        args = [a.expand(50, 6) for a in args]
    return op.function(*args, dims=(1,) if op.name not in ("row_mean", "col_mean", "centralise") else (0, 1))


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.left)
def test_each_rule_is_sound_on_its_domain(rule: Rule) -> None:
    """Where the left side is finite, the right side has its value: over random arguments and literals."""
    generator = torch.Generator().manual_seed(1)
    domains = dict(rule.domain)
    checked = 0
    for _ in range(400):
        numbers = {n: 3 * float(torch.randn((), generator=generator)) for n in ("a", "b")}
        if rule.left == "add(mul(x, a), mul(y, b))":
            numbers["b"] = 1 - numbers["a"]
        if not rule.where(numbers):
            continue
        values = {v: torch.randn(50, 6, generator=generator, dtype=torch.float64) for v in ("x", "y", "z")}
        values = {v: DOMAINS[domains.get(v, "real")](x) for v, x in values.items()}
        literals = numbers | {name: function(numbers) for name, function in rule.compute}
        values |= {name: torch.tensor(v, dtype=torch.float64) for name, v in literals.items()}
        left, right = (_evaluate(parse_pattern(text), values) for text in (rule.left, rule.right))
        left, right = torch.broadcast_tensors(left, right)
        finite = left.isfinite()
        size = max(float(v.abs().max()) for v in values.values())
        torch.testing.assert_close(right[finite], left[finite], rtol=1e-6, atol=1e-9 * (1 + size))
        checked += int(finite.sum())
        if checked > 5000:
            break
    assert checked > 500


def test_lions_raw_find_becomes_lion() -> None:
    raw = NAMED["lion-raw-ablated"].program
    steps: list[object] = []
    simple = simplify(raw, steps)  # type: ignore[arg-type]
    assert [s.name for s in simple.state] == ["v"]  # m is dead through the loop
    ops = sorted(i.op for i in simple.body)
    assert ops == ["add", "lerp", "lerp", "mul", "mul", "sign"]
    slow = simple.body[simple.next_state[0]]  # type: ignore[index]
    assert slow.op == "lerp" and slow.args[:2] == ("g", "v")
    assert isinstance(slow.args[2], Const) and slow.args[2].value == pytest.approx(0.899 * 1.109)
    (sign,) = (i for i in simple.body if i.op == "sign")
    inner = simple.body[sign.args[0]]  # type: ignore[index]
    assert inner.op == "lerp" and inner.args == ("g", "v", Const(0.899))
    lion = LION.with_defaults(beta1=0.899, beta2=0.899 * 1.109, weight_decay=0.4602)
    found = equivalent(raw, lion, up_to_rate=True)
    assert found.answer is Answer.PROVED
    assert found.factor == pytest.approx(1 / 0.0002)
    assert equivalent(raw, lion).answer is Answer.REFUTED
    assert len(steps) >= 4


@given(programs(ops=TOTAL_OPS), st.integers(0, 1000))
def test_simplified_programs_do_the_same(program: Program, seed: int) -> None:
    simple = simplify(program)
    assert parse_program(print_program(simple)) == simple
    assert len(simple.body) <= len(program.live.instructions)
    assert len(simple.state) <= len(program.live_state)
    for before, after in zip(random_run(program, seed), random_run(simple, seed), strict=True):
        finite = before.isfinite() & (before.abs() < 1e8)
        if not bool(finite.all()):
            break  # a state that has left the finite numbers says nothing about real arithmetic
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-7 * (1 + float(before.abs().max())))


@given(programs())
def test_simplification_ends_where_it_began_the_second_time(program: Program) -> None:
    once = simplify(program)
    assert simplify(once).key == once.key


@pytest.mark.parametrize("name", [*BASELINES, *NAMED])
def test_baselines_are_equivalent_to_their_simplifications(name: str) -> None:
    program = (BASELINES | NAMED)[name].program
    assert equivalent(program, simplify(program)).answer is Answer.PROVED
    for before, after in zip(random_run(program, 3), random_run(simplify(program), 3), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-12)


def test_a_slot_that_repeats_another_is_merged() -> None:
    b = Builder()
    m, n = b.slot("m"), b.slot("n")
    m.next, n.next = b.lerp(m, b.g, 0.1), b.lerp(n, b.g, 0.1)
    two = b.build(m.next + n.next)
    simple = simplify(two)
    assert len(simple.state) == 1
    c = Builder()
    k = c.slot("k")
    k.next = c.lerp(k, c.g, 0.1)
    one = c.build(k.next * 2.0)
    assert equivalent(two, one).answer is Answer.PROVED
    n.next = b.lerp(n, b.g, 0.2)
    assert len(simplify(b.build(m.next + n.next)).state) == 2


def test_a_slot_that_stays_what_it_was_is_a_number() -> None:
    b = Builder()
    still, double, scale, whole = (
        b.slot("still"),
        b.slot("double"),
        b.slot("scale", Kind.SCALAR, 2.0),
        b.slot("whole", init=2.0),
    )
    still.next, double.next, scale.next, whole.next = double * 3.0, still + double, scale, whole
    simple = simplify(b.build(b.g * scale + double + b.norm(whole)))
    assert [s.name for s in simple.state] == ["whole"]  # whose norm is not that of a number
    without = b.build(b.g * scale + double)
    assert simplify(without).state == () and equivalent(without, b.build(b.g * 2.0)).answer is Answer.PROVED
    scale.next = scale * 1.5
    assert [s.name for s in simplify(b.build(b.g * scale + double)).state] == ["scale"]


def test_different_programs_are_refuted_with_numbers() -> None:
    found = equivalent(ADAMW, LION)
    assert found.answer is Answer.REFUTED
    assert found.updates is not None and not math.isclose(*found.updates, rel_tol=1e-6)
    assert found.step >= 1 and found.seed >= 0
    almost = ADAMW.with_defaults(beta2=0.9991)
    assert equivalent(ADAMW, almost).answer is Answer.REFUTED


def test_what_is_undefined_for_half_of_all_gradients_is_not_the_same() -> None:
    b, c = Builder(), Builder()
    found = equivalent(b.build(b.square(b.sqrt(b.g))), c.build(2.0 * c.g), up_to_rate=True)
    assert found.answer is Answer.REFUTED and found.updates is not None and math.isnan(found.updates[0])
    assert equivalent(b.build(b.sqrt(b.square(b.g))), c.build(c.abs(c.g))).answer is Answer.PROVED


def test_what_the_rules_cannot_prove_is_not_decided() -> None:
    b = Builder()
    squares = b.square(b.sin(b.g)) + b.square(b.cos(b.g))
    with_identity, plain = b.build(b.g * squares), Builder()
    found = equivalent(with_identity, plain.build(plain.g + 0.0 * plain.g))
    assert found.answer is Answer.UNDECIDED


def test_a_factor_that_is_negative_is_no_learning_rate() -> None:
    b, c = Builder(), Builder()
    assert equivalent(b.build(-3.0 * b.sign(b.g)), c.build(c.sign(c.g)), up_to_rate=True).answer is Answer.REFUTED


def test_undefined_divisions_are_not_simplified_away() -> None:
    """0 · ∞ and x / x keep their meaning: no rule removes a division that may be by zero and change the kind."""
    b = Builder()
    program = b.build(b.g + b.sub(b.g, b.g) / b.sub(b.p, b.p))
    assert execute(simplify(program), {"g": torch.ones(2), "p": torch.ones(2)}).update.isnan().all()
