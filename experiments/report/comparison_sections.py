"""The report of comparisons and of single training runs, from what they wrote as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optforge.experiments.compare.comparison import Comparison
from optforge.experiments.compare.contest import Contest
from optforge.experiments.compare.tables import (
    Table,
    configuration_table,
    entry_table,
    notes,
    number,
    overview_table,
    pair_table,
    place,
    target_table,
)  # fmt: skip
from optforge.experiments.errors import UserError
from optforge.experiments.report.blocks import Block, Code, Figures, Fold, Formula, Items, Section, Text, facts
from optforge.experiments.report.comparison_json import comparison_from_json, contest_from_json, finite_or_nan
from optforge.experiments.report.figures import memory_panel, training_panel
from optforge.experiments.report.plots import panels, profile_panel, trajectory_panels
from optforge.experiments.report.runs import read_program
from optforge.primitives.export.pseudocode import pseudo_code

__all__ = ["comparison_from_json", "comparison_sections", "contest_from_json", "contest_sections", "training_sections",
           "training_verdict"]  # fmt: skip


def contest_sections(contest: Contest, prefix: str = "") -> list[Section]:
    """Everything after the verdict of a comparison on any number of tasks."""
    pairs = sum(len(c.pairs) for c in contest.comparisons)
    *others, programs, source = comparison_sections(contest.comparisons[0], prefix, pairs)
    sources = [(place(contest.comparisons[0]), source.blocks)]
    for comparison in contest.comparisons[1:]:
        section, _, provenance = comparison_sections(comparison, prefix, pairs)
        others.append(section)
        sources.append((place(comparison), provenance.blocks))
    if len(sources) > 1:
        source = replace(source, blocks=tuple(Fold(*one) for one in sources))
    if contest.profiles:
        problems = sum(len(c.protocol.seeds) for c in contest.comparisons)
        blocks: list[Block] = [overview_table(contest.comparisons)] if len(contest.comparisons) > 1 else []
        if all(contest.profiles.values()):
            blocks.append(Figures((profile_panel(contest.profiles, problems),)))
        else:
            words = "There is no performance profile: a loss on every problem is not positive, and ratios mean nothing."
            blocks.append(Text(words, "note"))
        blocks += [Items(contest.notes)] if contest.notes else []
        others.insert(0, Section(f"{prefix}Over all tasks", tuple(blocks)))
    plan = {name: value for name, value in contest.plan.items() if name not in ("rows", "origins", "fingerprints")}
    planned = [Section(f"{prefix}Plan", (facts("", plan),))] if plan else []
    paths = trajectory_panels([(entry.name, entry.program) for entry in contest.comparisons[0].entries])
    drawn = [Section(f"{prefix}Trajectories", (Figures(tuple(paths)),))] if paths else []
    return [*others, *drawn, programs, *planned, source]


def comparison_sections(comparison: Comparison, prefix: str = "", pairs: int = 0) -> list[Section]:
    """Everything after the verdict of a comparison on one task: what was found, programs, provenance.

    `pairs` is the number of pairs that were tested together, if there are others beside its own.
    """
    tables = [t for t in (entry_table(comparison), pair_table(comparison), target_table(comparison),
                          configuration_table(comparison)) if t.rows]  # fmt: skip
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
            f"{prefix}{place(comparison)}",
            (Text(task.summary, "note"), *tables, Figures(shown), Items(tuple(notes(comparison, pairs)))),
        ),
        Section(f"{prefix}programs" if prefix else "Programs", programs),
        Section(f"{prefix}provenance" if prefix else "Provenance", (facts("", source),)),
    ]


def training_verdict(found: dict[str, Any], label: str) -> str:
    """What came of a training run, in a sentence that claims no more than that."""
    loss = {k: number(finite_or_nan(found.get(f"{k}_loss"))) for k in ("valid", "test")}
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
            numbers = [number(finite_or_nan(found[k])) for k in ("train_loss", "valid_loss", "test_loss")]
            accuracy = "–" if found["test_accuracy"] is None else f"{found['test_accuracy']:.2%}"
            rows.append((
                label, str(found["task"]), f"{found['lr']:.3g}", str(found["seed"]), str(found["steps"]), *numbers,
                accuracy, str(found["status"]), f"{found['seconds']:.1f}",
            ))  # fmt: skip
            [(int(s), finite_or_nan(x)) for s, x in found["valid_curve"]]
            if not [finite_or_nan(x) for x in found["curve"]]:
                raise ValueError("a curve without points")
            options = {k: v for k, v in found.get("options", {}).items() if v not in (None, {}, [])}
            sources.append(facts(label, {"options": options, **found["provenance"]}))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{source} is not a training run's result ({type(error).__name__}: {error}); was it edited?"
            ) from None
        if "card" in found:  # of a meta-trained rule, which is no program
            programs.append(Fold(label, (facts(f"{found.get('rule')}, meta-trained", found["card"]),)))
            continue
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
