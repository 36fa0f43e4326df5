"""`optforge search`: evolve programs, then compare the best with tuned AdamW and Lion on fresh seeds."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.errors import UserError, unknown
from experiments.files import check_can_write, write_atomic
from experiments.programs import resolve_program
from experiments.searching.presets import DEFAULTS, OPS, PRESETS
from experiments.tasks import get_task
from primitives import print_program, subset
from primitives.text import parse_program

if TYPE_CHECKING:
    from search.evolution import Evolution
    from search.fitness import Evaluator
    from search.ledger import Ledger
    from search.pool import Executor

BUDGET = "budget.json"
MAX_WORKERS = 4  # for each core


@dataclass(frozen=True)
class SearchOptions:
    """What the command line asks for; None means the preset's, the resumed run's or the default value.

    Attributes:
        task: name of the task.
        start: PROGRAMs that evolution starts from, separated by commas.
        strategy: a row of `search.strategies.STRATEGIES`.
        seed: of all randomness.
        programs: stop after so many trained programs in all.
        minutes: stop after so much time in this call.
        population: programs that may become parents.
        tournament: rivals for each parent.
        islands: lineages that do not mix.
        migrate_every: candidates of an island between two that descend from its neighbour; 0 for never.
        restart_every: candidates between restarts; 0 for never.
        descent: whether programs that do not go downhill on simulated quadratics are left untrained.
        race: whether members that are hopelessly behind are not trained to the end, see `search.race`.
        precision: of forward and backward passes, one of `search.gradients.PRECISIONS`.
        batch: programs trained together.
        lag: batches in flight at once.
        steps: length of each training run; the task's own by default.
        ladder: learning rates that each program is trained at.
        seeds: of initial weights and batches of the training runs.
        workers: processes; 0 trains in this one. By default one for each core.
        ray: address of a Ray cluster to evaluate on; `workers` is then the number of its actors.
        run_dir: an existing, empty directory, or with `resume` that of a run.
        resume: go on with the run in `run_dir`.
        json: where to write the final table, if anywhere.
        preset: named settings, see `experiments.searching.presets`.
        funnel: whether the best programs are then trained on other tasks, see `experiments.searching.funnel_run`.
        tune: trials for the numbers in each finalist and reference, see `experiments.searching.constants`; 0 for none.
        stop_overfitting: end the search where only its own task still improves, not meta-validation.
    """

    run_dir: Path
    task: str | None = None
    start: str | None = None
    strategy: str | None = None
    seed: int | None = None
    programs: int | None = None
    minutes: float | None = None
    population: int | None = None
    tournament: int | None = None
    islands: int | None = None
    migrate_every: int | None = None
    restart_every: int | None = None
    descent: bool | None = None
    race: bool | None = None
    precision: str | None = None
    batch: int | None = None
    lag: int | None = None
    steps: int | None = None
    ladder: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    workers: int | None = None
    ray: str | None = None
    resume: bool = False
    json: Path | None = None
    preset: str | None = None
    funnel: bool | None = None
    tune: int | None = None
    stop_overfitting: bool | None = None


def run_search(options: SearchOptions) -> bool:
    """Search, then report. Returns whether it ran to its end (False after an interrupt, with everything kept).

    Raises:
        UserError: for options that make no sense or contradict the run that is resumed.
    """
    import torch

    from experiments.searching.funnel_watch import Watch
    from experiments.searching.hall_of_fame import Ending, FunnelSettings, conclude
    from experiments.searching.view import SearchView
    from search.cache import DuplicateCache
    from search.engine import Budget, Search
    from search.ledger import LedgerError

    torch.set_num_threads(1)  # the workers have the other cores; two threads that wait for each other lose tenfold
    check_can_write("--json", options.json)
    options = _with_preset(options)
    if options.ray is not None:
        _connect(options.ray)
    ledger, config = _open(options)
    if ledger.notice:
        print(ledger.notice)
    protocol = (config["task"], tuple(config["ladder"]), tuple(config["seeds"]), config["steps"])
    factory = functools.partial(evaluator, *protocol, race=config["race"], precision=config["precision"])
    workers = _executor(factory, options, config["lag"])
    finished = True
    try:
        watch = Watch(options.run_dir, config["task"], options.programs) if options.stop_overfitting else None
        _keep_budget(options)
        search = Search(evolution(config), ledger, workers, DuplicateCache(check_descent=config["descent"]))
        budget = Budget(options.programs, None if options.minutes is None else 60 * options.minutes)
        with SearchView(search, budget, options.run_dir) as view:
            try:
                for batch in search.run(budget):
                    view.update(batch)
                    if watch is not None and (point := watch(search.history)) is not None:
                        search.exhausted = f"meta-validation did not improve after program {point}, only the score did"
                        break
            except KeyboardInterrupt:
                finished = False
                # what is left to do takes a moment; a second Ctrl-C must not leave it half done
                previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        workers.close()
        view.summary(search, interrupted=not finished)
        if search.best:
            every = 0 if watch is None else watch.every
            settings = FunnelSettings(_workers(options, config["lag"]), every) if options.funnel else None
            ending = Ending(fast=not finished, funnel=settings, trials=options.tune or 0)
            conclude(options.run_dir, options.json, config, search, ending)
        elif finished and not search.statistics.trained:
            raise UserError("the time was over before the first batch; go on with --resume and more --minutes")
        elif finished:
            raise UserError(f"none of {search.statistics.trained} programs could be trained; try another --start")
    except LedgerError as error:
        raise UserError(str(error)) from None
    finally:
        workers.close()
        ledger.close()
        if not finished:
            signal.signal(signal.SIGINT, previous)
    return finished


def _open(options: SearchOptions) -> tuple[Ledger, dict[str, Any]]:
    """The run's ledger, new or resumed, and what determines the search."""
    from search.ledger import Ledger, LedgerError

    try:
        if not options.resume:
            config = _config(options)
            _workers(options, config["lag"])  # or it refuses, before anything is written
            return Ledger.create(options.run_dir, config), config
        ledger = Ledger.open(options.run_dir)
    except LedgerError as error:
        raise UserError(str(error)) from None
    try:
        config = _agreed(options, ledger.config)
        _workers(options, config["lag"])
        return ledger, config
    except UserError:
        ledger.close()
        raise


def digest(run_dir: Path) -> str:
    """SHA-256 over everything in a run's ledger that a repeated or resumed run must reproduce."""
    from search.ledger import Ledger, LedgerError

    try:
        ledger = Ledger.open(run_dir, read_only=True)
    except LedgerError as error:
        raise UserError(str(error)) from None
    try:
        return ledger.digest()
    except LedgerError as error:  # damage that shows in what is read only now
        raise UserError(str(error)) from None
    finally:
        ledger.close()


def evaluator(
    task: str,
    ladder: tuple[float, ...],
    seeds: tuple[int, ...],
    steps: int = 0,
    race: bool = False,
    precision: str = "float32",
) -> Evaluator:
    """The evaluator of a search, made inside each worker. In a race the reference is AdamW."""
    from baselines import BASELINES
    from search.fitness import Protocol
    from search.population import Population
    from search.race import NO_RACE, Race

    protocol = Protocol(get_task(task), ladder, seeds, steps)
    reference = BASELINES["adamw"].program if race else None
    return Population(protocol, Race() if race else NO_RACE, reference, precision)


def evolution(config: dict[str, Any]) -> Evolution:
    """The search that a configuration means; raises `ValueError` for settings that make no sense together."""
    from search.draft import Space
    from search.evolution import Evolution

    names = ("seed", "population", "tournament", "batch", "lag", "islands", "migrate_every", "restart_every")
    return Evolution(
        start=tuple(map(parse_program, config["programs"])),
        space=Space(subset(*config["ops"])),
        strategy=config["strategy"],
        **{name: config[name] for name in names},
    )


def _connect(address: str) -> None:
    try:
        from search.cluster import connect
    except ImportError:
        raise UserError("--ray needs the extra cluster; install it with: pip install 'optforge[cluster]'") from None
    try:
        connect(address)
    except ConnectionError as error:
        raise UserError(f"there is no Ray cluster at {address}: {error}") from None


def _executor(factory: Callable[[], Evaluator], options: SearchOptions, lag: int) -> Executor:
    """Where batches are evaluated: on the Ray cluster if one was named, or in processes here."""
    if options.ray is None:
        from search.workers import Workers

        return Workers(factory, _workers(options, lag))
    from search.cluster import Cluster

    cluster = Cluster(factory, options.workers)
    if cluster.count > lag:
        print(f"{lag} of the cluster's {cluster.count} places are used; begin a run with --lag {cluster.count} for all")
        cluster.count = lag
    return cluster


def _workers(options: SearchOptions, lag: int) -> int:
    """How many processes to use: one for each GPU, where several would only take turns, or for each core."""
    from search.workers import visible_gpus

    cores, asked = _cores(), options.workers
    if asked is None:
        return min(len(visible_gpus()) or cores, lag)
    if asked > MAX_WORKERS * cores and options.ray is None:
        raise UserError(
            f"{asked} workers on {cores} core{'s' * (cores > 1)} would only get in each other's way; choose at most "
            f"{MAX_WORKERS * cores}, or leave --workers out for one on each core"
        )
    if asked > lag:
        raise UserError(
            f"only {lag} batches are in flight at once, so that {asked - lag} of {asked} workers would be idle; "
            f"choose at most {lag} workers, or begin a new run with --lag {asked}"
        )
    return asked


def _cores() -> int:
    import os

    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _with_preset(options: SearchOptions) -> SearchOptions:
    if options.preset is not None:
        if options.preset not in PRESETS:
            raise unknown("preset", options.preset, PRESETS)
        preset = PRESETS[options.preset]
        options = replace(options, **{n: v for n, v in preset.items() if getattr(options, n) is None})
    stored = options.run_dir / BUDGET
    if options.resume and stored.is_file():
        told = options.programs is not None or options.minutes is not None  # one of them alone is a budget, too
        try:
            kept = dict(json.loads(stored.read_text()))
            kept = {n: v for n, v in kept.items() if not (told and n in ("programs", "minutes"))}
            options = replace(options, **{n: v for n, v in kept.items() if getattr(options, n) is None})
        except (ValueError, TypeError, AttributeError):
            if not told:
                raise UserError(f"{stored} is damaged; say how far to go with --programs or --minutes") from None
    if options.programs is None and options.minutes is None:
        options = replace(options, **PRESETS["minutes"])
    return options


def _keep_budget(options: SearchOptions) -> None:
    """What `--resume` goes on to where it is not told otherwise."""
    budget = {n: getattr(options, n) for n in ("programs", "minutes", "funnel", "tune", "stop_overfitting")}
    write_atomic(options.run_dir / BUDGET, json.dumps(budget) + "\n")


def _config(options: SearchOptions) -> dict[str, Any]:
    """What determines a search; kept in its ledger."""
    from search.gradients import PRECISIONS

    chosen = {name: getattr(options, name) for name in DEFAULTS}
    config = {name: DEFAULTS[name] if value is None else value for name, value in chosen.items()}
    get_task(config["task"])
    if config["precision"] not in PRECISIONS:
        raise unknown("precision", config["precision"], PRECISIONS)
    programs = [resolve_program(name.strip())[1] for name in config["start"].split(",")]
    texts = {program.key: print_program(program) for program in programs}
    if len(programs) > config["batch"]:
        raise UserError(f"{len(programs)} programs to start from do not fit into one batch of {config['batch']}")
    config |= {"programs": list(texts.values()), "ops": OPS}
    try:
        evolution(config)
    except ValueError as error:
        raise UserError(str(error)) from None
    return dict(json.loads(json.dumps(config)))


def _agreed(options: SearchOptions, stored: dict[str, Any]) -> dict[str, Any]:
    """The resumed run's own configuration, if what was asked for agrees with it."""
    stored = {"race": False, "precision": "float32"} | stored  # searches of older versions do not say
    if options.task is None and str(stored["task"]).endswith(".py"):
        raise UserError(f"{options.run_dir} trains what the Python file {stored['task']} says; name it: --task FILE")
    for name in DEFAULTS:
        asked = getattr(options, name)
        asked = list(asked) if isinstance(asked, tuple) else asked
        if asked is not None and asked != stored[name]:
            raise UserError(
                f"{options.run_dir} was begun with {name} {stored[name]} and cannot go on with {asked}; "
                f"leave --{name.replace('_', '-')} out, or begin a new run"
            )
    return stored
