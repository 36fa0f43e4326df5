"""`optforge train`: one run, its logs, and what is said and written about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines import BASELINES
from experiments.files import check_can_write, write_atomic
from experiments.programs import describe, resolve_program
from experiments.provenance import provenance
from experiments.results import RunResult
from experiments.rundirs import new_run_dir, remove_if_empty
from experiments.tasks import get_task
from primitives import Program, print_program


def train_command(
    optimizer: str,
    task: str,
    *,
    lr: float,
    steps: int | None,
    seed: int,
    learn: Sequence[str] | None,
    run_dir: Path | None,
    json_file: Path | None,
) -> None:
    """Train once and print how it went; an optimizer meant for full batches gets them.

    The run directory gets TensorBoard logs, the program as `program.txt`, and `result.json`: the result, the
    program, and where the numbers come from. `json_file` gets a copy of the latter.

    Raises:
        UserError, ProgramError: before anything is written, if what was asked for does not exist or fit.
    """
    problem = get_task(task)
    name, program = resolve_program(optimizer)
    row = BASELINES.get(optimizer)
    full_batch = row is not None and row.full_batch
    check_can_write("--json", json_file)
    folder = new_run_dir(run_dir, "train", task)
    try:
        from experiments.training import train

        options: dict[str, Any] = {"seed": seed, "steps": steps, "learn": learn, "full_batch": full_batch}
        result = train(problem, program, lr, **options, log_dir=folder, progress=True)
        record = _record(name, program, learn, result) | {"full_batch": full_batch}
        text = json.dumps(record, indent=2) + "\n"
        write_atomic(folder / "program.txt", print_program(program))
        write_atomic(folder / "result.json", text)
        if json_file is not None:
            write_atomic(json_file, text)
    finally:
        remove_if_empty(folder)
    print(_summary(name, result, problem.metric, folder, " on the whole training set" if full_batch else ""))


def _record(name: str, program: Program, learn: Sequence[str] | None, result: RunResult) -> dict[str, Any]:
    about = describe(name, program)
    return {
        "optimizer": name,
        **result.as_json(),
        "learn": list(learn or []),
        "program": print_program(program),
        "key": about["key"],
        "state_bytes_per_parameter": about["state_bytes_per_parameter"],
        "provenance": provenance(),
    }


def _summary(name: str, result: RunResult, metric: str, folder: Path, batches: str) -> str:
    r = result
    lines = [
        f"{name} on {r.task}: lr {r.lr:g}, seed {r.seed}, {r.steps} steps{batches} in {r.seconds:.1f} s",
        f"  {metric}: train {r.train_loss:.4f}, validation {r.valid_loss:.4f}, test {r.test_loss:.4f}",
    ]
    if r.status == "ok" and r.valid_accuracy is not None and r.test_accuracy is not None:
        lines.append(f"  accuracy: validation {r.valid_accuracy:.1%}, test {r.test_accuracy:.1%}")
    lines += [f"  learned {key}: {value:.3g}" for key, value in r.learned.items()]
    if r.reason:
        lines.append(f"  {r.status}: {r.reason}")
    lines.append("  This is a single run with a single seed; to tell optimizers apart, use: optforge compare")
    lines.append(f"  written to {folder}; to see the curves: tensorboard --logdir {folder.parent}")
    return "\n".join(lines)
