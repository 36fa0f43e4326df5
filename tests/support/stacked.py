"""Shared by tests of several files."""

from __future__ import annotations

import random

from optforge.baselines import BASELINES
from optforge.primitives import Program, subset
from optforge.search.space.mutation import Space, mutate

ADAMW, LION, MUON = (BASELINES[name].program for name in ("adamw", "lion", "muon"))


SPACE = Space(subset("lion45", "protected", "statistics", "masks"), signals=("g", "p", "lr", "step", "global_norm"))


def relatives(program: Program, seed: int, count: int) -> list[Program]:
    """Descendants of a program, which share most of their statements."""
    rng = random.Random(seed)
    found = [program]
    while len(found) < count:
        found.append(mutate(rng.choice(found), SPACE, rng, tries=200)[0])
    return found
