"""The tables of a comparison as plain text cells: terminal, Markdown and HTML all show the same ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from experiments.comparison import Comparison
from experiments.statistics import Interval, Verdict


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
    rows = []
    for e in sorted(comparison.entries, key=lambda e: e.mean):
        row = [
            e.name,
            f"{e.lr:.3g}" + (" (edge)" if e.edge else ""),
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
        rows.append(tuple(row))
    title = f"{protocol.task.name}: {protocol.task.metric} after {protocol.steps} steps"
    return Table(title, tuple(header), tuple(rows), spare=("statements", "validation loss", "state B/param"))


def pair_table(comparison: Comparison) -> Table:
    """One row per pair of optimizers, each seen from the one with the lower mean."""
    header = (
        "pair",
        "difference",
        f"{1 - comparison.protocol.alpha:.0%} interval",
        "p (Holm)",
        "p equivalent (Holm)",
    )
    rows = []
    for pair in comparison.pairs:
        seen = pair.seen_from(pair.second) if pair.difference > 0 else pair
        word = "–" if seen.verdict is Verdict.SINGLE_RUN else seen.verdict.value
        rows.append((
            f"{seen.first} − {seen.second}", number(seen.difference, 3), interval_text(seen.interval, 3),
            number(seen.p_holm, 2), number(seen.p_equivalence_holm, 2), word,
        ))  # fmt: skip
    spare = ("p equivalent (Holm)", "p (Holm)")
    return Table("paired differences of the test loss", (*header, "first is"), tuple(rows), spare=spare)


def notes(comparison: Comparison) -> list[str]:
    """What a reader needs to know to judge the tables, one sentence each."""
    protocol = comparison.protocol
    rates = comparison.entries[0].tuning.rates
    tuning, seeds = len(protocol.tune_seeds), len(protocol.seeds)
    found = [
        f"Learning rates: {len(rates)} from {rates[0]:.3g} to {rates[-1]:.3g} for every optimizer, selected by "
        f"validation loss on {tuning} tuning seed{'s' * (tuning > 1)}; reported runs use {seeds} fresh "
        f"seed{'s' * (seeds > 1)} with the same weights and batches for all.",
        f"Test loss is the mean over seeds of the final test loss, in {protocol.task.metric}; lower is better.",
        "A run that diverges or ends above its start counts as the validation loss before training.",
    ]
    if seeds == 1:
        return [
            *found,
            "SINGLE RUN: one seed each, without intervals or tests; no difference can be concluded.",
        ]
    pairs = len(comparison.pairs)
    methods = "/".join(sorted({e.interval.method for e in comparison.entries}))
    return [
        *found,
        f"Intervals ({methods}) and paired t tests are over seeds, with data and model given; intervals are for one "
        f"mean or pair, p values corrected for {pairs} pair{'s' * (pairs > 1)} (Holm).",
        f"'equivalent' means: shown to differ by less than {protocol.smallest_effect:.3g} times the smaller mean loss.",
    ]
