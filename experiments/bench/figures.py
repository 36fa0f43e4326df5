"""What all suites of the bench share: measured numbers, processor time, and programs of a young search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from optforge.baselines import BASELINES
from optforge.primitives import Program, subset

RATES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Learning rates of every program in a population."""


@dataclass(frozen=True)
class Figure:
    """One measured number: `met` says whether it reached its target, None if it has none."""

    name: str
    value: float
    unit: str
    target: float | None = None
    met: bool | None = None

    @classmethod
    def at_least(cls, name: str, value: float, unit: str, target: float) -> Figure:
        """A figure that should be at least `target`."""
        return cls(name, value, unit, target, value >= target)

    @classmethod
    def at_most(cls, name: str, value: float, unit: str, target: float) -> Figure:
        """A figure that should be at most `target`; infinity is no target."""
        return cls(name, value, unit, target, value <= target) if target < math.inf else cls(name, value, unit)


def cpu_seconds(function: Callable[[], object], count: int = 1) -> float:
    """Processor time of one call in seconds, the mean over `count`."""
    begin = time.process_time()
    for _ in range(count):
        function()
    return (time.process_time() - begin) / count


def different_programs(count: int) -> list[Program]:
    """Programs of a young search: AdamW and mutations of it that train, all of different behaviour."""
    from optforge.search.duplicates.cache import DuplicateCache
    from optforge.search.evolution.evolution import Evolution
    from optforge.search.space.mutation import Space

    evolution = Evolution((BASELINES["adamw"].program,), Space(subset("lion45", "protected")), batch=count)
    candidates, _ = evolution.ask([], DuplicateCache(), 0)
    return [c.program for c in candidates]
