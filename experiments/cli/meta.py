"""The command that meta-trains learned optimizers; `cli.commands` makes a command of it."""

from __future__ import annotations

from typing import Annotated

import typer

from optforge.experiments.cli.options import JsonFile, RunDir

MAX_SEED = 2**62  # what torch's generators take, with room for held-out problems


def meta_train(
    rule: Annotated[str | None, typer.Argument(metavar="RULE", help="lstm or mlp.")] = None,
    problems: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…", help="quadratics, digits, mnist-small, mnist: what to train on.", show_default="digits"
        ),
    ] = None,
    estimator: Annotated[
        str | None, typer.Option(metavar="NAME", help="bptt, tbptt or imitation.", show_default="bptt")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Number of outer-optimizer steps.", show_default="300")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0, metavar="M", help="Stop after so much time.")] = None,
    lr: Annotated[
        float | None,
        typer.Option(min=0, metavar="RATE", help="Learning rate of the outer optimizer.", show_default="0.003"),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="The LSTM sees gradients as they are, as the paper has it on quadratics.")
    ] = False,
    curvature: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="C",
            help="Share of gradients' derivatives that is kept.",
            show_default="1 of bptt, 0 of tbptt",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Training runs at once; a GPU wants many.", show_default="as the problem has"
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="WEIGHTS", help="Learn to make the steps of these: a file, or shipped ones' name."),
    ] = None,
    start: Annotated[
        str | None, typer.Option(metavar="WEIGHTS", help="Begin with these, a file or shipped ones' name.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=MAX_SEED, metavar="N", help="Random seed.", show_default="0")
    ] = None,
    run_dir: RunDir = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Meta-train an update rule that is a network, and write its weights with a card.

    A run that is interrupted, however, goes on with --resume to the weights that it would have had.

    \b
    Examples:
      optforge meta-train lstm --problems quadratics --minutes 10
      optforge meta-train mlp --estimator tbptt --steps 5000 --run-dir runs/mlp
      optforge meta-train lstm --problems mnist --teacher mlp-classifiers --steps 800
      optforge meta-train --resume --run-dir runs/mlp
    """
    from optforge.experiments.training.meta_command import MetaOptions, meta_train_command

    names = None if problems is None else [name.strip() for name in problems.split(",")]
    given = (rule, names, estimator, steps, seed, lr, raw or None, curvature, workers, teacher, start)
    meta_train_command(MetaOptions(*given, minutes, run_dir, resume, json_file))
