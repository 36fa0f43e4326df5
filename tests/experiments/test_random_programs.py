"""Random programs: drawn from the whole op table, and the same for the same seed."""

from __future__ import annotations

import random

from optforge.experiments.programs.random_programs import random_program
from optforge.primitives import Program, parse_program, print_program, subset


def test_random_programs_are_varied_and_the_same_for_the_same_seed() -> None:
    def draw(seed: int) -> list[Program]:
        rng = random.Random(seed)
        return [random_program(rng, subset("all")) for _ in range(300)]

    programs = draw(0)
    assert programs == draw(0) != draw(1)
    assert len({p.key for p in programs}) > 150
    assert {op for p in programs for op, _ in p.body} == set(subset("all"))
    assert all(parse_program(print_program(p)) == p for p in programs)
