"""Where a program came from: its ancestors, and the mutation behind each gain."""

from __future__ import annotations

import difflib
import math
import re
from typing import NamedTuple

from optforge.experiments.report.blocks import Code, Fold
from optforge.experiments.report.runs import Row
from optforge.primitives.export.pseudocode import pseudo_code


class Step(NamedTuple):
    """One generation of a lineage.

    Attributes:
        generation: counted from the start program, which is 0.
        row: the program.
        before: its parent's score; NaN for the start program.
        gain: whether it is better than all its ancestors.
        diff: pseudo-code of parent and child line by line: ``-`` only there, ``+`` only here.
    """

    generation: int
    row: Row
    before: float
    gain: bool
    diff: str


def ancestors(rows: tuple[Row, ...], champion: Row) -> list[Row]:
    """The champion's line, start program first; it ends early where a parent is not in the ledger."""
    known = {row.number: row for row in rows}
    line = [champion]
    while (parent := known.get(line[-1].parent)) is not None and parent.number < line[-1].number:
        line.append(parent)
    return line[::-1]


def lineage(line: list[Row]) -> list[Step]:
    """The steps of a line of ancestors, as `ancestors` gives it."""
    steps: list[Step] = []
    best, before, code = math.inf, math.nan, ""
    for generation, row in enumerate(line):
        text = _renumbered(pseudo_code(row.program))
        diff = "\n".join(d for d in difflib.ndiff(code.splitlines(), text.splitlines()) if not d.startswith("?"))
        steps.append(Step(generation, row, before, generation > 0 and row.score < best, diff if generation else text))
        best, before, code = min(best, row.score), row.score, text
    return steps


def _renumbered(code: str) -> str:
    """Pseudo-code with its x… numbered by where they come first, as an insertion renumbers all that follow it."""
    names: dict[str, str] = {}
    return re.sub(r"\bx\d+\b", lambda found: names.setdefault(found[0], f"x{len(names) + 1}"), code)


def step_title(step: Step) -> str:
    """Generation, program, score before → after, and the mutation, on one line."""
    row = step.row
    if not step.generation:
        return f"start: program {row.number}, score {row.score:.4g}"
    change = row.score / step.before - 1 if math.isfinite(step.before) and step.before > 0 else math.nan
    share = "" if math.isnan(change) else f" ({change:+.1%})"
    by = row.mutations.replace(",", " + ")
    return (
        f"{'★ ' if step.gain else ''}generation {step.generation}: program {row.number}, {step.before:.4g} → "
        f"{row.score:.4g}{share}, mutation: {by}"
    )


def lineage_blocks(steps: list[Step], shown: int = 8) -> tuple[Fold, ...]:
    """A fold for each step with the difference it made; the `shown` largest gains are open."""
    gains = sorted((s for s in steps if s.gain), key=lambda s: s.row.score - s.before)[:shown]
    large = {s.generation for s in gains}
    folds = []
    for step in steps:
        label = "what the mutation changed" if step.generation else "pseudo-code"
        inner = Code(step.diff, label, diff=step.generation > 0)
        folds.append(Fold(step_title(step), (inner,), open=step.generation in large))
    return tuple(folds)
