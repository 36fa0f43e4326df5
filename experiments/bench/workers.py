"""Suite `workers` of the bench: how much faster two local processes train than one.

The clock says something on a quiet machine only. CPU time says what two free cores would give: training has no part in
which processes wait for each other, but they share caches and memory, so that a batch may take longer.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from optforge.experiments.bench.figures import Figure, different_programs
from optforge.experiments.tasks import get_task
from optforge.primitives import Program
from optforge.search.fitness.evaluator import Evaluator, evaluating
from optforge.search.training.executors.processes import Workers

BATCHES = 8


def workers(repeats: int) -> list[Figure]:
    """Training on digits in two local processes against one."""
    programs = different_programs(32)
    by_clock, by_cpu = [], []
    for _ in range(repeats):
        (one, one_cpu), (two, two_cpu) = (training_seconds(n, programs) for n in (1, 2))
        by_clock.append(one / two)
        by_cpu.append(2 * one_cpu / two_cpu)
    return [
        Figure.at_least("two local workers / one, by the clock", median(by_clock), "x", 1.8),
        Figure.at_least("two local workers / one, if they had a core each", median(by_cpu), "x", 1.8),
    ]


def training_seconds(count: int, programs: Sequence[Program]) -> tuple[float, float]:
    """Wall-clock seconds of a batch in `count` local processes, and the processes' CPU seconds."""
    pool = Workers(evaluating(digits), count)
    try:
        for job in [pool.submit(programs) for _ in range(2 * count)]:  # so that all have begun
            pool.result(job)
        begin, begin_cpu = time.perf_counter(), sum(map(cpu_of, pool.pids))
        for job in [pool.submit(programs) for _ in range(BATCHES)]:
            pool.result(job)
        return (time.perf_counter() - begin) / BATCHES, (sum(map(cpu_of, pool.pids)) - begin_cpu) / BATCHES
    finally:
        pool.close()


def digits() -> Evaluator:
    """A population on digits, at three learning rates."""
    from optforge.search.fitness.sweep import Sweep

    return Sweep(get_task("digits"), (1e-3, 1e-2, 1e-1), (0,))


def cpu_of(pid: int) -> float:
    """CPU seconds of another process, by Linux's count."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
