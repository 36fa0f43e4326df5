"""From the outcomes of a plan's trials to comparisons, one for each task and horizon, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optforge.experiments.compare.comparison import Comparison, Costs, Entry, Run, Setting, Tuning
from optforge.experiments.compare.measures import profile
from optforge.experiments.compare.plan import Plan
from optforge.experiments.compare.reduction import Unit, check
from optforge.experiments.compare.spaces import RATE, declared
from optforge.experiments.compare.statistics import compare_pairs, corrected, mean_interval
from optforge.experiments.compare.verdict import contest_sentence, verdict_sentence
from optforge.experiments.files import finite_or_null
from optforge.experiments.provenance import data_hash, provenance
from optforge.primitives.analysis.cost import state_bytes
from optforge.search.training.task import Task, parameter_shapes
from optforge.search.training.trial import Outcome

REFERENCE = "adamw"
"""Whose loss is the target of "time to target" on tasks that do not name one; without it, that of the first row."""

AllCosts = dict[tuple[str, int], Costs]
"""What each optimizer (its row) costs on each task."""


@dataclass(frozen=True)
class Contest:
    """A comparison on any number of tasks and horizons.

    Attributes:
        comparisons: one for each.
        verdict: what they say together.
        profiles: for each optimizer, on each problem that has ratios, how many times the best loss its own is, sorted.
        notes: what is to be known of discovered programs, one sentence each.
        plan: what all this was determined by.
    """

    comparisons: tuple[Comparison, ...]
    verdict: str
    profiles: dict[str, list[float]]
    notes: tuple[str, ...]
    plan: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Everything, in JSON's own types."""
        return finite_or_null({
            "verdict": self.verdict,
            "notes": list(self.notes),
            "profiles": self.profiles,
            "plan": self.plan,
            "comparisons": [comparison.as_json() for comparison in self.comparisons],
        })  # fmt: skip


def contest(
    plan: Plan, units: Sequence[Unit], find: Callable[[str], Task], costs: AllCosts, notes: tuple[str, ...] = ()
) -> Contest:
    """What all trials of `plan` came to; `find` gives a task by its name."""
    found = [_comparison(plan, unit, find(unit.task), costs) for unit in units]
    pairs = list(corrected([pair for c in found for pair in c.pairs], found[0].protocol.alpha))
    judged = []
    for c in found:
        own = tuple(pairs.pop(0) for _ in c.pairs)
        judged.append(replace(c, pairs=own, verdict=verdict_sentence(c.protocol, c.entries, own)))
    comparisons = tuple(judged)
    return Contest(comparisons, contest_sentence(comparisons), _profiles(comparisons), notes, plan.as_json())


def _comparison(plan: Plan, unit: Unit, task: Task, costs: AllCosts) -> Comparison:
    """One unit; its p values are corrected later, together with those of the others."""
    protocol = plan.protocol(task, unit.horizon)
    entries = [_entry(plan, unit, row, task, costs.get((unit.task, row))) for row in range(len(plan.rows))]
    pairs = compare_pairs(
        {e.name: [run.counted for run in e.runs] for e in entries},
        {e.name: [run.failed for run in e.runs] for e in entries},
        against=[e.name for e in entries if not e.reference],  # fewer questions need less correction
        smallest_effect=protocol.smallest_effect,
        alpha=protocol.alpha,
    )
    source = provenance() | {
        "data": data_hash(task.data()),
        "seconds of reported runs": round(math.fsum(o.seconds for runs in unit.outcomes for o in runs), 1),
        "runs": {
            "tuning, each optimizer": len(unit.tuned.settings[0]) * len(protocol.tune_seeds),
            "reported, each optimizer": len(protocol.seeds),
            "learning rates around the tuned one, each optimizer": (len(protocol.ladder) - 1)
            * len(protocol.tune_seeds),
        },
    }
    target = task.target if task.target is not None else _reference_loss(entries)
    return Comparison(protocol, tuple(entries), pairs, "", source, target)


def _entry(plan: Plan, unit: Unit, row: int, task: Task, costs: Costs | None) -> Entry:
    """One optimizer's row: means over seeds, with failed runs counted as their start."""
    what, protocol = plan.rows[row], plan.protocol(task, unit.horizon)
    check(task, unit.outcomes[row])
    runs = tuple(_run(seed, outcome) for seed, outcome in zip(protocol.seeds, unit.outcomes[row], strict=True))
    counted = [run.counted for run in runs]
    accuracies = [run.test_accuracy for run in runs if run.test_accuracy is not None]
    return Entry(
        name=what.name,
        program=what.program,
        tuning=_tuning(unit, row),
        runs=runs,
        mean=math.fsum(counted) / len(counted),
        interval=mean_interval(counted, 1 - protocol.alpha),
        valid_mean=math.fsum(run.start if run.failed else run.valid for run in runs) / len(runs),
        accuracy=math.fsum(accuracies) / len(accuracies) if accuracies else None,
        state_bytes=state_bytes(what.program, parameter_shapes(task)),
        statements=len(what.program.live.instructions),
        all_statements=len(what.program.body),
        costs=costs,
        reference=what.is_reference,
    )


def _run(seed: int, outcome: Outcome) -> Run:
    return Run(
        seed=seed,
        start=outcome.start,
        valid=outcome.loss["valid"],
        test=outcome.loss["test"],
        valid_accuracy=outcome.accuracy.get("valid"),
        test_accuracy=outcome.accuracy.get("test"),
        diverged_at=outcome.step,
        failed=outcome.failed,
        curve=outcome.curve,
        valid_curve=outcome.valid_curve,
    )


def _tuning(unit: Unit, row: int) -> Tuning:
    tuned = unit.tuned
    best = tuned.winner(row)
    grid: list[Setting] = sorted([best, *unit.around[row]], key=lambda setting: setting.values[RATE])
    return Tuning(
        rates=tuple(setting.values[RATE] for setting in grid),
        losses=tuple(setting.losses for setting in grid),
        counted=tuple(setting.counted for setting in grid),
        failed=tuple(setting.failed for setting in grid),
        lr=best.values[RATE],
        edge=bool(tuned.at_edge(row)),
        edges=tuned.at_edge(row),
        trials=tuned.settings[row],
        space=tuple(declared(tuned.spaces[row])),
        values=best.values,
    )


def _reference_loss(entries: list[Entry]) -> float:
    return next((e for e in entries if e.name == REFERENCE), entries[0]).valid_mean


def _profiles(comparisons: tuple[Comparison, ...]) -> dict[str, list[float]]:
    """Over every task, horizon and seed."""
    names = [entry.name for entry in comparisons[0].entries]
    losses = {name: [run.counted for c in comparisons for run in c.entry(name).runs] for name in names}
    starts = [run.start for c in comparisons for run in c.entries[0].runs]
    return profile(losses, starts)
