"""Rejections before training: each kind is found, and what the search needs is let through."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from support.strategies import programs

from optforge.baselines import BASELINES, NAMED
from optforge.primitives import Builder, Const, Instr, Program, Slot
from optforge.primitives.analysis.certificate import certificate
from optforge.primitives.builder import Expr
from optforge.search.duplicates.cache import Cached, DuplicateCache, Verdict
from optforge.search.duplicates.probes import descends, explode, suspects
from optforge.search.fitness.evaluator import Fitness, Status

ADAMW, LION = BASELINES["adamw"].program, BASELINES["lion"].program
ALL = {name: row.program for name, row in (BASELINES | NAMED).items()}


def recursion(factor: float, power: float = 1.0) -> Program:
    """Update m, with m ← factor · m^power + g."""
    b = Builder()
    m = b.slot("m")
    m.next = b.pow_abs(m, power) * factor + b.g if power != 1 else m * factor + b.g
    return b.build(m.next)


def test_no_known_optimizer_is_rejected() -> None:
    for name, program in ALL.items():
        verdict = DuplicateCache(check_descent=True).identify(program).verdict
        # Lion as it was found takes arcsines of anything
        assert verdict is (Verdict.NOT_FINITE if name.startswith("lion-raw") else Verdict.NEW), (name, verdict)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (recursion(0.9), False),
        (recursion(1.0), False),  # a sum
        (recursion(-1.0), False),
        (recursion(1.1), True),
        (recursion(-1.2), True),
        (recursion(1.0, 2.0), True),  # doubly exponential
    ],
)
def test_geometric_growth_is_unbounded_and_linear_growth_is_not(program: Program, expected: bool) -> None:
    assert explode([program]) == [expected]


def test_growth_that_hides_in_a_second_slot_or_behind_statements_is_found() -> None:
    b = Builder()
    m, v = b.slot("m"), b.slot("v", init=1.0)
    m.next, v.next = b.lerp(m, v, 0.1), v + m * 2.0  # each an innocent form of the other
    assert explode([b.build(m.next + b.g)]) == [True]
    b = Builder()
    m = b.slot("m", init=1.0)
    m.next = b.exp(b.log(m) + 0.3)
    assert explode([b.build(m.next * b.g)]) == [True]


def test_dead_slots_may_do_what_they_like() -> None:
    assert explode([Program((Slot("m"),), (), (*recursion(2.0).body,), "g", (1,))]) == [False]


@given(programs(fallback=False))
@settings(max_examples=30)
def test_what_is_cleared_by_looking_does_not_explode(program: Program) -> None:
    """The certificate's long simulation, which knows nothing of the rules, is the oracle."""
    if not suspects(program):
        ran = certificate(program)
        assert not ran.finite or not ran.state_growth > 1e6


def test_together_or_alone_the_answer_is_the_same() -> None:
    several = [ADAMW, recursion(1.1), LION, recursion(0.9), recursion(1.3)]
    assert explode(several) == [explode([p])[0] for p in several] == [False, True, False, False, True]
    assert explode([]) == []


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_descent_is_told_from_ascent(sign: float) -> None:
    for program in (ADAMW, LION, BASELINES["momentum"].program):
        b = Program(
            program.state, program.hypers, (*program.body, Instr("mul", (program.update, Const(sign)))),
            len(program.body), program.next_state,
        )  # fmt: skip
        assert descends(b) is (sign > 0)


def scaled(update: Expr, factor: float) -> Program:
    return update.builder.build(update * factor)


def test_a_factor_of_a_known_program_is_not_trained_and_a_negative_one_is() -> None:
    cache = DuplicateCache()
    found = cache.identify_all([scaled(Builder().g, x) for x in (1.0, 3.0, 0.5, -1.0)], range(4))
    assert [i.verdict for i in found] == [
        Verdict.NEW, Verdict.SAME_UP_TO_RATE, Verdict.SAME_UP_TO_RATE, Verdict.NEW,
    ]  # fmt: skip
    assert [cache.number(i.key) for i in found] == [0, 0, 0, 3]
    strict = DuplicateCache(check_descent=True)
    assert strict.identify(scaled(Builder().g, -1.0)).verdict is Verdict.NO_DESCENT


def test_a_verdict_is_the_same_after_a_resume_where_a_factor_decides_it() -> None:
    """Of two programs that differ by a factor one may go downhill; which was asked for first must not matter."""
    b = Builder()
    m = b.slot("m")
    m.next = b.lerp(m, b.g, 0.1)
    climbs, goes = (b.build((b.p * 0.1 - b.g + m.next * 1.5) * factor) for factor in (1.0, 2000.0))
    if descends(climbs):
        climbs, goes = goes, climbs
    assert (descends(climbs), descends(goes)) == (False, True)
    cache = DuplicateCache(check_descent=True)
    found = cache.identify_all([climbs, goes, climbs], [0, 1, 2])
    assert [i.verdict for i in found] == [Verdict.NO_DESCENT, Verdict.NEW, Verdict.NO_DESCENT]
    resumed = DuplicateCache(check_descent=True)
    resumed.restore([(1, goes)])
    assert resumed.identify(climbs).verdict is Verdict.NO_DESCENT


def test_a_cache_restored_from_its_programs_judges_as_before() -> None:
    several = [*ALL.values(), recursion(0.8), recursion(1.1)]
    cache, restored = DuplicateCache(), DuplicateCache()
    added = [(n, p) for n, p in enumerate(several) if cache.identify_all([p], [n])[0].verdict is Verdict.NEW]
    restored.restore(added)
    assert (restored.keys, restored.fingerprints, restored.directions) == (
        cache.keys, cache.fingerprints, cache.directions,
    )  # fmt: skip
    restored.restore([])


def test_an_evaluator_does_not_take_one_rate_for_another() -> None:
    def size(programs: list[Program], generation: int) -> list[Fitness]:
        return [Fitness(float(len(p.body)), Status.OK) for p in programs]

    cached = Cached(size)  # type: ignore[arg-type]
    first, second, third = cached([scaled(Builder().g, 1.0), scaled(Builder().g + 0.0, 2.0), recursion(1.5)])
    assert (first.score, second.score) == (1.0, 2.0)
    assert math.isinf(third.score) and "grows geometrically" in third.reason
