"""The command line: `optforge`. Commands import what they need when they run, so that help comes at once."""

from __future__ import annotations

import functools
import io
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from optforge.experiments.cli.calibrate import calibrate
from optforge.experiments.cli.compare import compare
from optforge.experiments.cli.meta import meta_train
from optforge.experiments.cli.options import JsonFile, ProgramName, Steps, TaskName
from optforge.experiments.cli.programs import certify, equivalent, export, show, simplify, trajectories
from optforge.experiments.cli.report import report
from optforge.experiments.cli.score import score
from optforge.experiments.cli.search import search
from optforge.experiments.cli.train import train
from optforge.experiments.cli.tune import tune
from optforge.experiments.errors import FailedError, UserError, disk_error
from optforge.experiments.tasks.places import look_up

F = TypeVar("F", bound=Callable[..., Any])

FAILED = 1
MISUSE = 2
INTERRUPTED = 130

app = typer.Typer(
    name="optforge",
    help="Search, learn and compare deep-learning optimizers.\n\n"
    "PROGRAM is an optimizer's name (adamw), a program file (mine.txt), or a rank in the hall of fame "
    "of a search (runs/first#1).",
    epilog="Begin with: optforge search --minutes 2\n\n"
    "Exit codes: 0 done; 1 diverged or failed; 2 what was asked for does not exist or fit, or the disk has no room; "
    "130 interrupted. See also: optforge equivalent --help",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def command(function: F) -> F:
    """Make `function` a command whose foreseeable failures are a sentence and an exit code, not a traceback.

    Exit codes: 0 where it did what was asked and that ended well, 1 where training diverged or something failed, 2 for
    what the person asking can mend, 130 for Ctrl-C. `function` returns its own, or nothing for 0.
    """

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            for name in [kwargs.get("task") or "", *(kwargs.get("tasks") or "").split(",")]:
                look_up(name, kwargs.get("data"))
            code = function(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("interrupted; what was finished is kept", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            error = disk_error(error) or error
            if not isinstance(error, UserError):
                from optforge.primitives import ProgramError  # slow to import, so only once something else has failed

                if not isinstance(error, ProgramError):
                    raise
            typer.echo(f"optforge: {error}", err=True)
            raise typer.Exit(FAILED if isinstance(error, FailedError) else MISUSE) from None
        if code:
            raise typer.Exit(code)

    app.command()(guarded)
    return function


for working in (train, search, tune, score, calibrate, compare):
    command(working)


@command
def ablate(
    program: ProgramName,
    task: TaskName = "digits",
    seeds: Annotated[int, typer.Option(min=2, metavar="N", help="Seeds that the intervals come from.")] = 6,
    steps: Steps = None,
    json_file: JsonFile = None,
) -> None:
    """Leave out each statement of a program and train; then find the smallest program that is not worse.

    \b
    Examples:
      optforge ablate adamw
      optforge ablate runs/first#1 --seeds 10 --json effects.json
    """
    from optforge.experiments.cli.ablate_command import ablate_command

    ablate_command(program, task=task, seeds=seeds, steps=steps, json_file=json_file)


for inspect in (show, simplify, export, certify, equivalent, trajectories, report, meta_train):
    command(inspect)


@command
def tasks() -> None:
    """List the tasks."""
    from optforge.experiments.report.listings import print_tasks

    print_tasks()


@command
def optimizers(
    memory: Annotated[bool, typer.Option("--memory", help="Measure their state, and put it beside theory.")] = False,
    json_file: JsonFile = None,
) -> None:
    """List the optimizers that have a name; with --memory, how much state they keep.

    \b
    Examples:
      optforge optimizers
      optforge optimizers --memory --json memory.json
    """
    from optforge.experiments.report.listings import print_memory, print_optimizers

    if json_file is not None and not memory:
        raise UserError("--json writes the measurements of --memory; give both")
    if memory:
        print_memory(json_file)
    else:
        print_optimizers()


@command
def digest(run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR")]) -> None:
    """Print one SHA-256 over what a search found; equal for equal searches, also resumed ones.

    \b
    Example:
      optforge digest runs/first
    """
    from optforge.experiments.rundirs import existing_run_dir

    existing_run_dir(run_dir)
    from optforge.experiments.searching import run

    typer.echo(run.digest(run_dir))


def main() -> None:
    """Entry point of the console command."""
    threading.excepthook = _of_a_thread
    os.environ["MPLBACKEND"] = "agg"  # pictures go to files, and a notebook's backend need not exist here
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # of characters that it does not have
    app()


def _of_a_thread(args: threading.ExceptHookArgs) -> None:
    """The thread that writes TensorBoard's files hands its errors to the next call, which reports them."""
    if args.exc_value is None or disk_error(args.exc_value) is None:
        threading.__excepthook__(args)
