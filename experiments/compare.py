"""The fair comparison: the same learning rates, seeds, weights, batches and statistics for every optimizer."""

from __future__ import annotations

import json as json_format
import math
import time
from collections.abc import Sequence
from pathlib import Path

from experiments.batches import Progress, train_all
from experiments.comparison import LADDER, SEEDS, TUNE_SEEDS, Comparison, Protocol
from experiments.entries import make_entry, runs_of
from experiments.errors import UserError
from experiments.files import check_can_write, write_atomic
from experiments.ladder import tune
from experiments.provenance import data_hash, provenance
from experiments.statistics import compare_pairs
from experiments.verdict import verdict_sentence
from primitives import Program, Task
from primitives.task import initial_model

ALWAYS = ("adamw", "lion")
"""Baselines that are rows of every comparison on the command line."""


def compare(
    programs: Sequence[tuple[str, Program]],
    task: Task,
    *,
    ladder: Sequence[float] | None = None,
    tune_seeds: Sequence[int] = TUNE_SEEDS,
    seeds: Sequence[int] = SEEDS,
    steps: int | None = None,
    smallest_effect: float = 0.01,
    against: Sequence[str] = (),
    progress: Progress | None = None,
) -> Comparison:
    """Tune every optimizer on the same ladder of learning rates, then compare them on fresh seeds.

    A rate is selected by mean validation loss over `tune_seeds`. If any optimizer's best rate is on an end of
    the ladder, the ladder is widened there by a decade for all of them, at most twice. The reported runs use
    `seeds`, with the same initial weights and batches for all optimizers; only they touch the test split.

    Args:
        programs: names and update rules; a name that occurs again gets a number.
        task: what is trained.
        ladder: learning rates, ascending; quarter-decades from 1e-5 to 1 by default.
        tune_seeds: seeds of the tuning runs.
        seeds: seeds of the reported runs, disjoint from `tune_seeds`.
        steps: length of every run; the task's own by default.
        smallest_effect: share of the loss below which a difference does not matter.
        against: names of the optimizers that all others are tested against; every pair is tested if there are none.
        progress: called after each batch of runs.

    Raises:
        ValueError: if there is no program, one of them cannot train this task's model, or the protocol is
            unsound (see `Protocol`).
    """
    if not programs:
        raise ValueError("there is nothing to compare; name at least one optimizer")
    protocol = Protocol(
        task,
        LADDER if ladder is None else tuple(ladder),
        tuple(tune_seeds),
        tuple(seeds),
        task.steps if steps is None else steps,
        smallest_effect,
    )
    names = unique_names([name for name, _ in programs])
    rules = [program for _, program in programs]
    shapes = [tuple(p.shape) for p in initial_model(task, protocol.seeds[0]).parameters()]
    for name, program in zip(names, rules, strict=True):
        _check_trains(name, program, shapes)
    elements = sum(math.prod(s) for s in shapes)
    report = progress or (lambda what, done, total: None)

    begin = time.perf_counter()
    tunings = tune(rules, protocol, elements, report)
    tuned = time.perf_counter()
    members = [(program, tuning.lr) for program, tuning in zip(rules, tunings, strict=True)]
    results = train_all(protocol, members, protocol.seeds, ("valid", "test"), elements, "reported runs", report)
    measured = time.perf_counter()
    entries = tuple(
        make_entry(name, program, tuning, runs_of(protocol, results, index), protocol)
        for index, (name, program, tuning) in enumerate(zip(names, rules, tunings, strict=True))
    )
    pairs = compare_pairs(
        {e.name: [run.counted for run in e.runs] for e in entries},
        {e.name: [run.failed for run in e.runs] for e in entries},
        against=against,
        smallest_effect=smallest_effect,
        alpha=protocol.alpha,
    )
    source = provenance() | {
        "data": data_hash(task.data()),
        "seconds": {"tuning": round(tuned - begin, 3), "reported runs": round(measured - tuned, 3)},
        "runs": {
            "tuning, each optimizer": len(tunings[0].rates) * len(protocol.tune_seeds),
            "reported, each optimizer": len(protocol.seeds),
        },
    }
    return Comparison(protocol, entries, pairs, verdict_sentence(protocol, entries, pairs), source)


def unique_names(names: Sequence[str]) -> list[str]:
    """The names in order; one that occurred before gets the first free number: ``adamw``, ``adamw (2)``."""
    taken: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name} ({number})"
        taken.append(candidate)
    return taken


def _check_trains(name: str, program: Program, shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise `ValueError` if `program` cannot train a model with parameters of `shapes`."""
    small = [shape for shape in shapes if len(shape) < 2]
    if small and program.needs_matrix and program.fallback is None:
        raise ValueError(
            f"{name} works on rows and columns, but the model has a parameter of shape {small[0]}; "
            "give the program a fallback for such parameters"
        )


def compare_command(
    programs: list[str],
    *,
    task: str,
    seeds: int,
    tune_seeds: int,
    steps: int | None,
    json: Path | None,
    run_dir: Path | None,
) -> int:
    """`optforge compare`: AdamW, Lion and `programs` on one task; prints the verdict and tables, writes the report.

    Args:
        programs: baselines' names, program files, or ``RUN_DIR#RANK``.
        task: name of the task.
        seeds: number of reported runs of each optimizer.
        tune_seeds: number of tuning runs of each optimizer at each learning rate.
        steps: length of every run; the task's own by default.
        json: file for every run, interval and verdict, beside the same file in the run directory.
        run_dir: new folder for the report, ``runs/compare-TASK-N`` by default.

    Raises:
        UserError: if something named does not exist, or the numbers make no comparison.
    """
    import torch

    from experiments.console import comparison_progress, print_comparison
    from experiments.programs import resolve_program
    from experiments.report import write_report
    from experiments.rundirs import new_run_dir, remove_if_empty
    from experiments.tasks import get_task

    torch.set_num_threads(1)  # the runs are stacked; a second thread waits more than it works
    chosen = get_task(task)
    rows = [resolve_program(text) for text in programs]
    rows += [baseline for baseline in map(resolve_program, ALWAYS) if baseline not in rows]
    for what, count in (
        ("--seeds", seeds),
        ("--tune-seeds", tune_seeds),
        ("--steps", 1 if steps is None else steps),
    ):
        if count < 1:
            raise UserError(f"{what} must be at least 1, got {count}")
    if tune_seeds > SEEDS[0] - TUNE_SEEDS[0]:
        raise UserError(f"--tune-seeds must be at most {SEEDS[0] - TUNE_SEEDS[0]}, got {tune_seeds}")
    check_can_write("--json", json)
    folder = new_run_dir(run_dir, "compare", chosen.name)
    try:
        with comparison_progress() as progress:
            comparison = compare(
                rows,
                chosen,
                tune_seeds=range(TUNE_SEEDS[0], TUNE_SEEDS[0] + tune_seeds),
                seeds=range(SEEDS[0], SEEDS[0] + seeds),
                steps=steps,
                progress=progress,
            )
        text = json_format.dumps(comparison.as_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        write_atomic(folder / "compare.json", text)
        if json is not None:
            write_atomic(json, text)
        written = write_report(comparison, folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    finally:
        remove_if_empty(folder)
    print_comparison(comparison)
    print(f"report: {written.html}")
    return 0
