"""Shared by tests of several files."""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from optforge.baselines import BASELINES
from optforge.primitives import Program, subset
from optforge.search.engine import Budget, Search
from optforge.search.evolution.evolution import Evolution
from optforge.search.fitness.evaluator import Evaluator, Fitness, Status, evaluating
from optforge.search.ledger import Ledger
from optforge.search.space.mutation import Space
from optforge.search.training.executors.processes import Workers

ADAMW = BASELINES["adamw"].program


SPACE = Space(subset("lion45", "protected"))


def toy_fitness(program: Program) -> Fitness:
    """A stand-in for training that is instant: some function of behaviour, with divergence now and then."""
    value = int(program.key[:8], 16) / 2**32
    if value < 0.1:
        return Fitness(math.inf, Status.DIVERGED, "toy divergence", by_rate=(math.inf,))
    return Fitness(value, Status.OK, "", 1e-3, (value,), value < 0.5)


def toy(programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
    return [toy_fitness(p) for p in programs]


def toy_factory(delay: float = 0.0, die_on: str = "") -> Evaluator:
    """A toy evaluator that may take its time, or kill its process once (the file says whether it already has)."""

    def evaluate(programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        time.sleep(delay * random.random())
        if die_on and not Path(die_on).exists():
            Path(die_on).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return toy(programs)

    return evaluate


def evolution(**options: int | str) -> Evolution:
    return Evolution((ADAMW,), SPACE, **{"seed": 7, "population": 20, "tournament": 3, "batch": 8, **options})  # type: ignore[arg-type]


def run(
    folder: Path,
    programs: int,
    workers: Workers | None = None,
    stop_after: int | None = None,
    **settings: int | str,
) -> str:
    """Search in `folder` up to `programs`, or abandon it after some batches; the ledger's digest."""
    folder.mkdir(exist_ok=True)
    fresh = not (folder / Ledger.FILE).exists()
    ledger = Ledger.create(folder, {"seed": 7}) if fresh else Ledger.open(folder)
    try:
        search = Search(evolution(**settings), ledger, workers or Workers(evaluating(toy_factory), 0))
        for count, _ in enumerate(search.run(Budget(programs=programs)), 1):
            if count == stop_after:
                break
        return ledger.digest()
    finally:
        ledger.close()


def always_dies() -> Evaluator:
    return lambda programs, generation: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[return-value]
