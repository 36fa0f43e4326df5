"""The end of a search: its best programs beside tuned AdamW and Lion, the hall of fame, and the report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from baselines import BASELINES
from experiments.compare.comparison import finite_or_null
from experiments.compare.statistics import Interval, mean_interval
from experiments.compare.tables import Table, interval_text, number
from experiments.files import write_atomic
from experiments.programs import HALL_OF_FAME, usual_rate
from experiments.searching import funnel_report
from experiments.searching.funnel_run import ENTRANTS, FEW_ENTRANTS, Funnel, is_large, run_funnel
from experiments.tasks import get_task
from primitives import Program, print_program

if TYPE_CHECKING:
    from experiments.compare.comparison import Comparison, Entry
    from experiments.searching.constants import TunedConstants
    from search.engine import Search
    from search.ledger import Record

FINALISTS = 5
REFERENCES = ("adamw", "lion")
CONSTANTS = "constants.sqlite"
# How the finalists are compared where a run takes seconds; elsewhere `compare`'s own protocol serves.
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


class Finalist(NamedTuple):
    """What is compared at the end: a record of the search, or a reference by `name`; with its numbers as tuned."""

    record: Record | None
    program: Program
    lr: float
    name: str = ""
    constants: TunedConstants | None = None

    @property
    def label(self) -> str:
        """How tables call it."""
        return self.name if self.record is None else f"found {self.record.number}"


class Ending(NamedTuple):
    """How a search ends.

    Attributes:
        fast: in a hurry there is no funnel, and the hall of fame is by search score alone, without intervals.
        funnel: how the funnel is run, if it is.
        trials: for the numbers in each finalist and reference, before they are compared.
    """

    fast: bool
    funnel: FunnelSettings | None = None
    trials: int = 0


def conclude(run_dir: Path, json_file: Path | None, config: dict[str, Any], search: Search, ending: Ending) -> None:
    """Archive, funnel if asked for, and hall of fame: re-evaluated on fresh seeds beside AdamW and Lion."""
    from experiments.compare.console import print_comparison, print_table
    from experiments.report.comparison_report import write_report

    candidates = _distinct(search.best)
    print_table(funnel_report.write_archive(run_dir, search.history))
    wanted = None if ending.fast else ending.funnel
    passed = None if wanted is None else _funnel(run_dir, config, search, candidates, wanted)
    if passed is not None and passed.survivors:  # otherwise there was no stage for this task
        records = {record.number: record for record in candidates}
        candidates = [records[number] for number in passed.survivors]
    finalists = candidates[: LARGE_FINALISTS if is_large(config["task"]) else FINALISTS]
    if ending.fast:
        _write_hall_of_fame(run_dir, [Finalist(r, r.program.pruned(), r.fitness.lr) for r in finalists], None)
        print(f"hall of fame, by search score: {run_dir / HALL_OF_FAME}")
        return
    entrants = [Finalist(r, r.program.pruned(), r.fitness.lr) for r in finalists]
    entrants += [Finalist(None, BASELINES[name].program, usual_rate(name), name) for name in REFERENCES]
    if ending.trials:
        entrants = _tuned(run_dir, config, entrants, ending.trials)
    comparison, ranked = _final_comparison(config, entrants)
    _write_hall_of_fame(run_dir, ranked, comparison)
    summary = _summary(config, search, comparison)
    if ending.trials:
        summary["constants"] = {e.label: e.constants.as_json() for e in entrants if e.constants is not None}
    if passed is not None:
        summary["funnel"] = funnel_report.summary(passed)
    table = {"search": summary, "table": comparison.as_json()}
    content = json.dumps(table, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    for path in (run_dir / "search.json", json_file):
        if path is not None:
            write_atomic(path, content)
    report = write_report(comparison, run_dir, summary)
    print_comparison(comparison)
    print_table(_fame_table(ranked, comparison))
    ranks = ", ".join(f"#{rank} {entrant.label}" for rank, entrant in enumerate(ranked, 1))
    print(f"programs:    {run_dir / HALL_OF_FAME}, by tuning loss: {ranks}")
    print(f"             each is a PROGRAM, as in: optforge show {run_dir}#1")
    print(f"report:      {report.html}")
    print(f"TensorBoard: tensorboard --logdir {run_dir / 'tensorboard'}")


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


def _tuned(run_dir: Path, config: dict[str, Any], entrants: list[Finalist], trials: int) -> list[Finalist]:
    """All with better numbers, after as many trials each."""
    from experiments.compare.console import comparison_progress, print_notes
    from experiments.searching.constants import tune_constants
    from experiments.searching.tune_command import sentence

    task, found = get_task(config["task"]), []
    steps, storage = config["steps"] or None, run_dir / CONSTANTS
    with comparison_progress() as progress:
        for e in entrants:
            what = f"numbers of {e.label}"
            tuned = tune_constants(
                e.program, task, e.lr, trials=trials, steps=steps, storage=storage, report=progress, what=what
            )
            found.append(e._replace(program=tuned.program, lr=tuned.lr, constants=tuned))
    print_notes([sentence(e.label, e.constants) for e in found if e.constants is not None])
    return found


def _final_comparison(config: dict[str, Any], entrants: list[Finalist]) -> tuple[Comparison, list[Finalist]]:
    """All tuned on one ladder of learning rates; and the finalists by tuning loss."""
    from experiments.compare import compare
    from experiments.compare.console import comparison_progress

    task = get_task(config["task"])
    programs = [(e.label, e.program) for e in entrants]
    with comparison_progress() as progress:
        protocol: dict[str, Any] = LARGE_PROTOCOL if is_large(config["task"]) else {}
        steps = config["steps"] or None
        comparison = compare(programs, task, against=REFERENCES, progress=progress, steps=steps, **protocol)
    # by tuning loss, so that the reported runs stay an unselected estimate
    finalists = [e for e in entrants if e.record is not None]
    return comparison, sorted(finalists, key=lambda e: comparison.entry(e.label).tuning.loss)


def _write_hall_of_fame(run_dir: Path, ranked: list[Finalist], comparison: Comparison | None) -> None:
    rows = []
    for rank, e in enumerate(ranked, 1):
        assert e.record is not None
        row = {
            "rank": rank,
            "number": e.record.number,
            "score": e.record.fitness.score,
            "lr": e.lr,
            "key": e.program.key,
            "program": print_program(e.program),
        }
        if comparison is not None:
            entry = comparison.entry(e.label)
            row |= {"lr": entry.lr, "valid": entry.valid_mean, "valid_interval": asdict(_valid_interval(entry))}
            row |= {"test": entry.mean, "test_interval": asdict(entry.interval)}
            row |= {"seeds": [run.seed for run in entry.runs], "failed": entry.diverged}
        rows.append(row)
    write_atomic(run_dir / HALL_OF_FAME, json.dumps(finite_or_null(rows), indent=2) + "\n")


def _valid_interval(entry: Entry) -> Interval:
    return mean_interval([run.start if run.failed else run.valid for run in entry.runs])


def _fame_table(ranked: list[Finalist], comparison: Comparison) -> Table:
    """Scores of the search beside those on fresh seeds: being the best of thousands flatters (the winner's curse)."""
    rows = []
    for rank, e in enumerate(ranked, 1):
        assert e.record is not None
        entry = comparison.entry(e.label)
        fresh = (number(entry.valid_mean), interval_text(_valid_interval(entry)))
        rows.append((f"#{rank} {e.label}", number(e.record.fitness.score), *fresh))
    header = ("hall of fame", "search score", "fresh seeds", "95% interval")
    return Table("Validation loss in the search, and on seeds it has not seen", header, tuple(rows))


def _funnel(
    run_dir: Path, config: dict[str, Any], search: Search, candidates: list[Record], settings: FunnelSettings
) -> Funnel:
    """The best programs of the search on other tasks; prints who is left."""
    from experiments.compare.console import comparison_progress, print_notes, print_table

    count = FEW_ENTRANTS if is_large(config["task"]) else ENTRANTS
    entrants = {record.number: record.program for record in candidates[:count]}
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
    funnel_report.write_scalars(run_dir, found)
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
