"""The report of comparisons and of single training runs, from what they wrote as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.comparison import Comparison, Costs, Entry, Protocol, Run, Trial, Tuning
from experiments.comparison_tables import Table, entry_table, notes, number, pair_table
from experiments.errors import UserError
from experiments.html_blocks import Code, Figures, Fold, Formula, Items, Section, Text, facts
from experiments.html_figures import memory_panel, training_panel
from experiments.html_runs import read_program
from experiments.plots import panels
from experiments.statistics import Interval, Pair, Verdict
from primitives import Task
from primitives.pseudocode import pseudo_code


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
        return Comparison(protocol, entries, pairs, str(found["verdict"]), dict(found["provenance"]), target)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"{source} is not a comparison's JSON ({type(error).__name__}: {error}); was it edited?"
        ) from None


def comparison_sections(comparison: Comparison, prefix: str = "") -> list[Section]:
    """Everything after the verdict."""
    tables = [t for t in (entry_table(comparison), pair_table(comparison)) if t.rows]
    shown = (*panels(comparison), memory_panel(comparison))
    task, protocol = comparison.protocol.task, comparison.protocol
    source = {
        "task": f"{task.name}: {task.summary}",
        "licence of the data": task.licence,
        "steps, batch": f"{protocol.steps}, {task.batch_size}",
        "tuning seeds": protocol.tune_seeds,
        "reported seeds": protocol.seeds,
        **comparison.provenance,
    }
    programs = tuple(
        Fold(
            e.name,
            (Formula(e.program), Code(pseudo_code(e.program), "pseudo-code"), Code(str(e.program).strip(), "program")),
        )
        for e in comparison.entries
    )
    return [
        Section(
            f"{prefix}{task.name}",
            (Text(task.summary, "note"), *tables, Figures(shown), Items(tuple(notes(comparison)))),
        ),
        Section(f"{prefix}programs" if prefix else "Programs", programs),
        Section(f"{prefix}provenance" if prefix else "Provenance", (facts("", source),)),
    ]


def training_verdict(found: dict[str, Any], label: str) -> str:
    """What came of a training run, in a sentence that claims no more than that."""
    loss = {k: number(_nan(found.get(f"{k}_loss"))) for k in ("valid", "test")}
    ended = "" if found.get("status") == "ok" else f"; it {found.get('status')}: {found.get('reason')}"
    losses = f"validation loss {loss['valid']}, test loss {loss['test']}"
    return f"{label} on {found.get('task')}: {losses} (single run){ended}."


def training_sections(runs: Sequence[tuple[str, dict[str, Any], Path]]) -> list[Section]:
    """Single training runs: table, curves, programs and provenance.

    Raises:
        UserError: if one is not what `optforge train` writes.
    """
    rows, programs, sources = [], [], []
    for label, found, source in runs:
        try:
            numbers = [number(_nan(found[k])) for k in ("train_loss", "valid_loss", "test_loss")]
            accuracy = "–" if found["test_accuracy"] is None else f"{found['test_accuracy']:.2%}"
            rows.append((
                label, str(found["task"]), f"{found['lr']:.3g}", str(found["seed"]), str(found["steps"]), *numbers,
                accuracy, str(found["status"]), f"{found['seconds']:.1f}",
            ))  # fmt: skip
            [(int(s), _nan(x)) for s, x in found["valid_curve"]]
            [_nan(x) for x in found["curve"]]
            options = {k: v for k, v in found.get("options", {}).items() if v not in (None, {}, [])}
            sources.append(facts(label, {"options": options, **found["provenance"]}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{source} is not a training run's result ({type(error).__name__}: {error}); was it edited?"
            ) from None
        program = read_program(found["program"], source)
        programs.append(Fold(label, (Formula(program), Code(pseudo_code(program), "pseudo-code"))))
    header = (
        "run", "task", "lr", "seed", "steps", "train loss", "validation loss", "test loss", "test accuracy", "ended",
        "seconds",
    )  # fmt: skip
    mark = Text("single runs: they cannot tell optimizers apart; use optforge compare", "mark")
    curves = Figures((training_panel([(label, found) for label, found, _ in runs]),))
    return [
        Section("Training", (mark, Table("", header, tuple(rows), numeric=2), curves)),
        Section("Programs of the training runs", tuple(programs)),
        Section("Provenance of the training runs", tuple(sources)),
    ]


def _entry(found: dict[str, Any], source: Path) -> Entry:
    tuning = found["tuning"] | {
        "rates": tuple(found["tuning"]["rates"]),
        "losses": tuple(tuple(map(_nan, row)) for row in found["tuning"]["losses"]),
        "counted": tuple(tuple(map(_nan, row)) for row in found["tuning"]["counted"]),
        "failed": tuple(map(tuple, found["tuning"]["failed"])),
        "trials": tuple(map(Trial.from_json, found["tuning"].get("trials", ()))),
        "space": tuple(found["tuning"].get("space", ())),
    }
    runs = []
    for run in found["runs"]:
        fields = {k: v for k, v in run.items() if k in Run.__dataclass_fields__}
        fields |= {k: _nan(run[k]) for k in ("start", "valid", "test")}
        fields |= {k: tuple(map(_nan, run.get(k, ()))) for k in ("curve", "valid_curve")}
        runs.append(Run(**fields))
    names = ("mean", "valid_mean", "accuracy", "state_bytes", "statements", "all_statements")
    numbers = {name: found[name] for name in names} | {k: _nan(found[k]) for k in ("mean", "valid_mean", "state_bytes")}
    program = read_program(found["program"], source)
    kept = {k: v for k, v in tuning.items() if k in Tuning.__dataclass_fields__}
    return Entry(
        name=str(found["name"]), program=program, tuning=Tuning(**kept), runs=tuple(runs),
        interval=_interval(found["interval"]), costs=Costs(**found["costs"]) if found.get("costs") else None, **numbers,
    )  # fmt: skip


def _pair(found: dict[str, Any]) -> Pair:
    others = ("first", "second", "interval", "verdict", "bootstrap", "count")
    numbers = {k: _nan(v) for k, v in found.items() if k not in others}
    bootstrap = _interval(found["bootstrap"]) if found.get("bootstrap") else None
    return Pair(
        first=str(found["first"]), second=str(found["second"]), interval=_interval(found["interval"]),
        verdict=Verdict(found["verdict"]), bootstrap=bootstrap, count=int(found.get("count", 0)), **numbers,
    )  # fmt: skip


def _interval(found: dict[str, Any]) -> Interval:
    return Interval(_nan(found["low"]), _nan(found["high"]), float(found["level"]), str(found["method"]))


def _nan(value: Any) -> float:
    return math.nan if value is None else float(value)


def _absent(*_: Any) -> Any:
    raise NotImplementedError("a comparison that was read from a file has neither data nor model")
