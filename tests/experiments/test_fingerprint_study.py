"""The study of fingerprints counts what it says it counts."""

from __future__ import annotations

import random

import pytest
import torch

from optforge.baselines import BASELINES
from optforge.experiments.bench.fingerprint_report import report
from optforge.experiments.bench.fingerprint_study import (
    SETTING,
    classes,
    divided,
    draw_programs,
    same,
    study,
    trajectories,
)
from optforge.experiments.programs.random_programs import random_program
from optforge.primitives import Builder, Program, parse_program, print_program, subset

LION, ADAMW = BASELINES["lion"].program, BASELINES["adamw"].program


def clipped(bound: float) -> Program:
    b = Builder()
    return b.build(b.clip(b.g, bound))


def scaled_state(factor: float) -> Program:
    b = Builder()
    m = b.slot("m")
    m.next = b.lerp(m, b.g * factor, 0.1)
    return b.build(b.sign(m.next))


def test_random_programs_are_varied_and_the_same_for_the_same_seed() -> None:
    def draw(seed: int) -> list[Program]:
        rng = random.Random(seed)
        return [random_program(rng, subset("all")) for _ in range(300)]

    programs = draw(0)
    assert programs == draw(0) != draw(1)
    assert len({p.key for p in programs}) > 150
    assert {op for p in programs for op, _ in p.body} == set(subset("all"))
    assert all(parse_program(print_program(p)) == p for p in programs)


def test_draws_are_half_and_half() -> None:
    drawn, chains = draw_programs(45, seed=3)
    assert (len(drawn), len(chains)) == (22, 23)
    assert draw_programs(45, seed=3) == (drawn, chains)
    with pytest.raises(AssertionError):
        assert draw_programs(45, seed=4)[1] == chains


def test_trajectories_are_told_apart_by_a_millionth_only() -> None:
    b = Builder()
    runs = trajectories([LION, LION.with_defaults(beta1=0.9 + 1e-12), LION.with_defaults(beta1=0.91), ADAMW,
                         ADAMW.with_defaults(eps=1.001e-8), b.build(b.log(b.g))])  # fmt: skip
    assert same(runs[0], runs[0])
    assert same(runs[5], runs[5]), "not a number, both"
    assert not any(same(runs[i], runs[j]) for i in range(6) for j in range(i) if (j, i) != (0, 1))
    assert divided([0, 3, 0, 2], runs) == [[0, 0], [3], [2]]
    assert sorted(map(sorted, classes(runs[[0, 3, 0, 5, 2]]))) == [[0, 2], [1], [3], [4]]


def test_counts() -> None:
    b = Builder()
    ignoring, infinite = b.build(b.p * 2.0), b.build(b.g / 0.0)
    programs = [LION, LION, clipped(150.0), clipped(160.0), scaled_state(1.0), scaled_state(2.0), ignoring, infinite]
    found = study(programs)
    assert found.counts == {
        "programs drawn": 8,
        "of which the gradient reaches the update": 7,
        "of which finite on the probes": 6,
        "of these, merged by key": 1,
        "distinct keys": 5,
        "keys with more than one fingerprint": 0,
        "merged by fingerprint, beyond keys": 1,  # the clips: no probe reaches 150
        "collisions: other rules lost by that": 0,
        "more for gradients of size 100": 1,
        "misses: not merged, though trajectories are equal": 1,  # the signs
        "of which differ on the probes in state only": 1,
    }
    text = report({"all": found}, 0, SETTING)
    assert "| programs drawn | 8 | 8 |" in text
    assert torch.__version__.split("+")[0] in text
