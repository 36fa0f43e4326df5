"""Selecting a learning rate: the same ladder for every optimizer, widened for all where it is too narrow for one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from optforge.experiments.compare.batches import Progress, train_all
from optforge.experiments.compare.comparison import Protocol, Tuning
from optforge.experiments.compare.statistics import censor
from optforge.primitives import Program


def tune(
    programs: Sequence[Program],
    protocol: Protocol,
    elements: int,
    report: Progress = lambda what, done, total: None,
) -> list[Tuning]:
    """Select a learning rate for each program; every program is trained at every rate that any of them needed.

    `elements` is the number of parameters of the task's model.
    """
    found: dict[float, tuple[np.ndarray, np.ndarray]] = {}  # rate → losses and divergence, [programs, seeds]
    start = np.zeros(len(protocol.tune_seeds))
    fresh: tuple[float, ...] = protocol.ladder
    for widened in range(protocol.widenings + 1):
        what = "learning rates" if not widened else f"learning rates, ladder widened ({widened})"
        members = [(protocol.rule(program), lr) for program in programs for lr in fresh]
        results = train_all(protocol, members, protocol.tune_seeds, ("valid",), elements, what, report)
        start = results.start
        shape = (len(programs), len(fresh), -1)
        losses, diverged = results.losses["valid"].reshape(shape), results.diverged_at.reshape(shape) >= 0
        found |= {lr: (losses[:, k], diverged[:, k]) for k, lr in enumerate(fresh)}
        tunings = [_tuning(found, index, start) for index in range(len(programs))]
        rates = tunings[0].rates
        fresh = widen(rates, {tuning.lr for tuning in tunings})
        if not fresh:
            break
    return tunings


def widen(rates: Sequence[float], best: set[float]) -> tuple[float, ...]:
    """New learning rates for a ladder that some best rate lies on an end of: a decade more there, ascending.

    They continue the spacing of that end. Empty if no best rate lies on an end.
    """
    new: list[float] = []
    for end, neighbour in ((rates[0], rates[1]), (rates[-1], rates[-2])):
        if end in best:
            ratio = end / neighbour
            count = max(1, round(1 / abs(math.log10(ratio))))
            new += [float(f"{end * ratio**k:.10g}") for k in range(1, count + 1)]
    return tuple(sorted(new))


def _tuning(found: dict[float, tuple[np.ndarray, np.ndarray]], index: int, start: np.ndarray) -> Tuning:
    rates = tuple(sorted(found))
    losses = np.stack([found[lr][0][index] for lr in rates])
    counted, failed = censor(losses, np.stack([found[lr][1][index] for lr in rates]), start)
    best = int(counted.mean(axis=1).argmin())
    return Tuning(
        rates=rates,
        losses=tuple(map(tuple, losses.tolist())),
        counted=tuple(map(tuple, counted.tolist())),
        failed=tuple(map(tuple, failed.tolist())),
        lr=rates[best],
        edge=best in (0, len(rates) - 1),
    )
