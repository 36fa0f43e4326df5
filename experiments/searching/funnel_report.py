"""What is shown and stored of the funnel and the archive: tables in the terminal, a picture, and files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optforge.experiments.compare.tables import Table, number
from optforge.experiments.files import write_atomic
from optforge.experiments.report.funnel_plot import panel
from optforge.experiments.report.plots import png
from optforge.experiments.searching.funnel_run import Correlation, Funnel, Passage
from optforge.primitives import print_program
from optforge.search.evolution.archive import Point, pareto, point
from optforge.search.funnel import PATIENCE

if TYPE_CHECKING:
    from optforge.search.evolution.evolution import Individual

ARCHIVE = "archive.json"
PICTURE = "funnel.png"
MOST_ROWS = 10


def write_archive(run_dir: Path, history: Sequence[Individual]) -> Table:
    """Write the Pareto front of a search to ``archive.json``; returns its best rows as a table.

    Fitness is the search's own score: the front is what the search saw, not an unbiased estimate.
    """
    front = pareto(map(point, history))
    rows = [_point_json(p) for p in front]
    write_atomic(run_dir / ARCHIVE, json.dumps(rows, indent=1, allow_nan=False) + "\n")
    shown = front if len(front) <= MOST_ROWS else [*front[: MOST_ROWS - 1], front[-1]]
    left_out = f", {len(shown)} of {len(front)}" if len(shown) < len(front) else ""
    return Table(
        f"Pareto front of search score, state and length{left_out}",
        ("program", "search score", "state B/param", "statements"),
        tuple((str(p.number), number(p.fitness), number(p.state_bytes), str(p.statements)) for p in shown),
    )


def _point_json(p: Point) -> dict[str, Any]:
    sizes = {"number": p.number, "fitness": p.fitness, "state_bytes": p.state_bytes, "statements": p.statements}
    return sizes | {"program": print_program(p.program.pruned())}


def stage_table(funnel: Funnel, before: Sequence[tuple[str, int, int]]) -> Table:
    """Survivors of each stage, those before the funnel (name, entered, passed) included."""
    rows: list[tuple[str, ...]] = [(name, "", str(entered), str(passed), "", "") for name, entered, passed in before]
    rows += [_stage_row(passage, list(passage.scores)) for passage in funnel.selecting]
    if funnel.meta is not None:
        rows.append(_stage_row(funnel.meta, [n for n in funnel.survivors if n in funnel.meta.scores]))
    header = ("stage", "tasks × seeds", "entered", "passed", "best", "better than AdamW")
    return Table("The funnel; scores are log ratios to tuned AdamW's loss, negative is better", header, tuple(rows), 2)


def _stage_row(passage: Passage, entered: Sequence[int]) -> tuple[str, ...]:
    stage = passage.stage
    means = [passage.mean(n) for n in entered]
    passed = str(len(passage.passed)) if stage.keep else "–"
    best = number(min(means), 3) if means else "–"
    better = f"{sum(m < 0 for m in means)}/{len(means)}"
    return (stage.name, f"{', '.join(stage.tasks)} × {len(stage.seeds)}", str(len(means)), passed, best, better)


def sentences(funnel: Funnel) -> list[str]:
    """What the funnel says of the proxy: rank correlations, and the meta-overfitting point."""
    found = [_correlation_sentence(name, c) for name, c in funnel.correlations.items()]
    if funnel.meta is not None and funnel.overfitting is not None:
        found.append(f"meta-overfitting: after program {funnel.overfitting} only the search's own task still improved")
    elif funnel.meta is not None:
        found.append(f"meta-overfitting: none seen; its own task alone would have to improve {PATIENCE} times for that")
    return found


def _correlation_sentence(name: str, c: Correlation) -> str:
    if math.isnan(c.rho):
        return f"rank correlation of search score and {name}: not defined for these {c.programs} programs"
    return f"rank correlation of search score and {name}: {c.rho:.2f} (p = {c.p:.2g}, {c.programs} programs)"


def summary(funnel: Funnel) -> dict[str, Any]:
    """The funnel in short, for the report of a search."""
    passages = {p.stage.name: f"{len(p.scores)} entered, {len(p.passed)} passed" for p in funnel.selecting}
    correlations = {f"rank correlation, {name}": number(c.rho, 3) for name, c in funnel.correlations.items()}
    return {**passages, **correlations, "meta-overfitting after program": funnel.overfitting or "none seen"}


def write_scalars(run_dir: Path, funnel: Funnel) -> None:
    """Survivors of the stages, by their number, and meta-validation over programs, for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run_dir / "tensorboard")) as writer:
        passages = [*funnel.selecting, *([] if funnel.meta is None else [funnel.meta])]
        for at, passage in enumerate(passages):
            entered = list(passage.scores) if passage is not funnel.meta else list(funnel.survivors)
            writer.add_scalar("funnel/entered", len(entered), at)
            writer.add_scalar("funnel/better than AdamW", sum(passage.mean(n) < 0 for n in entered), at)
        if funnel.meta is not None:
            for look in funnel.looks:
                writer.add_scalar("funnel/meta-validation", funnel.meta.mean(look.best.number), look.trained)


def write_picture(run_dir: Path, content: Mapping[str, Any]) -> None:
    """Draw ``funnel.png`` from what ``funnel.json`` holds, if there is a curve in it."""
    if content["curve"]:
        write_atomic(run_dir / PICTURE, png([panel(content)]))
