"""The calls of the front door. Each accepts what its command accepts: names, files, ``RUN_DIR#RANK``, or objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optforge.experiments.compare import compare
from optforge.experiments.programs import resolve_program, usual_rate
from optforge.experiments.searching.options import SearchOptions
from optforge.experiments.searching.run import run_search
from optforge.experiments.tasks import get_task
from optforge.experiments.training.train import train as train_trial
from optforge.experiments.training.train import training_of
from optforge.learned import LearnedOptimizer
from optforge.learned import learn as learn_rates
from optforge.primitives import Program
from optforge.search.training import Task
from optforge.search.training.trial import Outcome


def load(program: str | Path | Program) -> Program:
    """A program by name.

    Args:
        program: an optimizer's name (``adamw``), a program file, or ``RUN_DIR#RANK`` of a search (``runs/mine#1``).

    Raises:
        UserError: if there is no such program; the sentence names what is near.
    """
    return program if isinstance(program, Program) else resolve_program(str(program))[1]


def evolve(run_dir: str | Path, *, tasks: str = "proxies", preset: str = "minutes", **options: Any) -> Program:
    """Search for an optimizer as ``optforge search`` does, and return the best program.

    Args:
        run_dir: an empty or missing directory for the ledger, the report and what was found.
        tasks: names of tasks, separated by commas; ``proxies`` stands for eight.
        preset: named settings: ``minutes``, ``hour``, …
        **options: further options of the command, as `experiments.searching.options.SearchOptions` has them.
    """
    Path(run_dir).mkdir(parents=True, exist_ok=True)
    run_search(SearchOptions(run_dir=Path(run_dir), tasks=tasks, preset=preset, **options))
    return load(f"{run_dir}#1")


def train(
    task: str | Task,
    optimizer: str | Path | Program = "adamw",
    lr: float | None = None,
    *,
    folder: str | Path | None = None,
    **options: Any,
) -> Outcome:
    """Train a task once, as ``optforge train`` does.

    Args:
        task: a task or its name.
        optimizer: a program or its name, see `load`.
        lr: learning rate; by default the optimizer's usual one.
        folder: where TensorBoard logs and checkpoints go; none are written without it.
        **options: `seed`, `steps`, `learn`, `schedule` and others of `experiments.training.train.training_of`.
    """
    rate = lr if lr is not None else usual_rate(optimizer if isinstance(optimizer, str) else "")
    problem = get_task(task) if isinstance(task, str) else task
    trial, settings = training_of(problem, load(optimizer), rate, **options)
    return train_trial(trial, settings, folder=None if folder is None else Path(folder))


def learn(params: Any, program: str | Path | Program = "adamw", lr: float = 1e-3, **options: Any) -> LearnedOptimizer:
    """A torch optimizer that learns its own learning rate while it trains.

    Args:
        params: parameters or groups of them, as any torch optimizer takes them.
        program: whose rate is learned, see `load`.
        lr: initial learning rate.
        **options: further arguments of `learned.learn`.
    """
    return learn_rates(params, load(program), lr, **options)


__all__: Sequence[str] = ["compare", "evolve", "learn", "load", "train"]
