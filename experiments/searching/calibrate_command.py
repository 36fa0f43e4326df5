"""`optforge calibrate`: known optimizers on the proxies and on larger tasks, and whether both rank them alike."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from optforge.experiments.errors import UserError
from optforge.experiments.files import check_can_write, finite_or_null, write_atomic
from optforge.experiments.report.document import Table, number
from optforge.experiments.searching.calibration import FEWEST, Calibration, calibrate, means

OPTIMIZERS = (
    "momentum", "nesterov", "rmsprop", "adam", "nadamw", "adabelief", "lamb", "adan", "lion", "signum", "yogi",
    "laprop", "ademamix", "adopt", "cautious-adamw", "cautious-lion", "mars", "muon", "normuon", "soap", "adafactor",
)  # fmt: skip
"""What is calibrated with by default: optimizers with a learning rate and unlike ideas."""

AGAINST = ("charlm", "mnist-vit", "shakespeare", "tinystories")
"""Larger tasks by default; those whose files are missing are left out, with a sentence."""

TOGETHER = 40
"""Most runs in one batch: eight optimizers at five rates, so that processes share a task's work."""


def calibrate_command(
    optimizers: Sequence[str],
    tasks: str,
    against: str | None,
    *,
    seeds: int,
    steps: int | None,
    against_steps: int,
    workers: int,
    storage: Path | None,
    json_file: Path | None,
) -> None:
    """Score optimizers on both kinds of tasks as a search does, print what agrees, and write JSON where asked.

    Raises:
        UserError: for an unknown optimizer or task, too few of them, or a file that cannot be written.
    """
    import torch

    from optforge.experiments.compare.console import runs_progress
    from optforge.experiments.compare.run import executor, open_store
    from optforge.experiments.programs import resolve_program
    from optforge.experiments.report.terminal import print_notes, print_table
    from optforge.experiments.searching.run import evaluator
    from optforge.experiments.tasks import task_names
    from optforge.search.fitness.suite import UnusableTask
    from optforge.search.training.store import StoreError
    from optforge.search.training.trainer import Trainer

    torch.set_num_threads(1)
    for option, file in (("--storage", storage), ("--json", json_file)):
        check_can_write(option, file)
    programs = [resolve_program(name) for name in optimizers or OPTIMIZERS]
    names = [name for name, _ in programs]
    if len(names) < FEWEST:
        raise UserError(
            f"a calibration needs at least {FEWEST} optimizers, got {len(names)}; leave them out for {len(OPTIMIZERS)}"
        )
    small, missing = task_names(tasks), list[str]()
    large = task_names(against) if against else tuple(name for name in AGAINST if _is_there(name, missing))
    try:
        store = None if storage is None else open_store(storage)
        pool = executor(workers)
        try:
            with runs_progress() as progress:
                engine = Trainer(store, pool, progress, most=TOGETHER)
                sides = []
                for side, length in ((small, steps or 0), (large, against_steps)):
                    suite = evaluator(side, steps=length, engine=engine)
                    found = [suite([p for _, p in programs], -1 - seed) for seed in range(seeds)]
                    scores = _mean([[[p.score for p in f.parts] for f in each] for each in found])
                    sides.append({task: [row[k] for row in scores] for k, task in enumerate(side)})
        finally:
            if pool is not None:
                pool.close()
            if store is not None:
                store.close()
        result = calibrate(names, *sides)
    except (StoreError, UnusableTask, ValueError) as error:
        raise UserError(str(error)) from None
    print_table(_table(result))
    print_notes([*_sentences(result, seeds), *missing])
    if json_file is not None:
        content = {"seeds": seeds, "steps": steps, "against_steps": against_steps, **result.as_json()}
        write_atomic(json_file, json.dumps(finite_or_null(content), indent=1, allow_nan=False) + "\n")


def _mean(values: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Mean over the first axis."""
    import numpy as np

    found: list[list[float]] = np.mean(np.array(values), axis=0).tolist()
    return found


def _is_there(name: str, missing: list[str]) -> bool:
    from optforge.experiments.compare.fingerprints import task_named

    try:
        task_named(name)
    except UserError as error:
        missing.append(f"{name} is left out: {error}")
        return False
    return True


def _table(found: Calibration) -> Table:
    """A row for each optimizer, best on the larger tasks first."""
    ours, theirs = means(found.proxies), means(found.larger)
    rows = []
    for k in theirs.argsort(kind="stable"):
        each = (number(found.larger[task][k], 3) for task in found.larger)
        rows.append((found.names[k], number(ours[k], 3), number(theirs[k], 3), *each))
    return Table("Log ratio to AdamW's loss", ("optimizer", "proxies", "larger tasks", *found.larger), tuple(rows))


def _sentences(found: Calibration, seeds: int) -> list[str]:
    said = [
        f"Spearman's rank correlation of the proxies with the larger tasks over {len(found.names)} optimizers: "
        f"{found.rho:.2f}, 95% interval {found.low:.2f} to {found.high:.2f} ({seeds} seed{'s' * (seeds > 1)}, each "
        "optimizer and AdamW at its own best of five rates).",
        "With each: " + ", ".join(f"{task} {rho:.2f}" for task, rho in found.by_task.items()) + ".",
    ]
    if math.isfinite(found.reliability):
        said.append(f"Reliability of the mean over proxies, by halves: {found.reliability:.2f}.")
    told = [f"{name} (rank {ours} on the proxies, {theirs} on larger tasks)" for name, ours, theirs in found.misjudged]
    return [*said, f"Misjudged: {'; '.join(told)}."] if told else [*said, "No optimizer's rank differs by a third."]
