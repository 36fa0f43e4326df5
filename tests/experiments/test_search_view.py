"""What is seen of a running search: how different the living are."""

from __future__ import annotations

import math

from optforge.baselines import BASELINES
from optforge.experiments.searching.view import Diversity


def test_programs_that_differ_in_numbers_only_are_one_structure() -> None:
    adam, lion = BASELINES["adamw"].program, BASELINES["lion"].program
    diversity = Diversity(4)
    for program, score in ((adam, 0.5), (adam.with_defaults(beta1=0.5), 0.25), (lion, 0.25000001), (lion, math.inf)):
        diversity.add(program, score)
    assert (diversity.living, diversity.structures, diversity.behaviours) == (4, 2, 3)
    for _ in range(3):
        diversity.add(lion, 0.1)
    assert (diversity.living, diversity.structures, diversity.behaviours) == (4, 1, 2)  # the oldest have left
