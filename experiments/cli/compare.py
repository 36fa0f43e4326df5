"""`optforge compare` on the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from optforge.experiments.cli.options import JsonFile, RunDir, Steps


def compare(
    context: typer.Context,
    programs: Annotated[list[str] | None, typer.Argument(metavar="PROGRAM...", show_default="adamw lion")] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            "--task",
            metavar="NAMES",
            help="Names with commas between them, or: suite.",
            show_default="digits",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Configurations tried for each optimizer.", show_default="16")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=2, metavar="N", help="Fresh seeds that the reported numbers come from.", show_default="10"),
    ] = None,
    tune_seeds: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Seeds of each configuration tried.", show_default="2")
    ] = None,
    dimensions: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Tuned quantities of each optimizer, the learning rate included.", show_default="3"
        ),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of configurations: qmc or tpe.", show_default="qmc")
    ] = None,
    steps: Steps = None,
    horizons: Annotated[
        str | None,
        typer.Option(metavar="X,...", help="Lengths of runs, as multiples of that; all: 0.25,1,4.", show_default="1"),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Learning-rate schedule: cosine, linear, wsd or constant.", show_default="cosine"
        ),
    ] = None,
    warmup: Annotated[
        float | None,
        typer.Option(min=0, max=0.99, metavar="X", help="Share of a run in which the rate rises.", show_default="0.05"),
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option(min=0, metavar="X", help="Largest norm of all gradients together.", show_default="no limit"),
    ] = None,
    smallest_effect: Annotated[
        float | None,
        typer.Option(
            "--effect",
            min=0,
            max=0.99,
            metavar="X",
            help="Share of the loss below which a difference is none.",
            show_default="0.01",
        ),
    ] = None,
    control: Annotated[bool, typer.Option("--control", help="Add a random program, tuned as all others.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few minutes: 8 trials if --trials is not given, a short suite.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that train.")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Database that machines share.", show_default="SQLite in the run directory"),
    ] = None,
    run_dir: RunDir = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the comparison in --run-dir.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Compare programs with AdamW and Lion: equal tuning budgets for all, fresh seeds, paired intervals.

    \b
    Examples:
      optforge compare adamw lion
      optforge compare runs/first#1 adamw lion muon --tasks suite --trials 16 --seeds 10
      optforge compare runs/first#1 --quick --control --tasks suite --workers 2
    """
    from optforge.experiments.cli.compare_command import Asked, compare_command

    names = ("trials", "seeds", "tune_seeds", "dimensions", "sampler", "steps", "schedule", "warmup", "clip")
    settings = {name: context.params[name] for name in (*names, "smallest_effect")}
    settings = {name: value for name, value in settings.items() if value is not None}
    lengths = "0.25,1,4" if horizons == "all" else horizons
    asked = Asked(tasks, lengths, settings, control, quick, workers, storage, json_file, run_dir, resume)
    if code := compare_command(programs or [], asked):
        raise typer.Exit(code)
