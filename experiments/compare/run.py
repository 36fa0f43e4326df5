"""Making a comparison: its trials are trained here, in processes, or by all machines that share a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from optforge.experiments.compare.comparison import Costs
from optforge.experiments.compare.contest import AllCosts, Contest, contest
from optforge.experiments.compare.costs import measure_costs
from optforge.experiments.compare.fingerprints import identity, name_of, task_named
from optforge.experiments.compare.plan import Plan, Row, check_plan
from optforge.experiments.compare.reduction import units
from optforge.experiments.compare.spaces import RATE
from optforge.experiments.programs import baseline_name, unique_names, usual_rate
from optforge.experiments.programs.rules import (
    LearnedRate,
    base_program,
    configured,
    parse_rule,
    resolve_entrant,
    with_base,
)
from optforge.primitives import Program
from optforge.search.training.asking import Train, answer
from optforge.search.training.executors.pool import Executor
from optforge.search.training.executors.processes import Workers
from optforge.search.training.store import Store
from optforge.search.training.task import Task, initial_model, trainable
from optforge.search.training.trainer import Progress, Trainer, training
from optforge.search.training.trial import rule_text

Named = str | tuple[str, Program | LearnedRate]
"""An entrant: what the command line accepts, or a name and a program."""


def compare(
    *entrants: Named,
    tasks: str | Task | Sequence[str | Task],
    train: Train | None = None,
    costs: bool = True,
    notes: tuple[str, ...] = (),
    **settings: object,
) -> Contest:
    """Tune every entrant with the same budget, then set them beside each other on fresh seeds.

    Args:
        entrants: names of optimizers, program files, ``RUN_DIR#RANK`` or ``learned(…)`` of any of these; or pairs of a
            name and a program.
        tasks: tasks or their names.
        train: what trains, by default this process; see `search.training.trainer.Trainer`.
        costs: whether the cost of a step is measured.
        notes: sentences for the report.
        **settings: fields of `experiments.compare.plan.Plan`: `trials`, `seeds`, `steps`, `schedule`, and others.

    Raises:
        ValueError: if there is nothing to compare, or an entrant cannot train a task's model.
        UserError: for names that do not exist.
        FailedError: if a run breaks.
    """
    given = [tasks] if isinstance(tasks, str | Task) else tasks
    known = {task.name: task for task in given if isinstance(task, Task)}
    names = tuple(task.name if isinstance(task, Task) else task for task in given)

    def find(name: str) -> Task:
        return known[name] if name in known else task_named(name)

    plan = Plan(rows(entrants), names, **settings)  # type: ignore[arg-type]
    check_plan(plan)
    check_rows(plan, find)
    return conduct(plan, train or Trainer(), find, costs=costs, notes=notes)


def conduct(
    plan: Plan,
    train: Train,
    find: Callable[[str], Task] = task_named,
    *,
    costs: bool = True,
    notes: tuple[str, ...] = (),
) -> Contest:
    """The comparison that a plan describes, with trials trained by `train`."""
    found = answer(units(plan, find), train)
    measured: AllCosts = {}
    for unit in found if costs else []:
        for row, what in enumerate(plan.rows):
            if unit.horizon == plan.horizons[0]:
                values = unit.tuned.winner(row).values
                rule, first = with_base(what.rule, configured(what.program, values)), unit.task == plan.tasks[0]
                own = measure_costs(find(unit.task), rule, values[RATE], compiling=first)
                seconds = own.compile_seconds if first else measured[plan.tasks[0], row].compile_seconds
                measured[unit.task, row] = Costs(own.step_ms, own.rule_ms, own.peak_bytes, seconds)
    return contest(plan, found, find, measured, notes)


def rows(entrants: Sequence[Named]) -> tuple[Row, ...]:
    """Entrants as rows of a plan; a name that occurs again gets a number."""
    found = [resolve_entrant(e) if isinstance(e, str) else e for e in entrants]
    names = unique_names([name for name, _ in found])
    return tuple(row_of(name, rule) for name, (_, rule) in zip(names, found, strict=True))


def row_of(name: str, rule: Program | LearnedRate, rate: float | None = None, *, control: bool = False) -> Row:
    """A row of a plan; its rate is by default the usual one of the baseline that it is."""
    usual = usual_rate(baseline_name(base_program(rule)) or name)
    return Row(name, rule_text(rule), usual if rate is None else rate, control)


def check_rows(plan: Plan, find: Callable[[str], Task] = task_named) -> None:
    """Raise `ValueError` if a program of the plan cannot train the model of one of its tasks."""
    for name in plan.tasks:
        shapes = [tuple(p.shape) for p in trainable(initial_model(find(name), 0)).values()]
        small = [shape for shape in shapes if len(shape) < 2]
        for row in plan.rows:
            if small and row.program.needs_matrix and row.program.fallback is None:
                raise ValueError(
                    f"{row.name} works on rows and columns, but the model has a parameter of shape {small[0]}; "
                    "give the program a fallback for such parameters"
                )


def open_store(where: Path | str) -> Store:
    """The store of trials at a path or address. Outcomes belong to tasks as they are now."""
    return Store(where, identity)


def executor(workers: int) -> Executor | None:
    """Processes that train; None for this one."""
    return Workers(training(task_named, parse_rule, name_of), workers) if workers > 1 else None


__all__ = ["Progress", "check_rows", "compare", "conduct", "executor", "open_store", "row_of", "rows"]
