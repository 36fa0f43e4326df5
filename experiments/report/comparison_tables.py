"""The tables of a comparison, and the notes that a reader needs to judge them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optforge.experiments.compare.comparison import Comparison, Costs, Entry, Protocol
from optforge.experiments.compare.measures import median_or_censored, times_to_target, width
from optforge.experiments.compare.spaces import RATE
from optforge.experiments.compare.statistics import Interval, Verdict
from optforge.experiments.compare.verdict import task_label, tuned_dimensions
from optforge.experiments.report.document import Table, number

_BOUNDARY = " (at boundary)"


def interval_text(interval: Interval, digits: int = 3) -> str:
    """``low to high``, or what is said of a single run."""
    if math.isnan(interval.low):
        return interval.method
    return f"{number(interval.low, digits)} to {number(interval.high, digits)}"


def entry_table(comparison: Comparison) -> Table:
    """One row per optimizer, lowest mean test loss first."""
    protocol, ranked = comparison.protocol, sorted(comparison.entries, key=lambda e: e.mean)
    columns = {
        "optimizer": [e.name for e in ranked],
        "lr": [f"{e.lr:.3g}" + _BOUNDARY * (e.edge and RATE in (e.tuning.edges or (RATE,))) for e in ranked],
        "test loss": [number(e.mean) for e in ranked],
        f"{1 - protocol.alpha:.0%} interval": [interval_text(e.interval) for e in ranked],
        "validation loss": [number(e.valid_mean) for e in ranked],
    }
    if protocol.task.accuracy:
        columns["accuracy"] = ["–" if e.accuracy is None else f"{e.accuracy:.2%}" for e in ranked]
    columns["failed"] = [f"{e.diverged}/{len(protocol.seeds)}" for e in ranked]
    columns["state B/param"] = [f"{e.state_bytes:.3g}" for e in ranked]
    columns["statements"] = [_statements(e) for e in ranked]
    if any(e.costs for e in ranked):
        costs = [e.costs or Costs(math.nan, math.nan, math.nan, None) for e in ranked]
        columns["ms/step"] = [number(c.step_ms, 3) for c in costs]
        columns["peak B/param"] = [number(c.peak_bytes, 3) for c in costs]
        columns["compile s"] = [number(c.compile_seconds, 2) for c in costs]
    title = f"{task_label(comparison)}: {protocol.task.metric} after {protocol.steps} steps"
    spare = ("compile s", "statements", "peak B/param", "validation loss", "state B/param", "ms/step")
    rows = tuple(zip(*columns.values(), strict=True))
    return Table(title, tuple(columns), rows, spare=tuple(name for name in spare if name in columns))


def _statements(entry: Entry) -> str:
    dead = entry.all_statements - entry.statements
    return f"{entry.statements}" + (f" (+{dead} dead)" if dead else "")


def target_table(comparison: Comparison) -> Table:
    """How soon each optimizer gets to the target, in the order of `entry_table`; no rows where that was not watched."""
    protocol, target = comparison.protocol, comparison.target
    rows = []
    for e in sorted(comparison.entries, key=lambda e: e.mean):
        if target is None or not e.runs[0].valid_curve:
            continue
        times = times_to_target(e.runs, protocol.steps, target)
        middle, ms = median_or_censored(times), e.costs.step_ms if e.costs else math.nan
        found = math.isfinite(middle)
        row = [f"{middle:g}" if found else f"> {protocol.steps}",
               number(middle * ms / 1e3, 3) if found else f"> {protocol.steps * ms / 1e3:.3g}",
               f"{sum(map(math.isinf, times))}/{len(times)}"]  # fmt: skip
        rows.append((e.name, *row, number(e.costs.rule_ms if e.costs else None, 3)))
    header = ("time to target", "steps", "seconds", "never", "ms/step of the rule alone")
    return Table(f"median time to a validation loss of {number(target)}", header, tuple(rows))


def configuration_table(comparison: Comparison) -> Table:
    """What was tuned, where, and how much it matters; no rows where only the learning rate was."""
    header = ("tuned", "quantity", "value", "searched from", "to", "trials", "lr width [decades]")
    rows = []
    for e in comparison.entries:
        for k, dimension in enumerate(e.tuning.space):
            name = str(dimension["name"])
            ends = number(dimension["low"], 3), number(dimension["high"], 3)
            rest = (str(len(e.tuning.trials)), number(_width(e), 2)) if k == 0 else ("", "")
            value = number(e.tuning.values[name], 3) + (_BOUNDARY if name in e.tuning.edges else "")
            rows.append((e.name if k == 0 else "", name, value, *ends, *rest))
    return Table("configurations, and the ranges that were searched", header, tuple(rows), numeric=2)


def overview_table(comparisons: Sequence[Comparison]) -> Table:
    """How many times the lowest mean test loss each optimizer's own is, on every task and horizon."""
    names, rows = [e.name for e in comparisons[0].entries], []
    for c in comparisons:
        best = min(e.mean for e in c.entries)
        rows.append((task_label(c), *(f"{c.entry(n).mean / best:.3g}" if best > 0 else "–" for n in names)))
    return Table("all tasks", ("mean test loss / lowest", *names), tuple(rows))


def _width(e: Entry) -> float:
    start = sum(run.start for run in e.runs) / len(e.runs)
    return width(e.tuning.rates, [sum(row) / len(row) for row in e.tuning.counted], start)


def pair_table(comparison: Comparison) -> Table:
    """One row per pair of optimizers, each seen from the one with the lower mean."""
    header = (
        "pair",
        "difference",
        f"{1 - comparison.protocol.alpha:.0%} interval",
        "p (Holm)",
        "p equivalent (Holm)",
        "found with 80%",
    )
    rows = []
    for pair in comparison.pairs:
        seen = pair.seen_from(pair.second) if pair.difference > 0 else pair
        word = "–" if seen.verdict is Verdict.SINGLE_RUN else seen.verdict.value
        rows.append((
            f"{seen.first} − {seen.second}", number(seen.difference, 3), interval_text(seen.interval, 3),
            number(seen.p_holm, 2), number(seen.p_equivalence_holm, 2), number(seen.detectable, 2), word,
        ))  # fmt: skip
    spare = ("p equivalent (Holm)", "found with 80%", "p (Holm)")
    return Table("paired differences of the test loss", (*header, "first is"), tuple(rows), spare=spare)


def notes(comparison: Comparison, pairs: int = 0) -> list[str]:
    """What a reader needs to know to judge the tables, one sentence each; `pairs` were tested, if not only its own."""
    protocol = comparison.protocol
    seeds = len(protocol.seeds)
    found = [
        _tuned_note(comparison) if protocol.trials else _grid_note(comparison),
        f"Test loss is the mean over seeds of the final test loss, in {protocol.task.metric}; lower is better.",
        "A run that diverges or ends above its start counts as the validation loss before training.",
    ]
    if seeds == 1:
        return [
            *found,
            "SINGLE RUN: one seed each, without intervals or tests; no difference can be concluded.",
        ]
    pairs = pairs or len(comparison.pairs)
    methods = "/".join(sorted({e.interval.method for e in comparison.entries}))
    return [
        *found,
        f"Intervals ({methods}) and paired t tests are over seeds, with data, model and tuned configuration given, so "
        f"that the luck of tuning enters none; intervals are for one mean or pair, p values corrected for {pairs} "
        f"pair{'s' * (pairs > 1)} (Holm).",
        f"'equivalent' means: shown to differ by less than {protocol.smallest_effect:.3g} times the smaller mean loss.",
        "'found with 80%' is the promise of these tests: so large a true difference would be found with that "
        "chance; nothing is promised of a pair that both failed on a seed.",
    ]


def _grid_note(comparison: Comparison) -> str:
    protocol, rates = comparison.protocol, comparison.entries[0].tuning.rates
    return (
        f"Learning-rate grid: {len(rates)} points from {rates[0]:.3g} to {rates[-1]:.3g} for every optimizer, selected "
        f"by {_seeds_note(protocol)}"
    )


def _tuned_note(comparison: Comparison) -> str:
    protocol = comparison.protocol
    counts = "/".join(map(str, sorted({len(e.tuning.trials) for e in comparison.entries})))
    warmup = f" with {protocol.warmup / protocol.steps:.0%} of the steps as warm-up" if protocol.warmup else ""
    clip = f", gradients clipped to norm {protocol.clip:g}" if protocol.clip else ""
    return (
        f"Tuning: {counts} trials for every optimizer in {tuned_dimensions(protocol, comparison.entries)} "
        f"({protocol.sampler}), "
        f"{protocol.schedule} schedule{warmup}{clip}, selected by "
        f"{_seeds_note(protocol)}"
    )


def _seeds_note(protocol: Protocol) -> str:
    tuning, seeds = len(protocol.tune_seeds), len(protocol.seeds)
    return (
        f"validation loss on {tuning} tuning seed{'s' * (tuning > 1)}; reported runs use {seeds} fresh "
        f"seed{'s' * (seeds > 1)} with the same weights and batches for all."
    )
