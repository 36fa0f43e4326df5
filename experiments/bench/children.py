"""Suite `children` of the bench: how many programs a second a search breeds and judges."""

from __future__ import annotations

import random
import time
from statistics import median

from optforge.baselines import BASELINES
from optforge.experiments.bench.figures import Figure
from optforge.primitives import subset
from optforge.primitives.analysis.fingerprint import behave, together
from optforge.search.duplicates.cache import DuplicateCache, Verdict
from optforge.search.evolution.evolution import Evolution
from optforge.search.evolution.standing import Individual
from optforge.search.space.mutation import Space


def children(repeats: int) -> list[Figure]:
    """Children per second, from mutation to the decision whether to train, in a population that evolves."""
    rates, fingerprinted = [], []
    behave(BASELINES["adamw"].program)  # compiles
    for repeat in range(repeats):
        together.cache_clear()
        space = Space(subset("lion45", "protected", "statistics", "masks", "smooth"))
        evolution = Evolution((BASELINES["adamw"].program,), space, seed=repeat, batch=32)
        cache, history = DuplicateCache(), list[Individual]()
        rng = random.Random(repeat)
        made = judged = 0
        begin = time.process_time()
        for batch in range(30):
            candidates, counts = evolution.ask(history, cache, batch)
            history += [Individual(c.number, batch, c.program, rng.random()) for c in candidates]
            made += counts.total()
            judged += counts.total() - counts[Verdict.SAME_KEY] - counts[Verdict.IGNORES_GRADIENT]
        rates.append(made / (time.process_time() - begin))
        fingerprinted.append(judged / made)
    return [
        Figure.at_least("children, mutation to cache decision", median(rates), "1/CPU-s", 5000),
        Figure("of which needed a fingerprint", median(fingerprinted), "share"),
    ]
