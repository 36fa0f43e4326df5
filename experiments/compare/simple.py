"""The simple comparison that ends a search: one task, one ladder of learning rates for every optimizer, all else equal.

`experiments.compare.command` has the full one, of which this shares protocol, runs and statistics.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from optforge.experiments.compare.batches import Progress, train_all
from optforge.experiments.compare.comparison import LADDER, SEEDS, TUNE_SEEDS, Comparison, Protocol
from optforge.experiments.compare.entries import make_entry, runs_of
from optforge.experiments.compare.ladder import tune
from optforge.experiments.compare.statistics import compare_pairs
from optforge.experiments.compare.verdict import verdict_sentence
from optforge.experiments.programs import baseline_name, unique_names
from optforge.experiments.provenance import data_hash, provenance
from optforge.primitives import Program
from optforge.search.training import Task
from optforge.search.training.task import initial_model, trainable


def compare(
    programs: Sequence[tuple[str, Program]],
    task: Task,
    *,
    ladder: Sequence[float] | None = None,
    tune_seeds: Sequence[int] = TUNE_SEEDS,
    seeds: Sequence[int] = SEEDS,
    steps: int | None = None,
    smallest_effect: float = 0.01,
    schedule: str = "constant",
    warmup: int = 0,
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
        schedule: of the learning rate, a name in `search.training.schedule.SCHEDULES`.
        warmup: steps in which the rate rises.
        against: names of the references that all others are tested against; if there are none, every pair is tested,
            and references are the baselines.
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
        schedule=schedule,
        warmup=warmup,
    )
    names = unique_names([name for name, _ in programs])
    rules = [program for _, program in programs]
    shapes = [tuple(p.shape) for p in trainable(initial_model(task, protocol.seeds[0])).values()]
    for name, program in zip(names, rules, strict=True):
        check_trains(name, program, shapes)
    elements = sum(math.prod(s) for s in shapes)
    report = progress or (lambda what, done, total: None)

    begin = time.perf_counter()
    tunings = tune(rules, protocol, elements, report)
    tuned = time.perf_counter()
    members = [(protocol.rule(program), tuning.lr) for program, tuning in zip(rules, tunings, strict=True)]
    results = train_all(protocol, members, protocol.seeds, ("valid", "test"), elements, "reported runs", report)
    measured = time.perf_counter()
    entries = []
    for index, (name, program, tuning) in enumerate(zip(names, rules, tunings, strict=True)):
        reference = name in against if against else baseline_name(program) is not None
        runs = runs_of(protocol, results, index)
        entries.append(make_entry(name, program, tuning, runs, protocol, reference=reference))
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
    return Comparison(protocol, tuple(entries), pairs, verdict_sentence(protocol, entries, pairs), source)


def check_trains(name: str, program: Program, shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise `ValueError` if `program` cannot train a model with parameters of `shapes`."""
    small = [shape for shape in shapes if len(shape) < 2]
    if small and program.needs_matrix and program.fallback is None:
        raise ValueError(
            f"{name} works on rows and columns, but the model has a parameter of shape {small[0]}; "
            "give the program a fallback for such parameters"
        )
