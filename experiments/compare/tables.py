"""The tables of a comparison as plain text cells: terminal, Markdown and HTML all show the same ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from optforge.experiments.compare.comparison import Comparison, Costs, Entry, Protocol
from optforge.experiments.compare.measures import median_or_censored, times_to_target, width
from optforge.experiments.compare.spaces import RATE
from optforge.experiments.compare.statistics import Interval, Verdict


def place(comparison: Comparison) -> str:
    """The task of a comparison, with the horizon if it is not the task's own: ``digits``, ``digits ×4``."""
    protocol = comparison.protocol
    return protocol.task.name + (f" ×{protocol.horizon:g}" if protocol.horizon != 1 else "")


@dataclass(frozen=True)
class Table:
    """A title, column names, and rows of text; columns from `numeric` on are numbers.

    `spare` names columns that may be left out where there is no room, the first to go first.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: int = 1
    spare: tuple[str, ...] = ()

    def without(self, column: str) -> Table:
        """The same table without one of its columns."""
        at = self.header.index(column)
        header, *rows = ((*row[:at], *row[at + 1 :]) for row in (self.header, *self.rows))
        return replace(self, header=header, rows=tuple(rows), spare=tuple(s for s in self.spare if s != column))


def number(x: float | None, digits: int = 4) -> str:
    """Text of a number to `digits` significant digits; a dash for None and NaN."""
    return "–" if x is None or math.isnan(x) else f"{x:.{digits}g}"


def interval_text(interval: Interval, digits: int = 3) -> str:
    """``low to high``, or what is said of a single run."""
    if math.isnan(interval.low):
        return interval.method
    return f"{number(interval.low, digits)} to {number(interval.high, digits)}"


def entry_table(comparison: Comparison) -> Table:
    """One row per optimizer, lowest mean test loss first."""
    protocol = comparison.protocol
    seeds = len(protocol.seeds)
    header = [
        "optimizer",
        "lr",
        "test loss",
        f"{1 - protocol.alpha:.0%} interval",
        "validation loss",
    ]
    header += ["accuracy"] if protocol.task.accuracy else []
    header += ["failed", "state B/param", "statements"]
    costs = ["ms/step", "peak B/param", "compile s"] if any(e.costs for e in comparison.entries) else []
    rows = []
    for e in sorted(comparison.entries, key=lambda e: e.mean):
        row = [
            e.name,
            f"{e.lr:.3g}" + (" (edge)" if e.edge and RATE in (e.tuning.edges or (RATE,)) else ""),
            number(e.mean),
            interval_text(e.interval),
        ]
        row += [number(e.valid_mean)]
        row += ["–" if e.accuracy is None else f"{e.accuracy:.2%}"] if protocol.task.accuracy else []
        dead = e.all_statements - e.statements
        row += [
            f"{e.diverged}/{seeds}",
            f"{e.state_bytes:g}",
            f"{e.statements}" + (f" (+{dead} dead)" if dead else ""),
        ]
        if costs:
            c = e.costs or Costs(math.nan, math.nan, math.nan, None)
            row += [number(c.step_ms, 3), number(c.peak_bytes, 3), number(c.compile_seconds, 2)]
        rows.append(tuple(row))
    title = f"{place(comparison)}: {protocol.task.metric} after {protocol.steps} steps"
    spare = ("compile s", "statements", "peak B/param", "validation loss", "state B/param", "ms/step")
    kept = tuple(name for name in spare if name in (*header, *costs))
    return Table(title, (*header, *costs), tuple(rows), spare=kept)


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
    """What was tuned, where, and how much it matters; no rows where only learning rates of a ladder were."""
    header = ("tuned", "quantity", "value", "searched from", "to", "trials", "lr width [decades]")
    rows = []
    for e in comparison.entries:
        for k, dimension in enumerate(e.tuning.space):
            name = str(dimension["name"])
            ends = number(dimension["low"], 3), number(dimension["high"], 3)
            rest = (str(len(e.tuning.trials)), number(_width(e), 2)) if k == 0 else ("", "")
            value = number(e.tuning.values[name], 3) + (" (edge)" if name in e.tuning.edges else "")
            rows.append((e.name if k == 0 else "", name, value, *ends, *rest))
    return Table("configurations, and the ranges that were searched", header, tuple(rows), numeric=2)


def overview_table(comparisons: Sequence[Comparison]) -> Table:
    """How many times the lowest mean test loss each optimizer's own is, on every task and horizon."""
    names, rows = [e.name for e in comparisons[0].entries], []
    for c in comparisons:
        best = min(e.mean for e in c.entries)
        rows.append((place(c), *(f"{c.entry(n).mean / best:.3g}" if best > 0 else "–" for n in names)))
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
        _tuned_note(comparison) if protocol.trials else _ladder_note(comparison),
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


def _ladder_note(comparison: Comparison) -> str:
    protocol, rates = comparison.protocol, comparison.entries[0].tuning.rates
    return (
        f"Learning rates: {len(rates)} from {rates[0]:.3g} to {rates[-1]:.3g} for every optimizer, selected by "
        f"{_seeds_note(protocol)}"
    )


def _tuned_note(comparison: Comparison) -> str:
    protocol = comparison.protocol
    counts = "/".join(map(str, sorted({len(e.tuning.trials) for e in comparison.entries})))
    warmup = f" with {protocol.warmup / protocol.steps:.0%} of the steps as warm-up" if protocol.warmup else ""
    clip = f", gradients clipped to norm {protocol.clip:g}" if protocol.clip else ""
    return (
        f"Tuning: {counts} trials for every optimizer in {dimensions(protocol, comparison.entries)} "
        f"({protocol.sampler}), "
        f"{protocol.schedule} schedule{warmup}{clip}, selected by "
        f"{_seeds_note(protocol)}"
    )


def dimensions(protocol: Protocol, entries: Sequence[Entry]) -> str:
    """In how many dimensions optimizers were tuned, with those of a control that has fewer."""
    fewer = {e.name: len(e.tuning.space) for e in entries if 0 < len(e.tuning.space) < protocol.dimensions}
    named = "".join(f", {name} in {count}" for name, count in fewer.items())
    return f"{protocol.dimensions} dimension{'s' * (protocol.dimensions > 1)}{named}"


def _seeds_note(protocol: Protocol) -> str:
    tuning, seeds = len(protocol.tune_seeds), len(protocol.seeds)
    return (
        f"validation loss on {tuning} tuning seed{'s' * (tuning > 1)}; reported runs use {seeds} fresh "
        f"seed{'s' * (seeds > 1)} with the same weights and batches for all."
    )
