"""The command that scores programs; `cli.commands` makes a command of it."""

from __future__ import annotations

from typing import Annotated

import typer

from optforge.experiments.cli.options import JsonFile, Steps


def score(
    programs: Annotated[list[str], typer.Argument(metavar="PROGRAM…")],
    tasks: Annotated[str, typer.Option("--tasks", "--task", metavar="NAME,…", help="Tasks to score on.")] = "proxies",
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Number of seeds; no search uses them.")] = 3,
    steps: Steps = None,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Processes that train; 0 for none but this.")] = 1,
    json_file: JsonFile = None,
) -> None:
    """Score programs as a search does: the log of their loss over AdamW's, each at its own best rate.

    \b
    Examples:
      optforge score lion muon nadam
      optforge score runs/first#1 adamw --seeds 6 --workers 2 --json scores.json
      optforge score mine.txt --tasks proxy-text,charlm
    """
    from optforge.experiments.searching.score_command import score_command

    score_command(programs, tasks, seeds=seeds, steps=steps, workers=workers, json_file=json_file)
