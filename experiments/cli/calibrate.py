"""The command that checks proxies; `cli.commands` makes a command of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optforge.experiments.cli.options import JsonFile


def calibrate(
    optimizers: Annotated[list[str] | None, typer.Argument(metavar="[PROGRAM…]", show_default="21 known ones")] = None,
    tasks: Annotated[str, typer.Option("--tasks", "--task", metavar="NAME,…", help="Proxies.")] = "proxies",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…", help="Larger tasks.", show_default="charlm, and of three more what has its files"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Number of seeds.")] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Length of a run on a proxy.", show_default="its own")
    ] = None,
    against_steps: Annotated[int, typer.Option(min=1, metavar="N", help="Length of a run on a larger task.")] = 1000,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that train.")] = 1,
    storage: Annotated[
        Path | None, typer.Option(metavar="FILE", help="SQLite file for outcomes; a repetition continues from it.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Check whether proxies rank known optimizers as larger tasks do.

    \b
    Examples:
      optforge calibrate --workers 2 --storage calibration.sqlite --json calibration.json
      optforge calibrate lion muon adan nadamw --tasks proxy-text,proxy-curves --against charlm --against-steps 300
    """
    from optforge.experiments.searching.calibrate_command import calibrate_command

    calibrate_command(
        optimizers or (), tasks, against, seeds=seeds, steps=steps, against_steps=against_steps, workers=workers,
        storage=storage, json_file=json_file,
    )  # fmt: skip
