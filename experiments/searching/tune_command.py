"""`optforge tune`: better numbers for one program on one task."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optforge.experiments.errors import FailedError, UserError
from optforge.experiments.files import check_can_write, write_atomic

if TYPE_CHECKING:
    from optforge.experiments.searching.constants import TunedConstants
    from optforge.primitives import Program


def tune_command(
    program: str,
    task: str,
    *,
    trials: int,
    lr: float | None,
    steps: int | None,
    sampler: str,
    seed: int,
    storage: Path | None,
    output: Path | None,
    json_file: Path | None,
) -> None:
    """Tune, print what changed, and write the tuned program where it was asked for.

    Raises:
        UserError: for an unknown program, task or sampler, or a file that cannot be written.
        FailedError: at the end, if no trial had a finite loss.
    """
    import torch

    from optforge.experiments.compare.console import runs_progress
    from optforge.experiments.compare.fingerprints import task_named
    from optforge.experiments.compare.run import open_store
    from optforge.experiments.files import finite_or_null
    from optforge.experiments.programs import resolve_program, usual_rate
    from optforge.experiments.searching.constants import SAMPLERS, tune_constants
    from optforge.primitives import print_program
    from optforge.search.training.asking import answer
    from optforge.search.training.store import StoreError
    from optforge.search.training.trainer import Trainer

    torch.set_num_threads(1)
    check_can_write("--output", output)
    check_can_write("--json", json_file)
    if sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}")
    check_can_write("--storage", storage)
    name, found = resolve_program(program)
    rate = usual_rate(program) if lr is None else lr
    options: dict[str, Any] = {"trials": trials, "steps": steps, "sampler": sampler, "seed": seed}
    asking = tune_constants(found, task_named(task), rate, **options)
    try:
        store = None if storage is None else open_store(storage)
        with runs_progress() as progress:
            tuned = answer(asking, Trainer(store, progress=progress))
    except StoreError as error:
        raise UserError(f"--storage {error}") from None
    print(sentence(name, tuned))
    for line in changes(found, rate, tuned):
        print(f"  {line}")
    if output is not None:
        write_atomic(output, print_program(tuned.program))
        print(f"program: {output}, at learning rate {tuned.lr:g}")
    if json_file is not None:
        write_atomic(json_file, json.dumps(finite_or_null(tuned.as_json()), indent=1) + "\n")
    if not math.isfinite(tuned.loss):
        raise FailedError(f"none of {tuned.trials} trials trained to the end; try a smaller --lr")


def sentence(name: str, tuned: TunedConstants) -> str:
    """What came of it, with the budget. The losses are those that selected, so the gain is flattered."""
    counts = f"{tuned.trials} trials of {len(tuned.seeds)} seeds ({tuned.failed} diverged)"
    return (
        f"{name}: validation loss {tuned.before:.4g} before and {tuned.loss:.4g} after tuning {tuned.numbers} numbers "
        f"in {counts}, on the seeds that selected"
    )


def changes(program: Program, lr: float, tuned: TunedConstants) -> list[str]:
    """Each number that moved, from what to what; the learning rate first."""
    from optforge.experiments.searching.constants import number_at, places

    pruned = program.pruned()
    lines = [f"learning rate: {lr:g} → {tuned.lr:g}"] if lr != tuned.lr else []
    for place in places(pruned):
        value = number_at(tuned.program, place.where)
        if value != place.value:
            where = pruned.hypers[place.where].name if isinstance(place.where, int) else f"in x{place.where[0]}"
            lines.append(f"{where}: {place.value:g} → {value:g}")
    return lines
