"""Mutation: children are valid by construction, reproducible, and reach what they should."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import programs

from optforge.baselines import BASELINES
from optforge.primitives import Const, Kind, Program, parse_program, print_program, subset
from optforge.primitives.blocks import BLOCKS
from optforge.search.space.draft import MIX
from optforge.search.space.mutation import MUTATIONS, Space, mutate
from optforge.search.space.recombination import crossover, splice, templates

SPACE = Space(subset("all"))
ADAMW = BASELINES["adamw"].program


@given(programs(), st.integers(0, 2**32))
def test_children_are_valid_and_survive_the_text_form(program: Program, seed: int) -> None:
    child, name = mutate(program, SPACE, random.Random(seed), tries=200)
    assert name in dict(MIX)
    assert child != program
    assert parse_program(print_program(child)) == child  # construction checks every kind again
    assert {s.name for s in program.state} <= {s.name for s in child.state}
    if program.needs_matrix or not child.needs_matrix:
        assert child.fallback == program.fallback
    else:  # parameters that are no matrices are stepped as before
        assert child.fallback == (program.fallback or program.pruned())


@given(st.integers(0, 2**32))
def test_the_same_random_state_gives_the_same_child(seed: int) -> None:
    assert mutate(ADAMW, SPACE, random.Random(seed)) == mutate(ADAMW, SPACE, random.Random(seed))


@pytest.mark.parametrize("name", dict(MIX))
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
        if name == "swap_slots":
            assert child.state == ADAMW.state and child.update == ADAMW.update
            assert Counter(_leaves(child)) == Counter(_leaves(ADAMW)) or _next(child) == _next(ADAMW)
    if name in ("splice", "crossover", "transform"):
        assert len(sizes) > 3
    else:
        assert set(sizes) == {{"insert": 1, "delete": -1, "remember": 1}.get(name, 0)}
    assert changed_behaviour > 15


def _leaves(program: Program) -> list[object]:
    return [a for _, args in program.body for a in args if type(a) is not int]


def _next(program: Program) -> tuple[object, ...]:
    return program.next_state


def test_the_mix_and_the_table_of_mutations_are_one_list() -> None:
    assert set(dict(MIX)) == {*MUTATIONS, "crossover"}


@given(programs(), programs(), st.integers(0, 2**32))
def test_crossing_two_parents_takes_the_first_part_of_one_and_the_last_of_the_other(
    first: Program, second: Program, seed: int
) -> None:
    space = Space(SPACE.ops, max_statements=80, max_slots=8)
    child = crossover(first, second, space, random.Random(seed))
    if child is None:  # nothing of a kind that the second part needs
        return
    assert parse_program(print_program(child)) == child
    ops, head, tail = ([op for op, _ in p.body] for p in (child, first, second))
    cuts = [n for n in range(len(head) + 1) if ops[:n] == head[:n] and ops[n:] == tail[len(tail) - len(ops) + n :]]
    assert cuts
    assert any(child.body[:n] == first.body[:n] for n in cuts)
    assert {s.name for s in first.state} <= {s.name for s in child.state}


def test_a_crossover_without_a_cut_is_one_of_the_parents() -> None:
    class AtTheStart(random.Random):
        def randint(self, a: int, b: int) -> int:
            return a

    own = ADAMW.defaults()  # which stand for the mate's of the same name
    lion = BASELINES["lion"].program
    lion = lion.with_defaults(**{name: own[name] for name in lion.defaults()})
    assert crossover(ADAMW, lion, SPACE, AtTheStart(0)).key == lion.key  # type: ignore[union-attr]


def test_a_mate_is_asked_for_only_where_it_is_needed() -> None:
    lion, asked = BASELINES["lion"].program, []

    def mate() -> Program:
        asked.append(1)
        return lion

    names = [mutate(ADAMW, SPACE, random.Random(seed), mate=mate)[1] for seed in range(300)]
    assert 0 < names.count("crossover") <= len(asked) < 60


def test_every_block_can_be_spliced_in_whole() -> None:
    space = Space(SPACE.ops, max_statements=100)
    blocks = {t.program.body: 0 for t in templates(space)}
    assert len(blocks) == len(BLOCKS)
    for seed in range(600):
        child = splice(ADAMW, space, random.Random(seed))
        assert child is not None
        added = len(child.body) - len(ADAMW.body)
        for body in blocks:
            if len(body) == added and any(
                [op for op, _ in child.body[i : i + added]] == [op for op, _ in body] for i in range(len(child.body))
            ):
                blocks[body] += 1
        assert len(child.state) - len(ADAMW.state) in (0, 1)
    assert min(blocks.values()) > 20


def test_spliced_numbers_live_on_their_scale() -> None:
    space = Space(SPACE.ops, max_statements=100)
    values = []
    for seed in range(400):
        child = splice(ADAMW, space, random.Random(seed))
        assert child is not None
        values += [a.value for _, args in child.body for a in args if type(a) is Const and a.value != 1]
        assert all(child.kind_of(a) is Kind.TENSOR for a in child.next_state)
    assert values and all(0 < v < 1 for v in values)


def test_a_block_that_the_space_lacks_is_not_spliced_in() -> None:
    assert {op for t in templates(Space(("sign",))) for op, _ in t.program.body} == {"sign"}
    arithmetic = ("add", "mul", "sub")
    assert any("p" in args for t in templates(Space(arithmetic)) for _, args in t.program.body)
    assert not any("p" in args for t in templates(Space(arithmetic, signals=("g",))) for _, args in t.program.body)


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
    for seed in range(8000):
        child, _ = mutate(ADAMW, space, random.Random(seed))
        seen |= {i.op for i in child.body}
    assert set(space.ops) <= seen


def test_transform_changes_what_is_read_and_leaves_slots_as_they_were() -> None:
    space = Space(SPACE.ops, max_statements=100, weights=(("transform", 1.0),))
    found = Counter[str]()
    for seed in range(300):
        child, _ = mutate(ADAMW, space, random.Random(seed))
        old = dict(zip((s.name for s in ADAMW.state), ADAMW.next_state, strict=True))
        new = dict(zip((s.name for s in child.state), child.next_state, strict=True))
        assert all(child.body[new[n]].op == ADAMW.body[old[n]].op == "lerp" for n in ("m", "v"))  # type: ignore[index]
        assert child.key != ADAMW.key or len(child.body) == len(ADAMW.body) + 1
        found.update({child.body[i].op for i in child.live.instructions} - {i.op for i in ADAMW.body})
    assert found["orthogonalise"] > 10 and found["sign"] > 5 and found["agree"] > 5


def test_known_ops_are_drawn_more_often_where_a_prior_says_so() -> None:
    space = Space(("sin", "tanh"), prior=(("tanh", 9.0),))
    drawn = Counter(space.pick(space.unary, random.Random(seed)) for seed in range(2000))
    assert 0.87 < drawn["tanh"] / 2000 < 0.93


def test_ideas_that_adamw_lacks_are_a_few_hundred_children_away() -> None:
    """An op that is not in AdamW, on the way from its momentum to its update and not into its slots."""
    space = Space(subset("lion45", "protected", "statistics", "masks", "smooth", "matrix"))
    count, found = 6000, Counter[str]()
    for seed in range(count):
        child, _ = mutate(ADAMW, space, random.Random(seed))
        update = _feeding(child, child.update)
        slots = set().union(*(_feeding(child, arg) for arg in child.next_state))
        for i in update - slots:
            op, args = child.body[i]
            if op in ("sign", "orthogonalise", "agree") and "m" in _names(child, i):
                found[op] += 1
            found["look ahead"] += op == "lerp" and "g" in args
            found["trust ratio"] += op == "norm" and "p" in args
        fresh = {s.name for s in child.live_state} - {"m", "v"}
        found["slow average"] += any(_names(child, _next_of(child, s)) <= {s, "g"} for s in fresh)
    ideas = ("sign", "orthogonalise", "agree", "look ahead", "trust ratio", "slow average")
    assert {idea: count / found[idea] for idea in ideas if count > 500 * found[idea]} == {}


def _feeding(program: Program, arg: object) -> set[int]:
    found, todo = set[int](), [arg]
    while todo:
        if type(a := todo.pop()) is int and a not in found:
            found.add(a)
            todo += program.body[a].args
    return found


def _names(program: Program, arg: object) -> set[object]:
    inside = [a for i in _feeding(program, arg) for a in program.body[i].args if type(a) is str]
    return {arg} if type(arg) is str else set(inside)


def _next_of(program: Program, slot: str) -> object:
    return program.next_state[[s.name for s in program.state].index(slot)]


def test_unknown_mutations_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown mutation 'graft'"):
        mutate(ADAMW, Space(SPACE.ops, weights=(("graft", 1.0),)), random.Random(0))
