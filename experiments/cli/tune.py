"""The command that tunes the numbers in a program; `cli.commands` makes a command of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optforge.experiments.cli.options import JsonFile, ProgramName, Steps


def tune(
    program: ProgramName,
    task: Annotated[str, typer.Option(metavar="NAME", help="What to train.")] = "digits",
    trials: Annotated[
        int, typer.Option(min=1, metavar="N", help="Configurations, the program as it is included.")
    ] = 64,
    lr: Annotated[
        float | None,
        typer.Option(min=1e-12, metavar="RATE", help="Of the first trial.", show_default="middle of the usual range"),
    ] = None,
    steps: Steps = None,
    sampler: Annotated[str, typer.Option(metavar="NAME", help="tpe or cmaes.")] = "tpe",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Of the sampler.")] = 0,
    storage: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the trials in this SQLite file, and go on from there.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tuned program there.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Tune the numbers in a program with Optuna: literals, hyperparameters and learning rate.

    \b
    Examples:
      optforge tune runs/first#1 --trials 128 --output tuned.txt
      optforge tune adamw --task charlm --trials 32 --storage trials.sqlite
    """
    from optforge.experiments.searching.tune_command import tune_command

    tune_command(
        program, task, trials=trials, lr=lr, steps=steps, sampler=sampler, seed=seed, storage=storage,
        output=output, json_file=json_file,
    )  # fmt: skip
