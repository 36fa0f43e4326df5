"""Options and arguments that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MAX_SEED = 2**63 - 1  # what torch's generators take

ProgramName = Annotated[str, typer.Argument(metavar="PROGRAM")]
TaskName = Annotated[
    str, typer.Option("--task", metavar="NAME", help="What to train on; a name of: optforge tasks, or a Python file.")
]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, metavar="N", help="Random seed.")]
Steps = Annotated[int | None, typer.Option(min=1, metavar="N", help="Length of a run.", show_default="the task's own")]
Number = int | None
RunDir = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Output directory.", show_default="a new one in runs/")
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there as JSON.")]
