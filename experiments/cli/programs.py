"""The commands that look at one program without training anything; `cli.commands` makes commands of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optforge.experiments.cli.options import ProgramName

REFUTED, UNDECIDED = 1, 3


def show(
    program: ProgramName,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: statements, state, cost and key.")] = False,
    latex: Annotated[bool, typer.Option("--latex", help="Print the formula in LaTeX.")] = False,
    unicode: Annotated[bool, typer.Option("--unicode", help="Print the formula for a terminal.")] = False,
    pseudo: Annotated[bool, typer.Option("--pseudo", help="Print pseudo-code only.")] = False,
) -> None:
    """Print a program: its text, pseudo-code, state and cost; or its formula, or all there is to know as JSON.

    \b
    Examples:
      optforge show lion
      optforge show adamw --latex
      optforge show runs/first#1 --json
    """
    from optforge.experiments.errors import UserError
    from optforge.experiments.programs import resolve_program
    from optforge.experiments.programs.reports import print_about

    forms = {"json": as_json, "latex": latex, "unicode": unicode, "pseudo": pseudo}
    chosen = [form for form, wanted in forms.items() if wanted]
    if len(chosen) > 1:
        raise UserError(f"--{chosen[0]} and --{chosen[1]} cannot be had together")
    print_about(*resolve_program(program), form=chosen[0] if chosen else "text")


def simplify(
    program: ProgramName,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="Write the outcome there as JSON; - prints it.")
    ] = None,
) -> None:
    """Rewrite a program by sound rules until none applies, and print what is left; no training is involved.

    \b
    Examples:
      optforge simplify lion-raw-ablated
      optforge simplify runs/first#1 --json -
    """
    from optforge.experiments.programs import resolve_program
    from optforge.experiments.programs.reports import print_simplified

    print_simplified(*resolve_program(program), json_file)


def export(
    program: ProgramName,
    to: Annotated[str, typer.Option(metavar="FORMAT", help="One of torch, optax, latex, text.")] = "torch",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to.", show_default="the terminal")] = None,
) -> None:
    """Write a program as a file that does not need optforge: a torch optimizer, an optax transformation, or text.

    \b
    Examples:
      optforge export lion --to torch --output lion.py
      optforge export runs/first#1 --to optax
    """
    from optforge.experiments.programs import resolve_program
    from optforge.experiments.programs.reports import write_export

    write_export(*resolve_program(program), to=to, argument=program, output=output)


def certify(
    program: ProgramName,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: each property and its sentence.")] = False,
) -> None:
    """Say what can be said about a program without training: descent, bounds, scale behaviour, memory.

    \b
    Example:
      optforge certify lion
    """
    from optforge.experiments.programs import resolve_program
    from optforge.experiments.programs.reports import print_certificate

    print_certificate(*resolve_program(program), as_json=as_json)


def trajectories(
    optimizers: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROGRAM...", show_default="gradient-descent momentum rmsprop adam lion"),
    ] = None,
    surface: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="bowl, zigzag, rosenbrock, beale, saddle or noisy; may be repeated.",
            show_default="all",
        ),
    ] = None,
    lr: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[PROGRAM=]RATE",
            help="Learning rate of all, or of one; may be repeated.",
            show_default="0.3 on bowl and zigzag, elsewhere the best of a ladder",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=10_000, metavar="N", help="Length.", show_default="the surface's own")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, metavar="N", help="Of the noise, equal for all.")] = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")] = Path("runs/trajectories"),
    gif: Annotated[bool, typer.Option("--gif/--no-gif", help="Whether to draw animations, too.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all points and losses there as JSON.")
    ] = None,
) -> None:
    """Draw the paths of optimizers on two-dimensional surfaces, as pictures and animations.

    \b
    Examples:
      optforge trajectories --surface zigzag
      optforge trajectories adamw lion runs/first#1 --surface rosenbrock --steps 500
      optforge trajectories sgd momentum --surface zigzag --lr 0.1 --lr momentum=0.02 --no-gif
    """
    from optforge.experiments.programs.trajectories_command import trajectories_command

    trajectories_command(
        optimizers or [], surfaces=surface or [], rates=lr or [], steps=steps, seed=seed, out=out, gif=gif,
        json_file=json_file,
    )  # fmt: skip


def equivalent(
    first: ProgramName,
    second: ProgramName,
    up_to_rate: Annotated[
        bool, typer.Option("--up-to-rate", help="Accept a constant factor, which a learning rate absorbs.")
    ] = False,
) -> None:
    """Say whether two programs are the same rule at their default hyperparameters.

    The exit code is 0 if that is proved, 1 if it is refuted by a counter-example, and 3 if it is not decided.

    \b
    Example:
      optforge equivalent lion-raw-ablated runs/first#1 --up-to-rate
    """
    from optforge.experiments.programs import resolve_program
    from optforge.experiments.programs.reports import print_equivalence

    answer = print_equivalence(resolve_program(first), resolve_program(second), up_to_rate=up_to_rate)
    if answer != "proved":
        raise typer.Exit(REFUTED if answer == "refuted" else UNDECIDED)
