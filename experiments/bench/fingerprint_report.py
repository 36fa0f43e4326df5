"""What `experiments.bench.fingerprint_study` writes down."""

from __future__ import annotations

import os

import torch

from optforge.experiments.provenance import provenance
from optforge.experiments.report.markdown import markdown_table
from optforge.primitives import Program

Counts = dict[str, int]
Pairs = list[tuple[Program, Program]]


def interval(hits: int, total: int) -> str:
    """A share and its 95 % interval (Clopper & Pearson 1934), in percent."""
    from scipy.stats import binomtest

    if not total:
        return "–"
    low, high = binomtest(hits, total).proportion_ci(0.95)
    return f"{100 * hits / total:.3g} % [{100 * low:.2g}, {100 * high:.2g}]"


def report(halves: dict[str, tuple[Counts, Pairs, float]], seed: int, setting: dict[str, int]) -> str:
    """The text of docs/fingerprints.md."""
    every = {row: [counts[row] for counts, _, _ in halves.values()] for row in next(iter(halves.values()))[0]}
    rows = [(row, *(f"{n:,}" for n in (*found, sum(found)))) for row, found in every.items()]
    keys, _, merged, hits, missed = (sum(list(every.values())[i]) for i in (4, 5, 6, 7, 9))
    source = provenance()
    examples = "".join(
        f"```\n{lost.pruned()}```\n\ngot the fingerprint of\n\n```\n{kept.pruned()}```\n\n"
        for kept, lost in [pairs[0] for _, pairs, _ in halves.values() if pairs]
    )
    return TEXT.format(
        table=markdown_table(("", *halves, "together"), rows, numeric=1),
        **setting,
        merged_rate=interval(hits, merged),
        key_rate=interval(hits, keys),
        missed_rate=interval(missed, keys),
        rates=", ".join(f"{rate:,.0f}/s ({name})" for name, (_, _, rate) in halves.items()),
        examples=f"Collisions found, say:\n\n{examples}" if examples else "",
        seed=seed,
        count=sum(every["programs drawn"]),
        commit=source["commit"],
        torch=torch.__version__.split("+")[0],
        cores=os.cpu_count(),
    )


TEXT = """\
# How well fingerprints tell programs apart

A fingerprint is a hash of what a program does on fixed probes: updates and live state over {probes} steps, {elements}
elements each, rounded to about ten digits (`primitives/analysis/fingerprint.py`). A search trains one program of each
fingerprint. Two mistakes are possible: a *collision* merges rules that differ, and a *miss* trains one rule twice.

Both are measured against trajectories: {steps} steps in float64 in which the program's own updates move the parameter,
in {trials} trials with random starts, learning rates and gradients of sizes 1e-5 to 1, log-normally spread. Nothing of
it is shared with the probes. Trajectories are equal if every update agrees to a relative 1e-6 (or 1e-12 of the largest
number of its step) as long as both are finite. Among all programs of one fingerprint, each class of equal trajectories
after the largest counts as a collision: a rule that is not tried. Misses are found by sorting all trajectories.

Half of the programs are random and well-typed over the whole op table; half lie on chains of 20 mutations from AdamW,
as a search makes them. Programs whose update no gradient reaches, and those not finite on the probes, are rejected.

{table}

With 95 % intervals:

- **{key_rate} of the programs that differ in key are lost to a collision**, or {merged_rate} of the merges;
- {missed_rate} are trained although an equal one was known.

No key may have two fingerprints.

Collisions are programs that differ only where the probes do not go: thresholds that are passed late in training, or
overflow. Misses are mostly programs whose updates agree while their state does not.

{examples}Batched fingerprinting ran at {rates} of processor time.

Measured by `python -m experiments.bench.fingerprint_study --programs {count} --seed {seed}` at commit
`{commit}` with torch {torch}, one thread on a machine of {cores} cores.
"""
