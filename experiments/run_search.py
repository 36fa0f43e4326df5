"""`optforge search`: evolve programs, then compare the best with tuned AdamW and Lion on fresh seeds."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from baselines import BASELINES
from experiments.errors import UserError, unknown
from experiments.files import write_atomic
from experiments.programs import HALL_OF_FAME, resolve_program
from experiments.tasks import get_task
from primitives import Program, print_program, subset
from primitives.text import parse_program

if TYPE_CHECKING:
    from experiments.comparison import Comparison
    from search.engine import Search
    from search.fitness import Evaluator
    from search.ledger import Record

LADDER = (3.16e-4, 1.78e-3, 1e-2, 5.62e-2, 3.16e-1)
OPS = ("lion45", "protected", "statistics", "masks", "smooth")
FINALISTS = 5
REFERENCES = ("adamw", "lion")
DEFAULTS: dict[str, Any] = {
    "task": "digits",
    "start": "adamw",
    "seed": 0,
    "population": 100,
    "tournament": 10,
    "batch": 32,
}
PRESETS: dict[str, dict[str, Any]] = {
    # `minutes` bounds a slow machine; elsewhere the number of programs ends it, which makes it reproducible
    "minutes": {"programs": 1280, "minutes": 4.0},
    "seconds": {"programs": 96, "minutes": 1.0},
}


@dataclass(frozen=True)
class SearchOptions:
    """What the command line asks for; None means the preset's, the resumed run's or the default value.

    Attributes:
        task: name of the task.
        start: PROGRAM that evolution starts from.
        seed: of all randomness.
        programs: stop after so many trained programs in all.
        minutes: stop after so much time in this call.
        population: programs that may become parents.
        tournament: rivals for each parent.
        batch: programs trained together.
        workers: processes; 0 trains in this one. By default one for each core.
        run_dir: an existing, empty directory, or with `resume` that of a run.
        resume: go on with the run in `run_dir`.
        json: where to write the final table, if anywhere.
        preset: named settings, see `PRESETS`.
    """

    run_dir: Path
    task: str | None = None
    start: str | None = None
    seed: int | None = None
    programs: int | None = None
    minutes: float | None = None
    population: int | None = None
    tournament: int | None = None
    batch: int | None = None
    workers: int | None = None
    resume: bool = False
    json: Path | None = None
    preset: str | None = None


def run_search(options: SearchOptions) -> bool:
    """Search, then report. Returns whether it ran to its end (False after an interrupt, with everything kept).

    Raises:
        UserError: for options that make no sense or contradict the run that is resumed.
    """
    import torch

    from experiments.search_view import SearchView
    from search.engine import Budget, Search
    from search.evolution import Evolution
    from search.ledger import Ledger, LedgerError
    from search.mutation import Space
    from search.workers import Workers

    torch.set_num_threads(1)  # the workers have the other cores; two threads that wait for each other lose tenfold
    options = _with_preset(options)
    try:
        if options.resume:
            ledger = Ledger.open(options.run_dir)
            config = _agreed(options, ledger.config)
        else:
            config = _config(options)
            ledger = Ledger.create(options.run_dir, config)
    except LedgerError as error:
        raise UserError(str(error)) from None
    evolution = Evolution(
        start=(parse_program(config["program"]),),
        space=Space(subset(*config["ops"])),
        **{name: config[name] for name in ("seed", "population", "tournament", "batch", "lag")},
    )
    factory = functools.partial(evaluator, config["task"], tuple(config["ladder"]), tuple(config["seeds"]))
    workers = Workers(factory, _cores() if options.workers is None else options.workers)
    finished = True
    try:
        search = Search(evolution, ledger, workers)
        budget = Budget(options.programs, None if options.minutes is None else 60 * options.minutes)
        with SearchView(search, budget, options.run_dir) as view:
            try:
                for batch in search.run(budget):
                    view.update(batch)
            except KeyboardInterrupt:
                finished = False
        workers.close()
        view.summary(search, interrupted=not finished)
        if not search.best:
            raise UserError(f"none of {search.statistics.trained} programs could be trained; try another --start")
        _conclude(options, config, search, fast=not finished)
    finally:
        workers.close()
        ledger.close()
    return finished


def digest(run_dir: Path) -> str:
    """SHA-256 over everything in a run's ledger that a repeated or resumed run must reproduce."""
    from search.ledger import Ledger, LedgerError

    try:
        ledger = Ledger.open(run_dir, read_only=True)
    except LedgerError as error:
        raise UserError(str(error)) from None
    try:
        return ledger.digest()
    finally:
        ledger.close()


def evaluator(task: str, ladder: tuple[float, ...], seeds: tuple[int, ...]) -> Evaluator:
    """The evaluator of a search, made inside each worker."""
    from search.fitness import Protocol
    from search.population import Population

    return Population(Protocol(get_task(task), ladder, seeds))


def _cores() -> int:
    import os

    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _with_preset(options: SearchOptions) -> SearchOptions:
    if options.preset is not None:
        if options.preset not in PRESETS:
            raise unknown("preset", options.preset, PRESETS)
        preset = PRESETS[options.preset]
        options = replace(options, **{n: v for n, v in preset.items() if getattr(options, n) is None})
    if options.programs is None and options.minutes is None:
        options = replace(options, **PRESETS["minutes"])
    return options


def _config(options: SearchOptions) -> dict[str, Any]:
    """What determines a search; kept in its ledger."""
    chosen = {name: getattr(options, name) for name in DEFAULTS}
    config = {name: DEFAULTS[name] if value is None else value for name, value in chosen.items()}
    get_task(config["task"])
    _, program = resolve_program(config["start"])
    config |= {"program": print_program(program), "ops": OPS, "ladder": LADDER, "seeds": (0, 1), "lag": 2}
    return dict(json.loads(json.dumps(config)))


def _agreed(options: SearchOptions, stored: dict[str, Any]) -> dict[str, Any]:
    """The resumed run's own configuration, if what was asked for agrees with it."""
    for name in DEFAULTS:
        asked = getattr(options, name)
        if asked is not None and asked != stored[name]:
            raise UserError(
                f"{options.run_dir} was begun with {name} {stored[name]} and cannot go on with {asked}; "
                f"leave --{name} out, or begin a new run"
            )
    return stored


def _conclude(options: SearchOptions, config: dict[str, Any], search: Search, fast: bool) -> None:
    """Hall of fame: re-evaluated on fresh seeds beside AdamW and Lion, or in a hurry by search score alone."""
    from experiments.console import print_comparison
    from experiments.report import write_report

    finalists = _distinct(search.best)[:FINALISTS]
    if fast:
        _write_hall_of_fame(options.run_dir, [(record, None) for record in finalists])
        print(f"hall of fame, by search score: {options.run_dir / HALL_OF_FAME}")
        return
    comparison, order = _final_comparison(config, finalists)
    _write_hall_of_fame(options.run_dir, [(finalists[i], comparison) for i in order])
    summary = _summary(config, search, comparison)
    table = {"search": summary, "table": comparison.as_json()}
    content = json.dumps(table, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    for path in (options.run_dir / "search.json", options.json):
        if path is not None:
            write_atomic(path, content)
    report = write_report(comparison, options.run_dir, summary)
    print_comparison(comparison)
    ranks = ", ".join(f"#{rank} found {finalists[i].number}" for rank, i in enumerate(order, 1))
    print(f"programs:    {options.run_dir / HALL_OF_FAME}, by tuning loss: {ranks}")
    print(f"             each is a PROGRAM, as in: optforge show {options.run_dir}#1")
    print(f"report:      {report.html}")
    print(f"TensorBoard: tensorboard --logdir {options.run_dir / 'tensorboard'}")


def _distinct(best: list[Record]) -> list[Record]:
    """Without programs that trained like a better one: a change in the ninth digit is no second find."""
    kept: list[Record] = []
    for record in best:
        twins = (k for k in kept if all(math.isclose(a, b, rel_tol=1e-4) for a, b in _rungs(k, record)))
        if next(twins, None) is None:
            kept.append(record)
    return kept


def _rungs(a: Record, b: Record) -> Iterator[tuple[float, float]]:
    return zip(a.fitness.rungs, b.fitness.rungs, strict=True)


def _final_comparison(config: dict[str, Any], finalists: list[Record]) -> tuple[Comparison, list[int]]:
    """Finalists, AdamW and Lion tuned on one ladder; and the finalists' order by tuning loss."""
    from experiments.compare import compare
    from experiments.console import comparison_progress

    programs: list[tuple[str, Program]] = [(f"found {r.number}", r.program.pruned()) for r in finalists]
    programs += [(name, BASELINES[name].program) for name in REFERENCES]
    with comparison_progress() as progress:
        comparison = compare(programs, get_task(config["task"]), against=REFERENCES, progress=progress)
    # by tuning loss, so that the reported runs stay an unselected estimate
    losses = [entry.tuning.loss for entry in comparison.entries[: len(finalists)]]
    return comparison, sorted(range(len(finalists)), key=losses.__getitem__)


def _write_hall_of_fame(run_dir: Path, ranked: list[tuple[Record, Comparison | None]]) -> None:
    rows = []
    for rank, (record, comparison) in enumerate(ranked, 1):
        row = {
            "rank": rank,
            "number": record.number,
            "score": record.fitness.score,
            "lr": record.fitness.lr,
            "key": record.key,
            "program": print_program(record.program.pruned()),
        }
        if comparison is not None:
            entry = next(e for e in comparison.entries if e.name == f"found {record.number}")
            row |= {"lr": entry.lr, "valid": entry.valid_mean}
        rows.append(row)
    write_atomic(run_dir / HALL_OF_FAME, json.dumps(rows, indent=2) + "\n")


def _summary(config: dict[str, Any], search: Search, comparison: Comparison) -> dict[str, Any]:
    """What the report tells of the search itself."""
    best, curve = float("inf"), []
    for individual in search.history:
        if individual.score < best:
            best = individual.score
            curve.append((individual.number, best))
    statistics = search.statistics
    return {
        "config": config,
        "programs": statistics.trained,
        "seconds": round(search.ledger.seconds(), 1),
        "counters": {
            "generated": statistics.generated,
            "duplicates": statistics.duplicates,
            "diverged": statistics.diverged,
            **{v.value.replace("_", " "): n for v, n in sorted(statistics.verdicts.items())},
        },
        "digest": search.ledger.digest(),
        "curve": curve,
        "champion": print_program(search.best[0].program.pruned()),
    }
