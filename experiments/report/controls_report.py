"""Searches beside each other at equal budgets: evolution and its controls."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optforge.experiments.report.document import Figures, Paragraph, Section, Table, number
from optforge.experiments.report.runs import SearchRun
from optforge.experiments.report.search_figures import controls_figure

_STRATEGIES = (
    "random: programs of the start's size drawn at random; constants: only numbers are mutated; shuffled: evolution "
    "that is told the fitness of others. Only what evolution finds beyond these is owed to selection."
)


def labels(runs: Sequence[SearchRun]) -> list[str]:
    """A name for each search: strategy and, where that is not unique, seed, then folder."""
    for form in ("{0}", "{0}, seed {1}", "{0}, {2}", "{0}, {3}"):
        names = [form.format(r.strategy, r.config.get("seed"), r.folder.name, r.folder) for r in runs]
        if len(set(names)) == len(names):
            break
    return names


def control_section(runs: Sequence[SearchRun]) -> Section:
    """All searches on one axis, and in a table."""
    named = list(zip(labels(runs), runs, strict=True))
    figure = controls_figure(named, min(len(run.rows) for run in runs))
    return Section("Controls", (Figures((figure,)), _table(runs), Paragraph(_STRATEGIES, "note")))


def control_sentence(runs: Sequence[SearchRun]) -> str:
    """The best scores at equal budgets, and whether evolution is ahead."""
    budget = min(len(r.rows) for r in runs)
    scores: dict[str, list[float]] = {}
    for run in runs:
        scores.setdefault(run.strategy, []).append(min((s for _, s in run.best_so_far(budget)), default=math.inf))
    each = runs[0].steps_each
    steps = f" ({budget * each:,} candidate-steps)" if each else ""
    told = [
        f"{name} {number(min(s))}" + (f" to {number(max(s))} ({len(s)} runs)" if len(s) > 1 else "")
        for name, s in sorted(scores.items(), key=lambda item: min(item[1]))
    ]
    single = all(len(s) == 1 for s in scores.values())
    evolved = min(scores.get("evolution", [-math.inf]))
    ahead = [name for name, s in scores.items() if name != "evolution" and min(s) <= evolved]
    return (
        f"At equal budgets of {budget:,} programs{steps}, the best scores are: {', '.join(told)}."
        + (f" Evolution is not ahead of {' and '.join(ahead)}: it has shown no discovery." if ahead else "")
        + " With one run of each, the order may be chance." * single
    )


def _table(runs: Sequence[SearchRun]) -> Table:
    budget = min(len(r.rows) for r in runs)
    rows = []
    for label, run in zip(labels(runs), runs, strict=True):
        best = min((s for _, s in run.best_so_far(budget)), default=math.inf)
        start = run.rows[0].score if run.rows else math.nan
        steps = run.steps_each
        rows.append((
            label, number(best), f"{best - start:+.4g}" if math.isfinite(best - start) else "–",
            number(min((r.score for r in run.rows), default=math.inf)), f"{len(run.rows):,}",
            f"{len(run.rows) * steps:,}" if steps else "–",
        ))  # fmt: skip
    header = (
        "strategy", f"best of the first {budget:,}", "against its start", "best of all", "programs", "candidate-steps"
    )  # fmt: skip
    return Table("", header, tuple(rows))
