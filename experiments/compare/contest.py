"""From the results of all jobs to comparisons, one for each task and horizon, and to what they say together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from optforge.experiments.compare.comparison import Comparison, Costs, Entry, Trial, Tuning, finite_or_null
from optforge.experiments.compare.entries import make_entry, runs_of
from optforge.experiments.compare.measures import profile
from optforge.experiments.compare.plan import FACTORS, Plan, Results, Tuned, block_size, tuning
from optforge.experiments.compare.spaces import RATE, declared
from optforge.experiments.compare.statistics import compare_pairs, corrected
from optforge.experiments.compare.verdict import contest_sentence, verdict_sentence
from optforge.experiments.compare.work import final_results
from optforge.experiments.programs import baseline_name
from optforge.experiments.provenance import data_hash, provenance
from optforge.experiments.tasks import get_task
from optforge.search.training.task import parameter_count

REFERENCE = "adamw"
"""Whose loss is the target of "time to target" on tasks that do not name one; without it, that of the first row."""


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


def contest(plan: Plan, results: Results, seconds: float, notes: tuple[str, ...] = ()) -> Contest:
    """What all jobs of `plan` came to; `seconds` is the time that they took together."""
    found = [_comparison(plan, task, horizon, results, seconds) for task, horizon in plan.units]
    pairs = list(corrected([pair for c in found for pair in c.pairs], found[0].protocol.alpha))
    judged = []
    for c in found:
        own = tuple(pairs.pop(0) for _ in c.pairs)
        judged.append(replace(c, pairs=own, verdict=verdict_sentence(c.protocol, c.entries, own)))
    comparisons = tuple(judged)
    return Contest(comparisons, contest_sentence(comparisons), _profiles(comparisons), notes, plan.as_json())


def _comparison(plan: Plan, name: str, horizon: float, results: Results, seconds: float) -> Comparison:
    """One unit; its p values are corrected later, together with those of the others."""
    task = get_task(name)
    protocol = plan.protocol(task, horizon)
    tuned = tuning(plan, name, horizon, results, block_size(plan, parameter_count(task)))
    references = [row.control or baseline_name(row.program) is not None for row in plan.rows]
    entries = []
    for row, what in enumerate(plan.rows):
        unit = f"{name} {horizon:g}"
        around = [Trial.from_json(trial) for trial in results[f"{unit} rates {row}"]["trials"]]
        runs = runs_of(protocol, final_results(results[f"{unit} final {row}"]), 0)
        costs = Costs(**{**results[f"{name} costs {row}"], "compile_seconds": _compile_seconds(plan, results, row)})
        tuned_row = _tuning(tuned, row, around)
        entries.append(make_entry(what.name, what.program, tuned_row, runs, protocol, costs, reference=references[row]))
    pairs = compare_pairs(
        {e.name: [run.counted for run in e.runs] for e in entries},
        {e.name: [run.failed for run in e.runs] for e in entries},
        against=[e.name for e in entries if not e.reference],  # fewer questions need less correction
        smallest_effect=protocol.smallest_effect,
        alpha=protocol.alpha,
    )
    source = provenance() | {
        "data": data_hash(task.data()),
        "seconds of all jobs": round(seconds, 1),
        "runs": {
            "tuning, each optimizer": len(tuned.trials[0]) * len(protocol.tune_seeds),
            "reported, each optimizer": len(protocol.seeds),
            "learning rates around the tuned one, each optimizer": (len(FACTORS) - 1) * len(protocol.tune_seeds),
        },
    }
    target = task.target if task.target is not None else _reference_loss(entries)
    return Comparison(protocol, tuple(entries), pairs, "", source, target)


def _tuning(tuned: Tuned, row: int, around: list[Trial]) -> Tuning:
    best = tuned.winner(row)
    ladder = sorted([best, *around], key=lambda trial: trial.values[RATE])
    return Tuning(
        rates=tuple(trial.values[RATE] for trial in ladder),
        losses=tuple(trial.losses for trial in ladder),
        counted=tuple(trial.counted for trial in ladder),
        failed=tuple(trial.failed for trial in ladder),
        lr=best.values[RATE],
        edge=bool(tuned.at_edge(row)),
        edges=tuned.at_edge(row),
        trials=tuned.trials[row],
        space=tuple(declared(tuned.spaces[row])),
        values=best.values,
    )


def _compile_seconds(plan: Plan, results: Results, row: int) -> float | None:
    """It was measured on the first task only."""
    found = results[f"{plan.tasks[0]} costs {row}"]["compile_seconds"]
    return None if found is None else float(found)


def _reference_loss(entries: list[Entry]) -> float:
    return next((e for e in entries if e.name == REFERENCE), entries[0]).valid_mean


def _profiles(comparisons: tuple[Comparison, ...]) -> dict[str, list[float]]:
    """Over every task, horizon and seed."""
    names = [entry.name for entry in comparisons[0].entries]
    losses = {name: [run.counted for c in comparisons for run in c.entry(name).runs] for name in names}
    starts = [run.start for c in comparisons for run in c.entries[0].runs]
    return profile(losses, starts)
