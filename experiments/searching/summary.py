"""What a search's JSON file tells of the search itself."""

from __future__ import annotations

from typing import Any

from optforge.primitives import print_program
from optforge.search.duplicates.cache import Verdict
from optforge.search.engine import Search


def summary_of(config: dict[str, Any], search: Search) -> dict[str, Any]:
    """What the report tells of the search itself."""
    best, curve = float("inf"), []
    for individual in search.history:
        if individual.score < best:
            best = individual.score
            curve.append((individual.number, best))
    statistics, evolution = search.statistics, search.evolution
    return {
        "config": config,
        "programs": statistics.trained,
        "seconds": round(search.ledger.seconds(), 1),
        "counters": {
            "generated": statistics.generated,
            "duplicates": statistics.duplicates,
            "diverged": statistics.diverged,
            "failed": statistics.failed,
            **{v.value.replace("_", " "): statistics.verdicts[v] for v in Verdict},
        },
        "redundant statements": statistics.redundancy,
        "cache hits": {
            "by key": statistics.cache_hits(behavioural=False),
            "by key and behaviour": statistics.cache_hits(),
        },
        "restarts": [{"number": n, "from": evolution.founded_by(n)} for n in evolution.restarts(statistics.trained)],
        "digest": search.ledger.digest(),
        "curve": curve,
        "champion": print_program(search.best[0].program.pruned()),
    }
