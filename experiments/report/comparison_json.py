"""Comparisons as they were written to JSON, read back for reports."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from optforge.baselines import BASELINES
from optforge.experiments.compare.comparison import Comparison, Costs, Entry, Protocol, Run, Setting, Tuning
from optforge.experiments.compare.contest import Contest
from optforge.experiments.compare.statistics import Interval, Pair, Verdict
from optforge.experiments.compare.verdict import CONTROL, contest_sentence, verdict_sentence
from optforge.experiments.errors import UserError
from optforge.experiments.programs import baseline_name
from optforge.experiments.report.runs import read_program
from optforge.primitives import Program
from optforge.search.training import Task

EDITED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, StopIteration)
"""What reading, judging or drawing something else than a comparison raises."""


def contest_from_json(found: dict[str, Any], source: Path) -> Contest:
    """The comparisons in `found`, on several tasks or on one.

    Raises:
        UserError: if there is none; `source` is the file to blame.
    """
    if "comparisons" not in found:
        comparison = comparison_from_json(found, source)
        return Contest((comparison,), comparison.verdict, {}, (), {})
    try:
        comparisons = tuple(comparison_from_json(row, source) for row in found["comparisons"])
        names = [entry.name for entry in comparisons[0].entries]
        if any([e.name for e in c.entries] != names for c in comparisons):
            raise ValueError("not the same optimizers on every task")
        profiles = {str(name): [float(x) for x in ratios] for name, ratios in found["profiles"].items()}
        if len({len(ratios) for ratios in profiles.values()}) > 1:
            raise ValueError("profiles of different lengths")
        notes = tuple(map(str, found["notes"]))
        verdict = str(found["verdict"])
        if not all(map(_marked, found["comparisons"])):
            verdict = contest_sentence(comparisons)
        return Contest(comparisons, verdict, profiles, notes, dict(found["plan"]))
    except EDITED as error:
        raise UserError(
            f"{source} is not a comparison's JSON ({type(error).__name__}: {error}); was it edited?"
        ) from None


def comparison_from_json(found: dict[str, Any], source: Path) -> Comparison:
    """The comparison that `Comparison.as_json` described; its task has a name and a metric, but no data or model.

    Raises:
        UserError: if it is none; `source` is the file to blame.
    """
    try:
        entries = tuple(_entry(e, source) for e in found["optimizers"])
        about: dict[str, Any] = {name: str(found["task"][name]) for name in ("name", "summary", "metric", "licence")}
        accuracy = any(e.accuracy is not None for e in entries)
        task = Task(
            **about, model=_absent, data=_absent, loss=_absent, steps=int(found["protocol"]["steps"]),
            batch_size=int(found["task"]["batch_size"]), accuracy=accuracy,
        )  # fmt: skip
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found["protocol"].items()}
        pairs = tuple(_pair(p) for p in found["pairs"])
        names = {e.name for e in entries}
        if not entries or any({p.first, p.second} - names for p in pairs):
            raise ValueError("pairs of optimizers that are not listed")
        protocol, target = Protocol(task, **settings), found.get("target")
        if odd := [e.name for e in entries if len(e.runs) != len(protocol.seeds) or math.isnan(e.mean)]:
            raise ValueError(f"{odd[0]} needs a mean and one run for each of {len(protocol.seeds)} seeds")
        if len({(len(run.curve), len(run.valid_curve)) for e in entries for run in e.runs}) > 1:
            raise ValueError("curves of different lengths")
        verdict = str(found["verdict"]) if _marked(found) else verdict_sentence(protocol, entries, pairs)
        return Comparison(protocol, entries, pairs, verdict, dict(found["provenance"]), target)
    except EDITED as error:
        raise UserError(
            f"{source} is not a comparison's JSON ({type(error).__name__}: {error}); was it edited?"
        ) from None


def _marked(found: dict[str, Any]) -> bool:
    """Whether a comparison says which entries are references; a verdict that is older may count tuned ones as found."""
    return all("reference" in e for e in found["optimizers"])


def _is_reference(name: str, program: Program) -> bool:
    """What an older file meant: only a baseline can have a baseline's name, also after its constants were tuned."""
    return name in BASELINES or name == CONTROL or baseline_name(program) is not None


def _entry(found: dict[str, Any], source: Path) -> Entry:
    tuning = found["tuning"] | {
        "rates": tuple(found["tuning"]["rates"]),
        "losses": tuple(tuple(map(finite_or_nan, row)) for row in found["tuning"]["losses"]),
        "counted": tuple(tuple(map(finite_or_nan, row)) for row in found["tuning"]["counted"]),
        "failed": tuple(map(tuple, found["tuning"]["failed"])),
        "trials": tuple(map(Setting.from_json, found["tuning"].get("trials", ()))),
        "space": tuple(found["tuning"].get("space", ())),
        "edges": tuple(map(str, found["tuning"].get("edges", ()))),
    }
    runs = []
    for run in found["runs"]:
        fields = {k: v for k, v in run.items() if k in Run.__dataclass_fields__}
        fields |= {k: finite_or_nan(run[k]) for k in ("start", "valid", "test")}
        fields |= {k: tuple(map(finite_or_nan, run.get(k, ()))) for k in ("curve", "valid_curve")}
        runs.append(Run(**fields))
    names = ("mean", "valid_mean", "accuracy", "state_bytes", "statements", "all_statements")
    numbers = {name: found[name] for name in names} | {
        k: finite_or_nan(found[k]) for k in ("mean", "valid_mean", "state_bytes")
    }
    program = read_program(found["program"], source)
    kept = {k: v for k, v in tuning.items() if k in Tuning.__dataclass_fields__}
    name = str(found["name"])
    return Entry(
        name=name, program=program, reference=bool(found.get("reference", _is_reference(name, program))),
        tuning=Tuning(**kept), runs=tuple(runs),
        interval=_interval(found["interval"]), costs=Costs(**found["costs"]) if found.get("costs") else None, **numbers,
    )  # fmt: skip


def _pair(found: dict[str, Any]) -> Pair:
    others = ("first", "second", "interval", "verdict", "bootstrap", "count")
    numbers = {k: finite_or_nan(v) for k, v in found.items() if k not in others}
    bootstrap = _interval(found["bootstrap"]) if found.get("bootstrap") else None
    return Pair(
        first=str(found["first"]), second=str(found["second"]), interval=_interval(found["interval"]),
        verdict=Verdict(found["verdict"]), bootstrap=bootstrap, count=int(found.get("count", 0)), **numbers,
    )  # fmt: skip


def _interval(found: dict[str, Any]) -> Interval:
    return Interval(
        finite_or_nan(found["low"]), finite_or_nan(found["high"]), float(found["level"]), str(found["method"])
    )


def finite_or_nan(value: Any) -> float:
    """The number, or NaN for null, as which runs write all that is not finite; ValueError for infinity and NaN."""
    if value is None:
        return math.nan
    if not math.isfinite(value):
        raise ValueError(f"{value} where a finite number or null is expected")
    return float(value)


def _absent(*_: Any) -> Any:
    raise NotImplementedError("a comparison that was read from a file has neither data nor model")
