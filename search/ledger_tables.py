"""The tables of a ledger, and how a program and its fitness are written as a row."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Column, Float, Integer, String, Table, Text

from optforge.primitives import print_program
from optforge.search.duplicates.cache import Verdict
from optforge.search.evolution.evolution import Candidate
from optforge.search.fitness.evaluator import Fitness, Part, Status
from optforge.search.training.store import TABLES

BATCHES = Table(
    "batches",
    TABLES,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("first", Integer, nullable=False),
    Column("size", Integer, nullable=False),
    *(Column(v.value, Integer, nullable=False) for v in Verdict),
    Column("seconds", Float, nullable=False),
    Column("finished_at", Float, nullable=False),
)
PROGRAMS = Table(
    "programs",
    TABLES,
    Column("number", Integer, primary_key=True, autoincrement=False),
    *(Column(name, Integer, nullable=False) for name in ("batch", "parent")),
    Column("mutations", Text, nullable=False),
    Column("program", Text, nullable=False),
    Column("key", String(64), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    *(Column(name, Float) for name in ("score", "lr")),
    Column("edge", Integer, nullable=False),
    *(Column(name, Text, nullable=False) for name in ("by_rate", "parts")),
    *(Column(name, Integer, nullable=False) for name in ("statements", "live", "slots")),
)
REPEATS = Table(
    "repeats",
    TABLES,
    *(Column(name, Integer, primary_key=True, autoincrement=False) for name in ("batch", "number")),
    Column("score", Float),
)


def program_row(batch: int, candidate: Candidate, fitness: Fitness) -> dict[str, Any]:
    """The row of `PROGRAMS` for an evaluated program."""
    number, parent, mutations, program, identity, _ = candidate
    return {
        "number": number,
        "batch": batch,
        "parent": parent,
        "mutations": ",".join(mutations),
        "program": print_program(program),
        "key": identity.key,
        "fingerprint": identity.fingerprint,
        "status": fitness.status.name.lower(),
        "reason": fitness.reason,
        "score": finite(fitness.score),
        "lr": finite(fitness.lr),
        "edge": int(fitness.edge),
        "by_rate": json.dumps([finite(r) for r in fitness.by_rate]),
        "parts": json.dumps([(p.task, p.score, finite(p.lr), [finite(r) for r in p.by_rate]) for p in fitness.parts]),
        "statements": len(program.body),
        "live": len(program.live.instructions),
        "slots": len(program.live_state),
    }


def fitness_of(row: Any) -> Fitness:
    """The fitness in a row of `PROGRAMS`."""
    parts = tuple(Part(task, x, rate_of(lr), _losses(by_rate)) for task, x, lr, by_rate in json.loads(row.parts))
    status, by_rate = Status[row.status.upper()], _losses(json.loads(row.by_rate))
    return Fitness(score_of(row), status, row.reason, rate_of(row.lr), by_rate, bool(row.edge), parts=parts)


def score_of(row: Any) -> float:
    """The score in a row; infinite where there is none."""
    return math.inf if row.score is None else float(row.score)


def _losses(stored: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.inf if x is None else x for x in stored)


def rate_of(stored: float | None) -> float:
    """A learning rate as stored; NaN where there is none."""
    return math.nan if stored is None else stored


def finite(value: float) -> float | None:
    """A number as it is stored: None unless it is finite."""
    return value if math.isfinite(value) else None


__all__ = ["BATCHES", "PROGRAMS", "REPEATS", "finite", "fitness_of", "program_row", "rate_of", "score_of"]
