"""The command that reports runs; `cli.commands` makes a command of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where the HTML goes.", show_default="report.html in the run's or their common folder"
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML file, and Markdown beside it, about searches, comparisons and training runs.

    Searches with the same protocol, as of evolution and its controls, are drawn on one axis.

    \b
    Examples:
      optforge report runs/first
      optforge report runs/evolution runs/random runs/constants runs/shuffled --out controls.html
    """
    from optforge.experiments.report.command import report_command

    report_command(runs, out)
