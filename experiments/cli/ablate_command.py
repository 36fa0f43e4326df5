"""`optforge ablate`: what each statement of a program is worth on a task, and what remains without the useless ones."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from optforge.experiments.errors import FailedError, UserError
from optforge.experiments.files import check_can_write, finite_or_null, write_atomic
from optforge.experiments.programs.names import resolve_program
from optforge.experiments.report.ablation_table import effects_table
from optforge.experiments.report.terminal import print_table
from optforge.primitives import print_program

GRID = tuple(float(f"{10 ** (k / 2):.3g}") for k in range(-7, 0))


def ablate_command(name: str, *, task: str, seeds: int, steps: int | None, json_file: Path | None) -> None:
    """`optforge ablate`: print the effect of each statement and what remains; write it as JSON if asked to.

    Raises:
        UserError: if something named does not exist; FailedError if the program does not train.
    """
    import torch

    from optforge.experiments.compare.ablation import ablate
    from optforge.experiments.tasks import get_task
    from optforge.search.fitness.sweep import Sweep

    torch.set_num_threads(1)
    _, program = resolve_program(name)
    check_can_write("--json", json_file)
    if seeds < 2:
        raise UserError(f"--seeds must be at least 2, got {seeds}")
    protocol = Sweep(get_task(task), GRID, tuple(range(seeds)), steps or 0)
    try:
        found = ablate(program, protocol, progress=lambda words: print(words, file=sys.stderr))
    except ValueError as error:
        raise FailedError(str(error)) from None
    effects = [e.as_json() for e in found.effects]
    title = f"What each statement is worth: mean over {seeds} seeds, with 95 % intervals"
    print_table(effects_table(title, effects, f"{task} validation loss"))
    print(f"removed: {'; '.join(found.removed) or 'nothing'}\n\n{print_program(found.program)}", end="")
    if json_file is not None:
        content = {"task": task, "seeds": seeds, "effects": effects, "removed": found.removed}
        content |= {"program": print_program(found.program), "interval": found.interval and asdict(found.interval)}
        write_atomic(json_file, json.dumps(finite_or_null(content), indent=1) + "\n")
