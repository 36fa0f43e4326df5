"""Mutation: children are valid by construction, reproducible, and reach what they should."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baselines import BASELINES
from primitives import Program, parse_program, print_program, subset
from search.mutation import MUTATIONS, Space, mutate
from tests.strategies import programs

SPACE = Space(subset("all"))
ADAMW = BASELINES["adamw"].program


@given(programs(), st.integers(0, 2**32))
def test_children_are_valid_and_survive_the_text_form(program: Program, seed: int) -> None:
    child, name = mutate(program, SPACE, random.Random(seed), tries=200)
    assert name in MUTATIONS
    assert child != program
    assert parse_program(print_program(child)) == child  # construction checks every kind again
    assert {s.name for s in program.state} <= {s.name for s in child.state}
    assert child.fallback == program.fallback


@given(st.integers(0, 2**32))
def test_the_same_random_state_gives_the_same_child(seed: int) -> None:
    assert mutate(ADAMW, SPACE, random.Random(seed)) == mutate(ADAMW, SPACE, random.Random(seed))


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_mutation_does_what_it_says(name: str) -> None:
    space = Space(SPACE.ops, weights=((name, 1.0),))
    sizes = Counter[int]()
    changed_behaviour = 0
    for seed in range(60):
        child, found = mutate(ADAMW, space, random.Random(seed), tries=100)
        assert found == name
        sizes[len(child.body) - len(ADAMW.body)] += 1
        changed_behaviour += child.key != ADAMW.key
        if name == "constant":
            assert [i.op for i in child.body] == [i.op for i in ADAMW.body]
        if name == "op":
            differing = [a.op != b.op for a, b in zip(child.body, ADAMW.body, strict=True)]
            assert sum(differing) == 1
        if name == "remember":
            assert len(child.state) == len(ADAMW.state) + 1
    expected = {"insert": {1}, "delete": {-1}, "remember": {1}}.get(name, {0})
    assert set(sizes) == expected
    assert changed_behaviour > 15


def test_a_search_stays_within_its_space() -> None:
    space = Space(subset("lion45"), max_statements=20, max_slots=3, signals=("g", "p"))
    program, rng = ADAMW, random.Random(1)
    own = {i.op for i in ADAMW.body}
    for _ in range(500):
        program, _ = mutate(program, space, rng, tries=100)
        assert len(program.body) <= 20
        assert len(program.state) <= 3
        assert {i.op for i in program.body} <= own | set(space.ops)
        assert not {"lr", "progress", "global_norm"} & set(program.live.names)


def test_every_op_of_the_space_can_appear() -> None:
    space = Space(subset("lion45", "protected", "statistics", "masks"), max_statements=100)
    seen: set[str] = set()
    for seed in range(4000):
        child, _ = mutate(ADAMW, space, random.Random(seed))
        seen |= {i.op for i in child.body}
    assert set(space.ops) <= seen


def test_unknown_mutations_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown mutation 'graft'"):
        Space(SPACE.ops, weights=(("graft", 1.0),))
