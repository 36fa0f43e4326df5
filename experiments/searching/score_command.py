"""`optforge score`: what a search would say of any programs, on seeds that no search uses."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optforge.experiments.errors import UserError
from optforge.experiments.files import check_can_write, finite_or_null, write_atomic
from optforge.experiments.report.document import Table, number
from optforge.experiments.searching.fresh_seeds import FreshScore, standard_error

if TYPE_CHECKING:
    from optforge.search.fitness.evaluator import Fitness

REFERENCE = "adamw"
TOGETHER = 16
"""Programs that are trained as one population."""


def score_command(
    programs: Sequence[str],
    tasks: str,
    *,
    seeds: int,
    steps: int | None,
    workers: int,
    json_file: Path | None,
) -> None:
    """Score programs and AdamW as a search does, print a table, and write it as JSON where it was asked for.

    Raises:
        UserError: for an unknown program or task, or a file that cannot be written.
    """
    import torch

    from optforge.experiments.compare.console import comparison_progress
    from optforge.experiments.programs import resolve_program, unique_names
    from optforge.experiments.report.terminal import print_notes, print_table
    from optforge.experiments.searching.run import cautions, evaluator
    from optforge.experiments.tasks import task_names
    from optforge.search.fitness.evaluator import evaluating
    from optforge.search.fitness.suite import UnusableTask
    from optforge.search.training.executors.processes import Workers

    torch.set_num_threads(1)
    check_can_write("--json", json_file)
    names = task_names(tasks)
    texts = [*programs, *([] if REFERENCE in programs else [REFERENCE])]
    found = [resolve_program(text) for text in texts]
    labels = unique_names([name for name, _ in found])
    pieces = [[p for _, p in found][i : i + TOGETHER] for i in range(0, len(found), TOGETHER)]
    pool = Workers(evaluating(functools.partial(evaluator, names, steps=steps or 0)), workers)
    with comparison_progress() as progress:
        try:
            jobs = [[pool.submit(piece, -1 - seed) for piece in pieces] for seed in range(seeds)]
            outcomes: list[list[Fitness]] = []
            total = seeds * len(pieces)
            for seed, row in enumerate(jobs):
                progress("scores", seed * len(pieces), total)
                outcomes.append([fitness for job in row for fitness in pool.result(job)])
            progress("scores", total, total)
        except UnusableTask as error:
            raise UserError(str(error)) from None
        finally:
            pool.close()
    by_program = list(zip(labels, zip(*outcomes, strict=True), strict=True))
    if failed := next((f for _, fitnesses in by_program for f in fitnesses if not f.parts), None):
        raise UserError(f"a program cannot be scored: {failed.reason}")
    print_table(_table(by_program, names))
    print_notes([
        "Log of the final validation loss over AdamW's on the same seed, each at its own best rate, ± standard error; "
        "negative is better. In brackets the best rate, its geometric mean over seeds.",
        *cautions(names, steps or 0),
    ])  # fmt: skip
    if json_file is not None:
        content = {"seeds": seeds, "programs": [_as_json(label, fitnesses) for label, fitnesses in by_program]}
        write_atomic(json_file, json.dumps(finite_or_null(content), indent=1, allow_nan=False) + "\n")


def _table(by_program: Sequence[tuple[str, Sequence[Fitness]]], tasks: Sequence[str]) -> Table:
    """A row for each task and their mean, a column for each program."""
    rows = []
    for index, task in enumerate(tasks):
        cells = [_cell([f.parts[index].score for f in fs], [f.parts[index].lr for f in fs]) for _, fs in by_program]
        rows.append((task, *cells))
    rows.append(("mean", *(_cell(FreshScore.of(fs).by_seed, []) for _, fs in by_program)))
    return Table("Scores", ("task", *(label for label, _ in by_program)), tuple(rows))


def _cell(scores: Sequence[float], rates: Sequence[float]) -> str:
    """``mean ± standard error (rate)``, without what there is not."""
    mean, error, rate = math.fsum(scores) / len(scores), standard_error(scores), _geometric(rates)
    text = "diverged" if math.isinf(mean) else f"{mean:.3f}"
    text += "" if math.isnan(error) else f" ± {error:.3f}"
    return text + ("" if math.isnan(rate) else f" ({number(rate, 2)})")


def _geometric(rates: Sequence[float]) -> float:
    finite = [math.log(rate) for rate in rates if math.isfinite(rate)]
    return math.exp(math.fsum(finite) / len(finite)) if finite else math.nan


def _as_json(label: str, fitnesses: Sequence[Fitness]) -> dict[str, Any]:
    fresh = FreshScore.of(fitnesses)
    tasks = {}
    for index, part in enumerate(fitnesses[0].parts):
        parts = [f.parts[index] for f in fitnesses]
        scores = [p.score for p in parts]
        tasks[part.task] = {
            "score": math.fsum(scores) / len(scores),
            "se": standard_error(scores),
            "by_seed": scores,
            "rates": [p.lr for p in parts],
        }
    return {"name": label, "score": fresh.mean, "se": fresh.error, "by_seed": list(fresh.by_seed), "tasks": tasks}
