"""The end of a search: its best programs on fresh seeds and unseen tasks beside tuned references, and the report."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from optforge.baselines import BASELINES
from optforge.experiments.compare.ablation import Ablation, ablate
from optforge.experiments.compare.fingerprints import task_named
from optforge.experiments.compare.plan import FACTORS, Plan, Row
from optforge.experiments.compare.run import conduct
from optforge.experiments.compare.statistics import Interval, mean_interval
from optforge.experiments.files import finite_or_null, write_atomic
from optforge.experiments.programs import HALL_OF_FAME, usual_rate
from optforge.experiments.rundirs import COMPARE_RESULT
from optforge.experiments.searching import funnel_report
from optforge.experiments.searching.fresh_seeds import UNSEEN, FreshScore, fresh_scores, fresh_table, loss_ratios
from optforge.experiments.searching.funnel_run import ENTRANTS, Funnel, is_large, run_funnel
from optforge.experiments.searching.presets import SCHEDULE, WARMUP
from optforge.experiments.searching.summary import summary_of
from optforge.primitives import Program, print_program
from optforge.primitives.analysis.simplify import simplify
from optforge.search.training.asking import answer, together

if TYPE_CHECKING:
    from optforge.experiments.compare.comparison import Comparison, Entry
    from optforge.experiments.compare.contest import Contest
    from optforge.experiments.searching.constants import TunedConstants
    from optforge.search.engine import Search
    from optforge.search.ledger import Record
    from optforge.search.training.asking import Train
    from optforge.search.training.executors.pool import Executor

RESCORED = 5
"""Best programs of a search that are scored again on fresh seeds."""

FINALISTS = 3
REFERENCES = ("adamw", "lion", "muon")
FINAL: dict[str, Any] = {"trials": 8, "dimensions": 1, "seeds": 10, "tune_seeds": 2}
"""The plan of the comparison that ends a search; the rate is all that is tuned, as long as no trials are asked for."""

LARGE: dict[str, Any] = {"seeds": 5, "tune_seeds": 1, "factors": FACTORS[3:6]}
"""What differs where a run takes seconds."""


class Finalist(NamedTuple):
    """What is compared at the end: a record of the search, or a reference by `name`; with its numbers as tuned."""

    record: Record | None
    program: Program
    lr: float
    name: str = ""
    constants: TunedConstants | None = None
    ablation: Ablation | None = None

    @property
    def label(self) -> str:
        """How tables call it."""
        return self.name if self.record is None else f"found {self.record.number}"


class Ending(NamedTuple):
    """How a search ends.

    Attributes:
        fast: the hall of fame is by search score alone: no fresh seeds, no funnel, no comparison.
        funnel: whether the best programs are trained on other tasks first.
        every: programs between checkpoints of the funnel; 0 for its own choice.
        trials: for the numbers in each finalist and reference, before they are compared.
        ablate: whether the champion goes without the statements that it does not need.
    """

    fast: bool
    funnel: bool = False
    every: int = 0
    trials: int = 0
    ablate: bool = False


class Standings(NamedTuple):
    """Scores on fresh seeds by `Finalist.label`: on the search's own tasks, and on tasks that it has not seen."""

    own: dict[str, FreshScore]
    unseen: dict[str, FreshScore]


def conclude(
    run_dir: Path,
    json_file: Path | None,
    config: dict[str, Any],
    search: Search,
    ending: Ending,
    scorer: Executor,
    executor_for: Callable[[Sequence[str]], Executor],
    train: Train,
) -> None:
    """Archive, fresh seeds, funnel if asked for, and the hall of fame beside tuned references.

    Args:
        run_dir: of the search.
        json_file: where the table goes, too, if anywhere.
        config: what determined the search.
        search: which has ended.
        ending: how to conclude it.
        scorer: what scored programs in the search.
        executor_for: makes what scores them on other tasks.
        train: what trains, see `search.training.trainer.Trainer`.
    """
    from optforge.experiments.report.command import write_run_report
    from optforge.experiments.report.terminal import print_document, print_table

    candidates = [_finalist(r) for r in distinct(search.best)]
    funnel_report.write_archive(run_dir, search.history)
    if ending.fast:
        _write_hall_of_fame(run_dir, candidates[:FINALISTS], None, Standings({}, {}))
        print(f"hall of fame, by search score: {run_dir / HALL_OF_FAME}")
        return
    references = [Finalist(None, BASELINES[name].program, usual_rate(name), name) for name in REFERENCES]
    best = candidates[: ENTRANTS if ending.funnel else RESCORED]
    own = _scores(scorer, [*best, *references], config["batch"])
    best.sort(key=lambda e: own[e.label].mean)
    passed = _funnel(run_dir, config, search, best, ending, train) if ending.funnel else None
    if passed is not None and passed.survivors:  # otherwise there was no stage for these tasks
        by_number = {e.record.number: e for e in best if e.record is not None}
        best = [by_number[number] for number in passed.survivors]
    if ending.ablate:
        best[0] = _ablated(scorer, best[0], config["batch"])
    entrants = [*best[:FINALISTS], *references]
    unseen_tasks = [name for name in UNSEEN if name not in (*config["tasks"], compared_on(config["tasks"]))]
    unseen: dict[str, FreshScore] = {}
    if unseen_tasks:
        with contextlib.closing(executor_for(unseen_tasks)) as other:
            unseen = _scores(other, entrants, config["batch"])
    standings = Standings(own, unseen)
    if ending.trials:
        entrants = _tuned(config, entrants, ending.trials, train)
    found = _final_comparison(config, entrants, train)
    (comparison,) = found.comparisons
    ranked = [e for e in entrants if e.record is not None]
    _write_hall_of_fame(run_dir, ranked, comparison, standings)
    summary = summary_of(config, search)
    if ending.trials:
        summary["constants"] = {e.label: e.constants.as_json() for e in entrants if e.constants is not None}
    table = {"search": summary, "table": comparison.as_json()}
    content = json.dumps(table, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    for path in (run_dir / "search.json", json_file):
        if path is not None:
            write_atomic(path, content)
    write_atomic(
        run_dir / COMPARE_RESULT, json.dumps(found.as_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    )
    written = write_run_report([run_dir])
    print_document(written.document)
    rows = [*ranked, *(e for e in entrants if e.record is None)]
    print_table(fresh_table([(e.label, _score(e), own[e.label], unseen.get(e.label)) for e in rows]))
    ranks = ", ".join(f"#{rank} {entrant.label}" for rank, entrant in enumerate(ranked, 1))
    print(f"programs:    {run_dir / HALL_OF_FAME}, by score on fresh seeds: {ranks}")
    print(f"             each is a PROGRAM, as in: optforge show {run_dir}#1")
    print(f"report:      {written.html}")
    print(f"TensorBoard: tensorboard --logdir {run_dir / 'tensorboard'}")


def _finalist(record: Record) -> Finalist:
    return Finalist(record, simplify(record.program), record.fitness.lr)


def _ablated(scorer: Executor, champion: Finalist, batch: int) -> Finalist:
    """The champion without the statements that it does not need."""
    found = ablate(champion.program, loss_ratios(scorer, batch))
    return champion._replace(program=found.program, ablation=found)


def _score(entrant: Finalist) -> float | None:
    return None if entrant.record is None else entrant.record.fitness.score


def _scores(executor: Executor, entrants: Sequence[Finalist], batch: int) -> dict[str, FreshScore]:
    """Scores of all on fresh seeds."""
    found = fresh_scores(executor, [e.program for e in entrants], batch)
    return {e.label: score for e, score in zip(entrants, found, strict=True)}


def distinct(best: list[Record]) -> list[Record]:
    """Without programs that trained like a better one: a change in the ninth digit is no second find."""
    kept: list[Record] = []
    for record in best:
        if not any(_alike(k, record) for k in kept):
            kept.append(record)
    return kept


def _alike(a: Record, b: Record) -> bool:
    """Whether both had the same losses at every rate on every task."""
    x, y = ([loss for part in record.fitness.parts for loss in part.by_rate] for record in (a, b))
    return len(x) == len(y) and all(math.isclose(*both, rel_tol=1e-4) for both in zip(x, y, strict=True))


def _tuned(config: dict[str, Any], entrants: list[Finalist], trials: int, train: Train) -> list[Finalist]:
    """All with better numbers, after as many trials each."""
    from optforge.experiments.report.terminal import print_notes
    from optforge.experiments.searching.constants import tune_constants
    from optforge.experiments.searching.tune_command import sentence

    task = task_named(config["tasks"][0])
    steps = config["steps"] or task.steps
    options: dict[str, Any] = {"steps": steps, "schedule": SCHEDULE, "warmup": round(WARMUP * steps)}
    asking = [tune_constants(e.program, task, e.lr, trials=trials, **options) for e in entrants]
    found = [
        e._replace(program=tuned.program, lr=tuned.lr, constants=tuned)
        for e, tuned in zip(entrants, answer(together(asking), train), strict=True)
    ]
    print_notes([sentence(e.label, e.constants) for e in found if e.constants is not None])
    return found


def _final_comparison(config: dict[str, Any], entrants: list[Finalist], train: Train) -> Contest:
    """The comparison of `optforge compare`, on a task that the search has not seen if it saw several."""
    name = compared_on(config["tasks"])
    large = LARGE if len(config["tasks"]) > 1 or is_large(name) else {}
    settings = FINAL | large | {"steps": config["steps"] or None, "schedule": SCHEDULE, "warmup": WARMUP}
    rows = tuple(Row(e.label, print_program(e.program), e.lr, reference=e.record is None) for e in entrants)
    return conduct(Plan(rows, (name,), **settings), train, costs=False)  # compiling takes longer than all else


def compared_on(tasks: Sequence[str]) -> str:
    """Which task ends a search: the only one, or the first unseen one."""
    return tasks[0] if len(tasks) == 1 else next((name for name in UNSEEN if name not in tasks), tasks[0])


def _write_hall_of_fame(
    run_dir: Path, ranked: list[Finalist], comparison: Comparison | None, standings: Standings
) -> None:
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
        for what, scores in standings._asdict().items():
            if (found := scores.get(e.label)) is not None:
                row[f"{what} tasks"] = {"mean": found.mean, "error": found.error, "by_task": found.by_task}
        if e.ablation is not None:
            row["ablation"] = [effect.as_json() for effect in e.ablation.effects]
        if comparison is not None:
            entry = comparison.entry(e.label)
            row |= {"lr": entry.lr, "valid": entry.valid_mean, "valid_interval": asdict(_valid_interval(entry))}
            row |= {"test": entry.mean, "test_interval": asdict(entry.interval)}
            row |= {"seeds": [run.seed for run in entry.runs], "failed": entry.diverged}
        rows.append(row)
    write_atomic(run_dir / HALL_OF_FAME, json.dumps(finite_or_null(rows), indent=2) + "\n")


def _valid_interval(entry: Entry) -> Interval:
    return mean_interval([run.start if run.failed else run.valid for run in entry.runs])


def _funnel(
    run_dir: Path, config: dict[str, Any], search: Search, best: list[Finalist], ending: Ending, train: Train
) -> Funnel:
    """The best programs of the search on other tasks."""
    entrants = {e.record.number: e.record.program for e in best if e.record is not None}
    found = run_funnel(run_dir, train, config["tasks"], entrants, search.history, every=ending.every)
    funnel_report.write_scalars(run_dir, found)
    return found
