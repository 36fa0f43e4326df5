"""The report of a comparison: the program in question, what was found on each task, and how."""

from __future__ import annotations

from typing import Any

from optforge.experiments.compare.comparison import Comparison
from optforge.experiments.compare.contest import Contest
from optforge.experiments.compare.verdict import subject_name, task_label
from optforge.experiments.report.comparison_figures import comparison_figures, profile_figure
from optforge.experiments.report.comparison_tables import (
    configuration_table,
    entry_table,
    notes,
    overview_table,
    pair_table,
    target_table,
)  # fmt: skip
from optforge.experiments.report.document import (
    Block,
    Bullets,
    Code,
    Figures,
    Fold,
    Formula,
    Paragraph,
    Section,
    Table,
    facts,
)
from optforge.experiments.report.path_figures import path_figures
from optforge.primitives import Program
from optforge.primitives.export.pseudocode import pseudo_code


def comparison_opening(contest: Contest) -> tuple[Paragraph, ...]:
    """The verdict, and a warning if it rests on single runs."""
    single = all(len(c.protocol.seeds) == 1 for c in contest.comparisons)
    warning = (Paragraph("single runs: they cannot tell optimizers apart", "warning"),) if single else ()
    return (Paragraph(contest.verdict, "verdict"), *warning)


def comparison_sections(contest: Contest, prefix: str = "", champion: bool = True) -> list[Section]:
    """Everything after the verdict; without `champion`, the program in question is one of many."""
    first, found = contest.comparisons[0], []
    name = subject_name(contest.comparisons)
    if champion := champion and not first.entry(name).reference:
        found.append(Section(f"{prefix}{name}", program_blocks(first.entry(name).program)))
    if contest.profiles:
        found.append(Section(f"{prefix}Over all tasks", _over_all_tasks(contest)))
    found += [Section(f"{prefix}{task_label(c)}", _task_blocks(c)) for c in contest.comparisons]
    if paths := path_figures([(e.name, e.program) for e in first.entries]):
        found.append(Section(f"{prefix}Paths on two surfaces", (Figures(paths),)))
    pairs = sum(len(c.pairs) for c in contest.comparisons)
    longest = max(contest.comparisons, key=lambda c: c.protocol.steps)  # shares of few steps are not exact
    found.append(Section(f"{prefix}How to read this", (Bullets((*contest.notes, *notes(longest, pairs))),)))
    others = tuple(Fold(e.name, program_blocks(e.program)) for e in first.entries if not (champion and e.name == name))
    found += [Section(f"{prefix}Programs", others)] if others else []
    found.append(Section(f"{prefix}Configuration and provenance", _provenance(contest)))
    return found


def program_blocks(program: Program) -> tuple[Block, ...]:
    """Formula, pseudo-code, and the text that can be parsed again."""
    text = Fold("Program", (Code(str(program).strip(), "program"),))
    return (Formula(program), Code(pseudo_code(program), "pseudo-code"), text)


def _over_all_tasks(contest: Contest) -> tuple[Block, ...]:
    blocks: list[Block] = [overview_table(contest.comparisons)] if len(contest.comparisons) > 1 else []
    if all(contest.profiles.values()):
        problems = sum(len(c.protocol.seeds) for c in contest.comparisons)
        return (*blocks, Figures((profile_figure(contest.profiles, problems),)))
    words = "There is no performance profile: a loss on every problem is not positive, and ratios mean nothing."
    return (*blocks, Paragraph(words, "note"))


def _task_blocks(comparison: Comparison) -> tuple[Block, ...]:
    tables = (entry_table(comparison), pair_table(comparison), target_table(comparison))
    task = Paragraph(comparison.protocol.task.summary, "note")
    tuned = configuration_table(comparison)
    folded = [Fold("What was tuned", (tuned,))] if tuned.rows else []
    return (task, *(t for t in tables if t.rows), Figures(comparison_figures(comparison)), *folded)


def _provenance(contest: Contest) -> tuple[Fold, ...]:
    plan = {name: value for name, value in contest.plan.items() if name not in ("rows", "origins", "fingerprints")}
    folds = [Fold("Plan", (facts("", plan),))] if plan else []
    return (*folds, *(Fold(task_label(c), (_source(c),)) for c in contest.comparisons))


def _source(comparison: Comparison) -> Table:
    protocol, task = comparison.protocol, comparison.protocol.task
    found: dict[str, Any] = {
        "task": f"{task.name}: {task.summary}",
        "licence of the data": task.licence,
        "steps": protocol.steps,
        "batch size": task.batch_size,
        "tuning seeds": protocol.tune_seeds,
        "reported seeds": protocol.seeds,
    }
    return facts("", found | comparison.provenance)
