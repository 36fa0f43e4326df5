"""Train any number of runs for a comparison, in batches that fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optforge.experiments.compare.comparison import Protocol
from optforge.primitives import Program

MAX_RUNS = 128
"""Most training runs in one batch."""

ROOM = 1_000_000
"""Most model parameters in one batch, over all of its runs: bounds memory for larger models."""

ROOM_OF_GPU = 64_000_000
"""The same on an accelerator, which is idle with less: steps of a few runs take as long as those of fifty."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many runs are finished, and how many are known to be needed."""


@dataclass(frozen=True)
class Results:
    """Outcomes of all runs: ``[members, seeds]`` each, curves with the points last; `start` is ``[seeds]``."""

    losses: dict[str, np.ndarray]
    accuracy: dict[str, np.ndarray]
    start: np.ndarray
    diverged_at: np.ndarray
    curve: np.ndarray
    valid_curve: np.ndarray


def train_all(
    protocol: Protocol,
    members: Sequence[tuple[Program, float]],
    seeds: Sequence[int],
    splits: Sequence[str],
    elements: int,
    what: str,
    report: Progress,
    watch: bool = False,
    room: int = ROOM,
) -> Results:
    """Train every member from every seed, in batches that fit in memory; with `watch`, `valid_curve` is not empty.

    A batch holds all members of its seeds where it can, so that what is compared is computed in the same
    call. `elements` is the number of parameters of a model, `room` the most of a batch.
    """
    from optforge.search.training.population.members import train_members

    limit = max(1, min(MAX_RUNS, room // max(1, elements)))
    seeds_at_once = max(1, limit // len(members))
    members_at_once = max(1, limit // seeds_at_once)
    columns = []
    done, total = 0, len(members) * len(seeds)
    report(what, done, total)
    for s in range(0, len(seeds), seeds_at_once):
        some_seeds = seeds[s : s + seeds_at_once]
        rows = []
        for m in range(0, len(members), members_at_once):
            some = members[m : m + members_at_once]
            options: dict[str, Any] = {"steps": protocol.steps, "splits": splits, "watch": watch}
            rows.append(train_members(protocol.task, some, some_seeds, **options))
            done += len(some) * len(some_seeds)
            report(what, done, total)
        columns.append(rows)

    def table(get: Callable[..., object], axis: int = 0) -> np.ndarray:
        return np.concatenate([np.concatenate([np.asarray(get(o)) for o in rows], axis) for rows in columns], axis + 1)

    return Results(
        losses={name: table(lambda o, n=name: o.losses[n]) for name in splits},
        accuracy={name: table(lambda o, n=name: o.accuracy[n]) for name in splits if protocol.task.accuracy},
        start=np.concatenate([np.asarray(rows[0].start, dtype=np.float64) for rows in columns]),
        diverged_at=table(lambda o: o.diverged_at),
        curve=np.moveaxis(table(lambda o: o.curve, axis=1), 0, -1),
        valid_curve=np.moveaxis(table(lambda o: o.valid_curve, axis=1), 0, -1) if watch else np.empty(0),
    )
