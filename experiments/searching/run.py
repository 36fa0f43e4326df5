"""`optforge search`: evolve programs, then compare the best with tuned AdamW and Lion on fresh seeds."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optforge.experiments.errors import FailedError, UserError
from optforge.experiments.files import check_can_write
from optforge.experiments.searching.options import (
    SearchOptions,
    agreed,
    configuration,
    evolution,
    keep_budget,
    with_preset,
)
from optforge.experiments.searching.presets import SCHEDULE, WARMUP
from optforge.experiments.tasks import get_task

if TYPE_CHECKING:
    from optforge.search.engine import Search
    from optforge.search.fitness.evaluator import Evaluator
    from optforge.search.fitness.suite import Suite
    from optforge.search.ledger import Ledger
    from optforge.search.training.executors.pool import Executor
    from optforge.search.training.train import Engine

MAX_WORKERS = 4  # for each core
SHARED = 24  # most runs in one batch at the end of a search, so that processes share the work


def run_search(options: SearchOptions) -> bool:
    """Search, then report. Returns whether it ran to its end (False after an interrupt, with everything kept).

    Raises:
        UserError: for options that make no sense or contradict the run that is resumed.
    """
    import torch

    from optforge.experiments.compare.console import runs_progress
    from optforge.experiments.compare.run import executor
    from optforge.experiments.searching.funnel_watch import Watch
    from optforge.experiments.searching.hall_of_fame import Ending, conclude
    from optforge.experiments.searching.view import SearchView
    from optforge.search.duplicates.cache import DuplicateCache
    from optforge.search.engine import Budget, Search
    from optforge.search.fitness.suite import UnusableTask
    from optforge.search.training.store import StoreError
    from optforge.search.training.trainer import Trainer

    torch.set_num_threads(1)  # the workers have the other cores; two threads that wait for each other lose tenfold
    check_can_write("--json", options.json)
    options = with_preset(options)
    if options.ray is not None:
        _connect(options.ray)
    ledger, config = _open(options)
    settings = {name: config[name] for name in ("seed", "steps", "precision")}

    def executor_for(tasks: Sequence[str]) -> Executor:
        make = functools.partial(evaluator, tuple(tasks), margins=config["margins"], **settings)
        return _executor(make, options, config["lag"])

    workers = executor_for(config["tasks"])
    finished, trainers = True, None
    for sentence in cautions(config["tasks"], config["steps"]):
        print(sentence)
    try:
        ledger.store.release()  # nobody else has this folder
        watch = Watch(Trainer(ledger.store), config["tasks"], options.programs) if options.stop_overfitting else None
        keep_budget(options)
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
        view.summary(search, interrupted=not finished)
        if search.best:
            every = 0 if watch is None else watch.every
            ending = Ending(not finished, options.funnel or False, every, options.tune or 0, options.ablate or False)
            trainers = executor(_workers(options, config["lag"])) if finished else None
            with runs_progress() as progress:
                train = Trainer(ledger.store, trainers, progress, most=SHARED)
                conclude(options.run_dir, options.json, config, search, ending, workers, executor_for, train)
        elif finished and not search.statistics.trained:
            raise UserError("the time was over before the first batch; go on with --resume and more --minutes")
        elif finished:
            raise FailedError(_nothing_trained(search))
    except (StoreError, UnusableTask) as error:
        raise UserError(str(error)) from None
    finally:
        workers.close()
        if trainers is not None:
            trainers.close()
        ledger.close()
        if not finished:
            signal.signal(signal.SIGINT, previous)
    return finished


def _nothing_trained(search: Search) -> str:
    """Why there is no result: a task that cannot be trained is no fault of the programs."""
    statistics = search.statistics
    if statistics.failed:
        return f"{statistics.failed} of {statistics.trained} programs could not be evaluated: {statistics.failure}"
    return f"none of {statistics.trained} programs could be trained: all diverged; try another --start"


def _open(options: SearchOptions) -> tuple[Ledger, dict[str, Any]]:
    """The run's ledger, new or resumed, and what determines the search."""
    from optforge.experiments.compare.fingerprints import identity
    from optforge.search.ledger import Ledger
    from optforge.search.training.store import StoreError

    try:
        if not options.resume:
            config = configuration(options)
            _workers(options, config["lag"])  # or it refuses, before anything is written
            return Ledger.create(options.run_dir, config, identity), config
        ledger = Ledger.open(options.run_dir, identity)
    except StoreError as error:
        raise UserError(str(error)) from None
    try:
        config = agreed(options, ledger.config)
        _workers(options, config["lag"])
        return ledger, config
    except UserError:
        ledger.close()
        raise


def digest(run_dir: Path) -> str:
    """SHA-256 over everything in a run's ledger that a repeated or resumed run must reproduce."""
    from optforge.search.ledger import Ledger
    from optforge.search.training.store import StoreError

    try:
        ledger = Ledger.open(run_dir, read_only=True)
    except StoreError as error:
        raise UserError(str(error)) from None
    try:
        return ledger.digest()
    except StoreError as error:  # damage that shows in what is read only now
        raise UserError(str(error)) from None
    finally:
        ledger.close()


def evaluator(
    tasks: tuple[str, ...],
    seed: int = 0,
    steps: int = 0,
    precision: str = "float32",
    margins: Sequence[Sequence[float]] | None = None,
    engine: Engine | None = None,
) -> Suite:
    """The evaluator of a search, made inside each worker: scores are relative to AdamW's, and rates decay to zero."""
    from optforge.baselines import BASELINES
    from optforge.experiments.compare.fingerprints import task_named
    from optforge.search.fitness.suite import MARGINS, RELATIVE_RATES, Suite
    from optforge.search.fitness.sweep import Sweep

    found = []
    for task in map(task_named, tasks):
        length = steps or task.steps
        warmup = round(WARMUP * length)
        found.append(Sweep(task, RELATIVE_RATES, (0,), length, SCHEDULE, warmup, precision, engine=engine))
    given = MARGINS if margins is None else tuple((int(tasks), margin) for tasks, margin in margins)
    return Suite(tuple(found), BASELINES["adamw"].program, seed, given)


def cautions(tasks: Sequence[str], steps: int = 0) -> list[str]:
    """What speaks against believing a score on these tasks, one sentence each."""
    found = []
    if len(tasks) == 1:
        found.append(
            f"{tasks[0]} is the only task: scores on one task alone have ranked optimizers in the opposite order of "
            "other tasks (docs/search.md); --tasks proxies scores on eight"
        )
    for name in tasks:
        task = get_task(name)
        passes = (steps or task.steps) * task.batch_size / len(task.data().train)
        if passes > 1:
            found.append(
                f"{name} repeats its data: a run makes {passes:.1f} passes, so that a score also measures who "
                "memorises least; shorter runs (--steps) or more data measure optimisation alone"
            )
    return found


def _connect(address: str) -> None:
    try:
        from optforge.search.training.executors.cluster import connect
    except ImportError:
        raise UserError("--ray needs the extra cluster; install it with: pip install 'optforge[cluster]'") from None
    try:
        connect(address)
    except ConnectionError as error:
        raise UserError(f"there is no Ray cluster at {address}: {error}") from None


def _executor(factory: Callable[[], Evaluator], options: SearchOptions, lag: int) -> Executor:
    """Where batches are evaluated: on the Ray cluster if one was named, or in processes here."""
    from optforge.search.fitness.evaluator import evaluating

    if options.ray is None:
        from optforge.search.training.executors.processes import Workers

        return Workers(evaluating(factory), _workers(options, lag))
    from optforge.search.training.executors.cluster import Cluster

    cluster = Cluster(evaluating(factory), options.workers)
    if cluster.count > lag:
        print(f"{lag} of the cluster's {cluster.count} places are used; begin a run with --lag {cluster.count} for all")
        cluster.count = lag
    return cluster


def _workers(options: SearchOptions, lag: int) -> int:
    """How many processes to use: one for each GPU, where several would only take turns, or for each core."""
    from optforge.search.training.executors.processes import visible_gpus

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
