"""The end of a search: its best programs beside tuned AdamW and Lion, the hall of fame, and the report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from baselines import BASELINES
from experiments import funnel_report
from experiments.comparison import finite_or_null
from experiments.comparison_tables import Table, interval_text, number
from experiments.files import write_atomic
from experiments.funnel_run import ENTRANTS, Funnel, run_funnel
from experiments.programs import HALL_OF_FAME
from experiments.statistics import Interval, mean_interval
from experiments.tasks import get_task
from primitives import Program, print_program

if TYPE_CHECKING:
    from experiments.comparison import Comparison, Entry
    from search.engine import Search
    from search.ledger import Record

FINALISTS = 5
REFERENCES = ("adamw", "lion")
# How the finalists are compared where a run takes seconds; elsewhere `compare`'s own protocol serves.
LARGE_MODEL = 20_000  # parameters
LARGE_PROTOCOL = {
    "ladder": tuple(float(f"{10 ** (k / 2):.3g}") for k in range(-8, 1)),
    "tune_seeds": (1000,),
    "seeds": tuple(range(2000, 2005)),
}
LARGE_FINALISTS = 3


class FunnelSettings(NamedTuple):
    """How the funnel is run: processes that train, and programs between checkpoints (0 for `run_funnel`'s own)."""

    workers: int
    every: int = 0


def conclude(
    run_dir: Path,
    json_file: Path | None,
    config: dict[str, Any],
    search: Search,
    *,
    fast: bool,
    funnel: FunnelSettings | None = None,
) -> None:
    """Archive, funnel if asked for, and hall of fame: re-evaluated on fresh seeds beside AdamW and Lion.

    In a hurry (`fast`) there is no funnel, and the hall of fame is by search score alone, without intervals.
    """
    from experiments.console import print_comparison, print_table
    from experiments.report import write_report

    candidates = _distinct(search.best)
    print_table(funnel_report.write_archive(run_dir, search.history))
    passed = None if funnel is None or fast else _funnel(run_dir, config, search, candidates, funnel)
    if passed is not None and passed.survivors:  # otherwise there was no stage for this task
        records = {record.number: record for record in candidates}
        candidates = [records[number] for number in passed.survivors]
    finalists = candidates[: LARGE_FINALISTS if _is_large(config["task"]) else FINALISTS]
    if fast:
        _write_hall_of_fame(run_dir, [(record, None) for record in finalists])
        print(f"hall of fame, by search score: {run_dir / HALL_OF_FAME}")
        return
    comparison, order = _final_comparison(config, finalists)
    _write_hall_of_fame(run_dir, [(finalists[i], comparison) for i in order])
    summary = _summary(config, search, comparison)
    if passed is not None:
        summary["funnel"] = funnel_report.summary(passed)
    table = {"search": summary, "table": comparison.as_json()}
    content = json.dumps(table, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    for path in (run_dir / "search.json", json_file):
        if path is not None:
            write_atomic(path, content)
    report = write_report(comparison, run_dir, summary)
    print_comparison(comparison)
    print_table(_fame_table([(finalists[i], comparison) for i in order]))
    ranks = ", ".join(f"#{rank} found {finalists[i].number}" for rank, i in enumerate(order, 1))
    print(f"programs:    {run_dir / HALL_OF_FAME}, by tuning loss: {ranks}")
    print(f"             each is a PROGRAM, as in: optforge show {run_dir}#1")
    print(f"report:      {report.html}")
    print(f"TensorBoard: tensorboard --logdir {run_dir / 'tensorboard'}")


def _is_large(task: str) -> bool:
    return sum(p.numel() for p in get_task(task).model().parameters()) > LARGE_MODEL


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

    task = get_task(config["task"])
    programs: list[tuple[str, Program]] = [(f"found {r.number}", r.program.pruned()) for r in finalists]
    programs += [(name, BASELINES[name].program) for name in REFERENCES]
    with comparison_progress() as progress:
        protocol: dict[str, Any] = LARGE_PROTOCOL if _is_large(config["task"]) else {}
        steps = config["steps"] or None
        comparison = compare(programs, task, against=REFERENCES, progress=progress, steps=steps, **protocol)
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
            entry = comparison.entry(f"found {record.number}")
            row |= {"lr": entry.lr, "valid": entry.valid_mean, "valid_interval": asdict(_valid_interval(entry))}
            row |= {"test": entry.mean, "test_interval": asdict(entry.interval)}
            row |= {"seeds": [run.seed for run in entry.runs], "failed": entry.diverged}
        rows.append(row)
    write_atomic(run_dir / HALL_OF_FAME, json.dumps(finite_or_null(rows), indent=2) + "\n")


def _valid_interval(entry: Entry) -> Interval:
    return mean_interval([run.start if run.failed else run.valid for run in entry.runs])


def _fame_table(ranked: list[tuple[Record, Comparison]]) -> Table:
    """Scores of the search beside those on fresh seeds: being the best of thousands flatters (the winner's curse)."""
    rows = []
    for rank, (record, comparison) in enumerate(ranked, 1):
        entry = comparison.entry(f"found {record.number}")
        fresh = (number(entry.valid_mean), interval_text(_valid_interval(entry)))
        rows.append((f"#{rank} found {record.number}", number(record.fitness.score), *fresh))
    header = ("hall of fame", "search score", "fresh seeds", "95% interval")
    return Table("Validation loss in the search, and on seeds it has not seen", header, tuple(rows))


def _funnel(
    run_dir: Path, config: dict[str, Any], search: Search, candidates: list[Record], settings: FunnelSettings
) -> Funnel:
    """The best programs of the search on other tasks; prints who is left."""
    from experiments.console import comparison_progress, print_notes, print_table

    entrants = {record.number: record.program for record in candidates[:ENTRANTS]}
    with comparison_progress() as progress:
        found = run_funnel(
            run_dir, config["task"], entrants, search.history,
            every=settings.every, workers=settings.workers, report=progress,
        )  # fmt: skip
    statistics = search.statistics
    sound = statistics.trained - statistics.diverged
    before = [("probes and cache", statistics.generated, statistics.trained), (config["task"], sound, len(entrants))]
    print_table(funnel_report.stage_table(found, before))
    print_notes(funnel_report.sentences(found))
    funnel_report.write_picture(run_dir, found.as_json())
    return found


def _summary(config: dict[str, Any], search: Search, comparison: Comparison) -> dict[str, Any]:
    """What the report tells of the search itself."""
    from search.cache import Verdict

    best, curve = float("inf"), []
    for individual in search.history:
        if individual.score < best:
            best = individual.score
            curve.append((individual.number, best))
    statistics, evolution = search.statistics, search.evolution
    return {
        "config": config,
        "programs": statistics.trained,
        "seconds": round(search.ledger.seconds(), 1),
        "counters": {
            "generated": statistics.generated,
            "duplicates": statistics.duplicates,
            "diverged": statistics.diverged,
            **{v.value.replace("_", " "): statistics.verdicts[v] for v in Verdict},
        },
        "redundant statements": statistics.redundancy,
        "cache hits": {
            "by key": statistics.cache_hits(behavioural=False),
            "by key and behaviour": statistics.cache_hits(),
        },
        "restarts": [{"number": n, "from": evolution.founded_by(n)} for n in evolution.restarts(statistics.trained)],
        "digest": search.ledger.digest(),
        "curve": curve,
        "champion": print_program(search.best[0].program.pruned()),
    }
