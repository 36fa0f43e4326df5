"""What `experiments.bench.learned` says in Markdown; docs/learned.md holds it between two marks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optforge.experiments.errors import UserError
from optforge.experiments.files import write_atomic
from optforge.experiments.report.markdown import markdown_table

BEGIN, END = "<!-- these tables are written by: make bench-learned -->", "<!-- end of the tables -->"
Cells = Sequence[Mapping[str, Any]]


def score(cells: Cells, best: float) -> dict[str, Any]:
    """S, the number of decades within 1.25 × the reference `best`, and the mean loss at each rate."""
    means = {}
    for lr in sorted({c["lr"] for c in cells}):
        means[lr] = float(np.mean([np.nanmin([c["final"], c["start"]]) for c in cells if c["lr"] == lr]))
    within = sum(mean <= 1.25 * best for mean in means.values())
    return {"S": sum(means.values()) / len(means) - best, "within": within, "means": means}


def reference(cells: Cells, task: str) -> float:
    """Mean final loss of AdamW at its best rate and schedule."""
    tuned = [c for c in cells if c["task"] == task and c["method"].startswith("AdamW tuned")]
    keys = {(c["method"], c["lr"]) for c in tuned}
    losses = [np.mean([c["final"] for c in tuned if (c["method"], c["lr"]) == key]) for key in keys]
    return float(np.nanmin(losses))


def sweep_table(cells: Cells) -> str:
    """Sensitivity to the initial rate: S, decades and worst mean loss over the reference, per task; best first."""
    tasks = list(dict.fromkeys(c["task"] for c in cells))
    names = [n for n in dict.fromkeys(c["method"] for c in cells) if not n.startswith("AdamW tuned")]
    rows: list[tuple[float, list[str]]] = []
    for name in names:
        row, first = [name], math.inf
        for task in tasks:
            own = [c for c in cells if c["task"] == task and c["method"] == name]
            best = reference(cells, task)
            found = score(own, best) if own else None
            if found is None:
                row += ["–"] * 4
                continue
            worst = max(found["means"].values()) / best
            seeds = len({c["seed"] for c in own})
            row += [f"{found['S']:.3f}", f"{found['within']}/{len(found['means'])}", f"{worst:.2f}×", str(seeds)]
            first = found["S"] if task == tasks[0] else first
        rows.append((first, row))
    head = ["method", *(f"{t} {what}" for t in tasks for what in ("S", "≤ 1.25×", "worst", "seeds"))]
    told = "; ".join(f"{task} {reference(cells, task):.4g}" for task in tasks)
    return markdown_table(head, [row for _, row in sorted(rows, key=lambda r: r[0])]) + f"\n\nTuned AdamW: {told}."


def suite_table(cells: Cells) -> str:
    """Final loss of a learned rate beside the plain one's on each task, and both means of the ratio."""
    rows, ratios = [], []
    plain, learned = dict.fromkeys(c["method"] for c in cells)
    for task in dict.fromkeys(c["task"] for c in cells):
        by_seed = {
            m: {c["seed"]: c["final"] for c in cells if c["task"] == task and c["method"] == m}
            for m in (plain, learned)
        }
        seeds = sorted(by_seed[plain].keys() & by_seed[learned].keys())
        if not seeds:
            continue
        means = [float(np.mean([by_seed[m][s] for s in seeds])) for m in (plain, learned)]
        single = [by_seed[learned][s] / by_seed[plain][s] for s in seeds]
        ratios.append(means[1] / means[0])
        span = f"{min(single):.3f} to {max(single):.3f}"
        rows.append([task, *(f"{m:.4g}" for m in means), f"{ratios[-1]:.3f}", span, str(len(seeds))])
    lr = cells[0]["lr"]
    head = ["task", f"{plain} at {lr:g}", f"{learned} from {lr:g}", "ratio of means", "of single seeds", "seeds"]
    average = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return markdown_table(head, rows) + f"\n\nLargest ratio {max(ratios):.3f}, geometric mean {average:.3f}."


def cost_table(rows: Cells) -> str:
    """Time and memory that a learned rate adds to a compiled step."""
    times = ["its own compiled step [ms of CPU time]", "learned, first 200 steps", "afterwards", "over 1,000 steps"]
    body = []
    for r in rows:
        whole = 0.2 * r["beginning"] + 0.8 * r["afterwards"]
        ratios = [f"{x:.2f}×" for x in (r["beginning"], r["afterwards"], whole)]
        body.append([r["program"], f"{r['milliseconds']:.2f}", *ratios, str(r["tensors"])])
    return markdown_table(["program", *times, "tensors kept for it"], body)


def tables(record: Mapping[str, Any]) -> str:
    """All that was measured, and where: parts without figures are left out."""
    parts = []
    for title, name, make in (
        ("Sensitivity to the initial rate", "sweep", sweep_table),
        ("From AdamW's usual rate", "suite", suite_table),
        ("Cost of a step", "cost", cost_table),
    ):
        if record.get(name):
            commits = ", ".join(sorted({str(c["commit"])[:12] for c in record[name]}))
            parts.append(f"### {title}\n\n{make(record[name])}\n\nSource: {commits}.")
    where = record["provenance"]
    hardware, versions = where["hardware"], where["versions"]
    parts.append(
        f"Measured on {hardware['cores']} cores ({hardware['cpu']}), {hardware['threads']} thread for each run, with "
        f"torch {versions['torch']} and Python {versions['python']}; {where['time'][:10]}. Seeds count from 0."
    )
    return "\n\n".join(parts)


def insert(path: Path, text: str) -> None:
    """Put `text` between the marks of the page at `path`.

    Raises:
        UserError: if they are not there.
    """
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{path} lacks the lines {BEGIN!r} and {END!r}, between which the tables go")
    write_atomic(path, f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
