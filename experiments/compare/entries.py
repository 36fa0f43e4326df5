"""From the outcomes of training to one entry per optimizer."""

from __future__ import annotations

import numpy as np

from optforge.experiments.compare.batches import Results
from optforge.experiments.compare.comparison import Costs, Entry, Protocol, Run, Tuning
from optforge.experiments.compare.statistics import censor, mean_interval
from optforge.experiments.programs import state_bytes
from optforge.primitives import Program


def runs_of(protocol: Protocol, results: Results, member: int) -> tuple[Run, ...]:
    """The reported runs of one member (its index in `results`), failed ones marked."""
    diverged_at = results.diverged_at[member]
    failed = np.zeros(len(protocol.seeds), dtype=bool)
    for losses in results.losses.values():
        failed |= censor(losses[member], diverged_at >= 0, results.start)[1]
    accuracy = {name: table[member].tolist() for name, table in results.accuracy.items()}
    return tuple(
        Run(
            seed=seed,
            start=float(results.start[k]),
            valid=float(results.losses["valid"][member, k]),
            test=float(results.losses["test"][member, k]),
            valid_accuracy=accuracy["valid"][k] if accuracy else None,
            test_accuracy=accuracy["test"][k] if accuracy else None,
            diverged_at=int(diverged_at[k]) + 1 if diverged_at[k] >= 0 else None,
            failed=bool(failed[k]),
            curve=tuple(results.curve[member, k].tolist()),
            valid_curve=tuple(results.valid_curve[member, k].tolist()) if results.valid_curve.size else (),
        )
        for k, seed in enumerate(protocol.seeds)
    )


def make_entry(
    name: str,
    program: Program,
    tuning: Tuning,
    runs: tuple[Run, ...],
    protocol: Protocol,
    costs: Costs | None = None,
    *,
    reference: bool,
) -> Entry:
    """One optimizer's row from its reported runs: means over seeds, with failed runs counted as their start."""
    counted = [run.counted for run in runs]
    accuracies = [run.test_accuracy for run in runs if run.test_accuracy is not None]
    return Entry(
        name=name,
        program=program,
        tuning=tuning,
        runs=runs,
        mean=float(np.mean(counted)),
        interval=mean_interval(counted, 1 - protocol.alpha),
        valid_mean=float(np.mean([run.start if run.failed else run.valid for run in runs])),
        accuracy=float(np.mean(accuracies)) if accuracies else None,
        state_bytes=state_bytes(program),
        statements=len(program.live.instructions),
        all_statements=len(program.body),
        costs=costs,
        reference=reference,
    )
