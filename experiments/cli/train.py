"""The command that trains once; `cli.commands` makes a command of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optforge.experiments.cli.options import JsonFile, RunDir, Seed, Steps, TaskName
from optforge.experiments.errors import UserError


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
        return 1 if resume_command(run_dir, json_file) else 0
    asked = {name: value for name, value in context.params.items() if name not in ("resume", "run_dir", "json_file")}
    asked |= {"learn": None if learn is None else [name.strip() for name in learn.split(",")]}
    asked |= {"settings": settings or [], "data": data and str(data.absolute())}
    return 1 if train_command(asked, run_dir, json_file) else 0
