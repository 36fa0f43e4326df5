"""The command that searches; `cli.commands` makes a command of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optforge.experiments.errors import UserError
from optforge.experiments.searching.presets import OPS

INTERRUPTED = 130
MAX_SEED = 2**63 - 1  # what torch's generators take

Number = int | None


def search(
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
        str | None,
        typer.Option(metavar="PROGRAM,…", help="Programs to start from.", show_default="adamw"),
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
    max_statements: Annotated[
        Number, typer.Option(min=1, metavar="N", help="Most statements of a program.", show_default="40")
    ] = None,
    max_slots: Annotated[
        Number, typer.Option(min=0, metavar="N", help="Most state slots of a program.", show_default="4")
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="evolution, or a control: random, constants or shuffled.",
            show_default="evolution",
        ),
    ] = None,
    population: Annotated[Number, typer.Option(min=2, metavar="N", help="Population size.")] = None,
    tournament: Annotated[
        Number,
        typer.Option(min=1, metavar="N", help="Tournament size: programs that compete to become a parent."),
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
    race: Annotated[
        bool, typer.Option("--race", help="Stop training at rates that are hopelessly behind another rate.")
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
        str | None,
        typer.Option(metavar="ADDRESS", help="Evaluate on this Ray cluster, as in: head:6379, auto, local."),
    ] = None,
    steps: Annotated[
        Number, typer.Option(min=1, metavar="N", help="Steps of each run.", show_default="each task's own")
    ] = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Output directory.", show_default="a new one in runs/"),
    ] = None,
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
    stop_overfitting: Annotated[
        bool, typer.Option("--stop-overfitting", help="Stop where only the search's own score still improves.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the numbers there as JSON.")
    ] = None,
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
        asked = tasks or DEFAULTS["tasks"]
        names = task_names(asked)  # refuses unknown ones before anything is written
        folder = new_run_dir(run_dir, "search", get_task(names[0]).name if len(names) == 1 else asked.split(",")[0])
    options = SearchOptions(
        run_dir=folder,
        tasks=tasks,
        start=start,
        ops=ops,
        signals=signals,
        blocks=blocks,
        max_statements=max_statements,
        max_slots=max_slots,
        strategy=strategy,
        seed=seed,
        programs=programs,
        minutes=minutes,
        population=population,
        tournament=tournament,
        islands=islands,
        migrate_every=migrate_every,
        restart_every=restart_every,
        repeats=repeats,
        descent=descent or None,
        race=race or None,
        precision=precision,
        batch=batch,
        lag=lag,
        workers=workers,
        ray=ray,
        steps=steps,
        resume=resume,
        json=json_file,
        preset=preset,
        funnel=funnel,
        tune=tune,
        stop_overfitting=stop_overfitting or None,
    )
    try:
        finished = run_search(options)
    finally:
        remove_if_empty(folder)
    if not finished:
        typer.echo(f"interrupted; go on with: optforge search --resume --run-dir {folder}", err=True)
        raise typer.Exit(INTERRUPTED)


def score(
    programs: Annotated[list[str], typer.Argument(metavar="PROGRAM…")],
    tasks: Annotated[str, typer.Option("--tasks", "--task", metavar="NAME,…", help="Tasks to score on.")] = "proxies",
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Number of seeds; no search uses them.")] = 3,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Length of a run.", show_default="each task's own")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, metavar="N", help="Processes that train; 0 for none but this.")] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the scores there as JSON.")
    ] = None,
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


def calibrate(
    optimizers: Annotated[list[str] | None, typer.Argument(metavar="[PROGRAM…]", show_default="21 known ones")] = None,
    tasks: Annotated[str, typer.Option("--tasks", "--task", metavar="NAME,…", help="Proxies.")] = "proxies",
    against: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…", help="Larger tasks.", show_default="charlm, and of three more what has its files"
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Number of seeds.")] = 1,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Length of a run on a proxy.", show_default="its own")
    ] = None,
    against_steps: Annotated[int, typer.Option(min=1, metavar="N", help="Length of a run on a larger task.")] = 1000,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that train.")] = 1,
    storage: Annotated[
        Path | None, typer.Option(metavar="FILE", help="SQLite file for outcomes; a repetition continues from it.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write scores and correlations there as JSON.")
    ] = None,
) -> None:
    """Check whether proxies rank known optimizers as larger tasks do.

    \b
    Examples:
      optforge calibrate --workers 2 --storage calibration.sqlite --json calibration.json
      optforge calibrate lion muon adan nadamw --tasks proxy-text,proxy-curves --against charlm --against-steps 300
    """
    from optforge.experiments.searching.calibrate_command import calibrate_command

    calibrate_command(
        optimizers or (), tasks, against, seeds=seeds, steps=steps, against_steps=against_steps, workers=workers,
        storage=storage, json_file=json_file,
    )  # fmt: skip


def tune(
    program: Annotated[str, typer.Argument(metavar="PROGRAM")],
    task: Annotated[str, typer.Option(metavar="NAME", help="What to train.")] = "digits",
    trials: Annotated[
        int, typer.Option(min=1, metavar="N", help="Configurations, the program as it is included.")
    ] = 64,
    lr: Annotated[
        float | None,
        typer.Option(min=1e-12, metavar="RATE", help="Of the first trial.", show_default="middle of the usual range"),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Length of a run.", show_default="the task's own")
    ] = None,
    sampler: Annotated[str, typer.Option(metavar="NAME", help="tpe or cmaes.")] = "tpe",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, metavar="N", help="Of the sampler.")] = 0,
    storage: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the trials in this SQLite file, and go on from there.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the tuned program there.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the outcome there as JSON.")
    ] = None,
) -> None:
    """Tune the numbers in a program with Optuna: literals, hyperparameters and learning rate.

    \b
    Examples:
      optforge tune runs/first#1 --trials 128 --output tuned.txt
      optforge tune adamw --task charlm --trials 32 --storage trials.sqlite
    """
    from optforge.experiments.searching.tune_command import tune_command

    tune_command(
        program,
        task,
        trials=trials,
        lr=lr,
        steps=steps,
        sampler=sampler,
        seed=seed,
        storage=storage,
        output=output,
        json_file=json_file,
    )
