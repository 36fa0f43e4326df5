"""What the funnel has trained, in an SQLite file beside the ledger, so that nothing is trained twice."""

from __future__ import annotations

import functools
import json
import math
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optforge.experiments.errors import UserError
from optforge.experiments.rundirs import FUNNEL
from optforge.experiments.searching.presets import SCHEDULE, WARMUP
from optforge.experiments.tasks import get_task
from optforge.primitives import Program
from optforge.search.fitness.evaluator import Evaluator, Fitness, Status, evaluating
from optforge.search.fitness.sweep import Sweep
from optforge.search.funnel import Stage

Report = Callable[[str, int, int], None]


class Store:
    """Outcomes by task, protocol and structural key of the program. Each is on the disk before the next begins.

    Raises:
        UserError: if the file cannot be read or written.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / FUNNEL
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None)
            self._db.execute(
                "create table if not exists outcomes (protocol text, program text, outcome text,"
                " primary key (protocol, program)) without rowid"
            )
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from None

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def get(self, protocol: str, program: Program) -> Fitness | None:
        """The outcome of `program`, if it is known; `rungs` are not kept."""
        query = "select outcome from outcomes where protocol = ? and program = ?"
        try:
            row = self._db.execute(query, (protocol, program.key)).fetchone()
            return None if row is None else _fitness(json.loads(row[0]))
        except (sqlite3.DatabaseError, ValueError, KeyError, TypeError) as error:
            raise self._unusable(error) from None

    def put(self, protocol: str, program: Program, fitness: Fitness) -> None:
        """Keep an outcome."""
        row: dict[str, Any] = {"status": fitness.status.value, "reason": fitness.reason, "edge": fitness.edge}
        if fitness.status is Status.OK:
            row |= {"score": fitness.score, "lr": fitness.lr, "by_seed": list(fitness.by_seed)}
        try:
            self._db.execute(
                "insert or replace into outcomes values (?, ?, ?)", (protocol, program.key, json.dumps(row))
            )
        except sqlite3.DatabaseError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: Exception) -> UserError:
        return UserError(f"{self.path} cannot be used: {error}; if it is damaged, delete it and it is computed again")


def _fitness(row: dict[str, Any]) -> Fitness:
    numbers = {"score": math.inf, "lr": math.nan, "by_seed": [], **row}
    return Fitness(
        score=float(numbers["score"]),
        status=Status(str(row["status"])),
        reason=str(row["reason"]),
        lr=float(numbers["lr"]),
        edge=bool(row["edge"]),
        by_seed=tuple(numbers["by_seed"]),
    )


def train(
    store: Store, stage: Stage, task: str, programs: Mapping[int, Program], workers: int, report: Report
) -> dict[int, Fitness]:
    """Outcomes of `programs` on one of a stage's tasks, by their numbers; only what the store lacks is trained.

    Each program is trained by itself, so that its outcome is the same to the last digit whatever else is there. What
    failed (rather than diverged) says nothing of the program: it is not kept, and tried again next time.
    """
    from optforge.search.training.executors.processes import Workers

    steps = stage.steps or get_task(task).steps
    protocol = json.dumps([task, steps, stage.ladder, stage.seeds, SCHEDULE, WARMUP])
    distinct = {program.key: program for program in programs.values()}
    found = {key: store.get(protocol, program) for key, program in distinct.items()}
    missing = [key for key, outcome in found.items() if outcome is None]
    if missing:
        what = f"{stage.name}: {task}"
        factory = functools.partial(_evaluator, task, stage.ladder, stage.seeds, steps)
        pool = Workers(evaluating(factory), min(workers, len(missing)))
        try:
            jobs = {key: pool.submit([distinct[key].pruned()]) for key in missing}
            for done, (key, job) in enumerate(jobs.items(), 1):
                (outcome,) = pool.result(job)
                found[key] = outcome
                if outcome.status is not Status.FAILED:
                    store.put(protocol, distinct[key], outcome)
                report(what, done, len(missing))
        finally:
            pool.close()
    outcomes = {key: known for key, known in found.items() if known is not None}
    return {number: outcomes[program.key] for number, program in programs.items()}


def _evaluator(task: str, ladder: tuple[float, ...], seeds: tuple[int, ...], steps: int) -> Evaluator:
    """Made inside each worker; without a race, as what is measured here is reported."""

    return Sweep(get_task(task), ladder, seeds, steps, SCHEDULE, round(WARMUP * steps))
