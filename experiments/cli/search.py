"""The command that searches; `cli.commands` makes a command of it."""

from __future__ import annotations

from typing import Annotated

import typer

from optforge.experiments.cli.options import MAX_SEED, JsonFile, Number, RunDir, Steps
from optforge.experiments.errors import UserError
from optforge.experiments.searching.presets import OPS

INTERRUPTED = 130


def search(
    context: typer.Context,
    tasks: Annotated[
        str | None,
        typer.Option("--tasks", "--task", metavar="NAME,…", help="Tasks to score on.", show_default="proxies"),
    ] = None,
    programs: Annotated[Number, typer.Option(min=1, metavar="N", help="Number of programs to train in all.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, metavar="M", help="Time limit of this call, in minutes.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Named settings: seconds, minutes, hour or gpu.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(metavar="PROGRAM,…", help="Programs to start from.", show_default="adamw")
    ] = None,
    ops: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Ops that mutations draw from: subsets (docs/language.md has them) or single ones.",
            show_default=",".join(OPS),
        ),
    ] = None,
    signals: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Inputs that mutations draw from.", show_default="g,p,lr,step")
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Blocks that mutations splice in: names, all or none.", show_default="all"),
    ] = None,
    mutations: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[=W],…", help="Mutations of installed packages, with frequencies (built-in: 0.25 to 5)."
        ),
    ] = None,
    max_statements: Annotated[
        Number, typer.Option(min=1, metavar="N", help="Most statements of a program.", show_default="40")
    ] = None,
    max_slots: Annotated[
        Number, typer.Option(min=0, metavar="N", help="Most state slots of a program.", show_default="4")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="evolution, or a control: random, constants or shuffled.", show_default="evolution"
        ),
    ] = None,
    population: Annotated[Number, typer.Option(min=2, metavar="N", help="Population size.")] = None,
    tournament: Annotated[
        Number, typer.Option(min=1, metavar="N", help="Tournament size: programs that compete to become a parent.")
    ] = None,
    islands: Annotated[
        Number, typer.Option(min=1, metavar="N", help="Number of islands: lineages that do not mix.")
    ] = None,
    migrate_every: Annotated[
        Number,
        typer.Option(min=0, metavar="M", help="Migrate one program between islands every M candidates; 0 for never."),
    ] = None,
    restart_every: Annotated[
        Number,
        typer.Option(
            min=0, metavar="N", help="Restart interval, in programs: from the start or the best; 0 for never."
        ),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Elites evaluated again with each batch, on its seed.", show_default="2"),
    ] = None,
    descent: Annotated[
        bool, typer.Option("--descent", help="Train only what goes downhill on simulated quadratics.")
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Precision of training: float32, or tf32 or bf16 for GPUs.", show_default="float32"
        ),
    ] = None,
    seed: Annotated[
        Number, typer.Option(min=0, max=MAX_SEED, metavar="N", help="Random seed.", show_default="0")
    ] = None,
    batch: Annotated[Number, typer.Option(min=1, metavar="N", help="Programs trained together.")] = None,
    lag: Annotated[Number, typer.Option(min=1, metavar="N", help="Batches in flight at once.")] = None,
    workers: Annotated[
        Number, typer.Option(min=0, metavar="N", help="Processes that evaluate; one for each GPU or core.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Evaluate on this Ray cluster, as in: head:6379, auto, local.")
    ] = None,
    steps: Steps = None,
    run_dir: RunDir = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the search in --run-dir.")] = False,
    funnel: Annotated[
        bool | None,
        typer.Option(
            "--funnel/--no-funnel", help="Send the best through further tasks afterwards.", show_default="by preset"
        ),
    ] = None,
    tune: Annotated[
        Number,
        typer.Option(
            min=0,
            metavar="N",
            help="Trials for the numbers in each finalist, AdamW and Lion before they are compared.",
            show_default="by preset",
        ),
    ] = None,
    ablate: Annotated[
        bool | None,
        typer.Option(
            "--ablate/--no-ablate",
            help="Leave out each statement of the best program once, and all that can go (minutes).",
            show_default="by preset",
        ),
    ] = None,
    stop_overfitting: Annotated[
        bool, typer.Option("--stop-overfitting", help="Stop where only the search's own score still improves.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Evolve update rules, scored on several tasks at once; ends with the best on fresh seeds and unseen tasks.

    Whichever of --programs and --minutes is reached first ends the search. Ctrl-C does too; --resume goes on.

    \b
    Examples:
      optforge search --minutes 5 --run-dir runs/first
      optforge search --preset hour --islands 4 --migrate-every 50
      optforge search --programs 2000 --start adamw,lion,runs/first#1 --restart-every 500
      optforge search --programs 2000 --strategy shuffled
      optforge search --programs 4000 --funnel --stop-overfitting
      optforge search --run-dir runs/first --resume --minutes 5
    """
    from optforge.experiments.rundirs import existing_run_dir, new_run_dir, remove_if_empty
    from optforge.experiments.searching.options import SearchOptions
    from optforge.experiments.searching.presets import DEFAULTS
    from optforge.experiments.searching.run import run_search
    from optforge.experiments.tasks import get_task, task_names

    if resume and run_dir is None:
        raise UserError("--resume needs the --run-dir of the search to go on with")
    if resume and run_dir is not None:
        folder = existing_run_dir(run_dir)
    else:
        named = tasks or DEFAULTS["tasks"]
        names = task_names(named)  # refuses unknown ones before anything is written
        folder = new_run_dir(run_dir, "search", get_task(names[0]).name if len(names) == 1 else named.split(",")[0])
    asked = {name: value for name, value in context.params.items() if name not in ("run_dir", "json_file")}
    asked |= {name: asked[name] or None for name in ("descent", "stop_overfitting")}
    options = SearchOptions(run_dir=folder, json=json_file, **asked)
    try:
        finished = run_search(options)
    finally:
        remove_if_empty(folder)
    if not finished:
        typer.echo(f"interrupted; go on with: optforge search --resume --run-dir {folder}", err=True)
        raise typer.Exit(INTERRUPTED)
