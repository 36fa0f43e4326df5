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

from optforge.experiments.cli.compare import compare
from optforge.experiments.cli.meta import meta_train
from optforge.experiments.cli.programs import ProgramName, certify, equivalent, export, show, simplify, trajectories
from optforge.experiments.cli.report import report
from optforge.experiments.cli.search import calibrate, score, search, tune
from optforge.experiments.errors import FailedError, UserError, disk_error
from optforge.experiments.tasks.places import look_up

F = TypeVar("F", bound=Callable[..., Any])

FAILED = 1
MISUSE = 2
INTERRUPTED = 130
MAX_SEED = 2**63 - 1  # what torch's generators take

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


TaskName = Annotated[
    str, typer.Option("--task", metavar="NAME", help="What to train on; a name of: optforge tasks, or a Python file.")
]
Seed = Annotated[
    int, typer.Option(min=0, max=MAX_SEED, metavar="N", help="Of initial weights, batches and chance in general.")
]
Steps = Annotated[int | None, typer.Option(min=1, metavar="N", help="Length of a run.", show_default="the task's own")]
RunDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="For all that is written.", show_default="a new one in runs/"),
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there as JSON.")]


@command
def train(
    context: typer.Context,
    optimizer: Annotated[
        str, typer.Option(metavar="PROGRAM", help="How to train: a PROGRAM, or a meta-trained rule.")
    ] = "adamw",
    task: TaskName = "digits",
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="File or folder of the task's data, if it reads files.")
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="RATE",
            help="Learning rate; the initial one, if it is learned.",
            show_default="the middle of the optimizer's usual range, else 0.001; 1 for meta-trained rules",
        ),
    ] = None,
    steps: Steps = None,
    seed: Seed = 0,
    learn: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Hyperparameters to learn on the way, as in: lr,beta1")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=X", help="A hyperparameter; may be given several times.")
    ] = None,
    schedule: Annotated[str, typer.Option(metavar="NAME", help="Of the learning rate; see above.")] = "constant",
    warmup: Annotated[int, typer.Option(min=0, metavar="N", help="Steps in which the rate rises to --lr.")] = 0,
    clip_norm: Annotated[
        float | None, typer.Option(metavar="X", help="Largest norm of all gradients together.")
    ] = None,
    clip_value: Annotated[
        float | None, typer.Option(metavar="X", help="Largest size of an element of a gradient.")
    ] = None,
    accumulate: Annotated[int, typer.Option(min=1, metavar="N", help="Batches averaged for one step.")] = 1,
    precision: Annotated[str, typer.Option(metavar="NAME", help="32, or mixed: bf16 or fp16.")] = "32",
    monitor: Annotated[
        int, typer.Option(min=0, metavar="N", help="Observe the optimizer every N steps; 0: never.")
    ] = 50,
    devices: Annotated[int, typer.Option(min=1, metavar="N", help="GPUs, or processes, that share each batch.")] = 1,
    strategy: Annotated[
        str, typer.Option(metavar="NAME", help="ddp: a whole model on each device; fsdp: divided among them.")
    ] = "auto",
    checkpoint_every: Annotated[int, typer.Option(min=0, metavar="N", help="Steps between checkpoints; 0: none.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir, as it was begun.")] = False,
    run_dir: RunDir = None,
    json_file: JsonFile = None,
) -> int:
    """Train a task's model once, with TensorBoard logs; the exit code is 1 if the loss has diverged.

    Schedules: constant, warmup, cosine, linear, step, exponential, inverse-square-root, wsd.
    Meta-trained rules: lstm-classifiers, mlp-classifiers, lstm-quadratics, mlp-quadratics, any .safetensors file.
    Ctrl-C ends a run with checkpoints as a crash does: --resume goes on, to the same result.

    \b
    Examples:
      optforge train --optimizer lion --lr 3e-4
      optforge train --optimizer adamw --lr 1e-5 --learn lr --task charlm
      optforge train --lr 1e-5 --learn lr,beta1 --schedule linear
      optforge train --lr 0.01 --schedule cosine --warmup 20 --clip-norm 1 --set weight_decay=0.1
      optforge train --optimizer runs/first#1 --json result.json
      optforge train --optimizer lstm-classifiers --learn lr
      optforge train --task tinystories:small --devices 4 --precision bf16 --checkpoint-every 500 --run-dir runs/big
      optforge train --run-dir runs/big --resume
    """
    from optforge.experiments.training.command import resume_command, train_command

    if resume:
        given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
        if others := [name for name in given if name not in ("resume", "run_dir", "json_file")]:
            words = ", ".join("--" + name.replace("_", "-") for name in others)
            raise UserError(f"--resume goes on with the options that the run was begun with; leave out {words}")
        return FAILED if resume_command(run_dir, json_file) else 0
    asked = {name: value for name, value in context.params.items() if name not in ("resume", "run_dir", "json_file")}
    asked |= {"learn": None if learn is None else [name.strip() for name in learn.split(",")]}
    asked |= {"settings": settings or [], "data": data and str(data.absolute())}
    return FAILED if train_command(asked, run_dir, json_file) else 0


command(search)
command(tune)
command(score)
command(calibrate)


command(compare)


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
    from optforge.experiments.compare.ablation import ablate_command

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
