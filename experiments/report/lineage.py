"""Where a program came from: its ancestors, and the mutation behind each gain."""

from __future__ import annotations

import difflib
import math
import re
from typing import NamedTuple

from optforge.experiments.report.document import Code, Fold
from optforge.primitives.export.pseudocode import pseudo_code
from optforge.search.ledger import Summary


class Generation(NamedTuple):
    """One program of a lineage.

    Attributes:
        distance: counted from the start program, which is 0.
        row: the program.
        before: its parent's score; NaN for the start program.
        gain: whether it is better than all its ancestors.
        diff: pseudo-code of parent and child line by line: ``-`` only there, ``+`` only here.
    """

    distance: int
    row: Summary
    before: float
    gain: bool
    diff: str


def ancestors(rows: tuple[Summary, ...], champion: Summary) -> list[Summary]:
    """The champion's line, start program first; it ends early where a parent is not in the ledger."""
    known = {row.number: row for row in rows}
    line = [champion]
    while (parent := known.get(line[-1].parent)) is not None and parent.number < line[-1].number:
        line.append(parent)
    return line[::-1]


def lineage(line: list[Summary]) -> list[Generation]:
    """The generations of a line of ancestors, as `ancestors` gives it."""
    found: list[Generation] = []
    best, before, code = math.inf, math.nan, ""
    for index, row in enumerate(line):
        text = _renumbered(pseudo_code(row.program))
        diff = "\n".join(d for d in difflib.ndiff(code.splitlines(), text.splitlines()) if not d.startswith("?"))
        found.append(Generation(index, row, before, index > 0 and row.score < best, diff if index else text))
        best, before, code = min(best, row.score), row.score, text
    return found


def _renumbered(code: str) -> str:
    """Pseudo-code with its x… numbered by where they come first, as an insertion renumbers all that follow it."""
    names: dict[str, str] = {}
    return re.sub(r"\bx\d+\b", lambda found: names.setdefault(found[0], f"x{len(names) + 1}"), code)


def generation_title(one: Generation) -> str:
    """Generation, program, score before → after, and the mutation, on one line."""
    row = one.row
    if not one.distance:
        return f"start: program {row.number}, score {row.score:.4g}"
    return (
        f"{'★ ' if one.gain else ''}generation {one.distance}: program {row.number}, {one.before:.4g} → "
        f"{row.score:.4g}, mutation: {' + '.join(row.mutations)}"
    )


def lineage_blocks(generations: list[Generation], shown: int = 8) -> tuple[Fold, ...]:
    """A fold for each generation with the difference it made; the `shown` largest gains are open."""
    gains = sorted((one for one in generations if one.gain), key=lambda one: one.row.score - one.before)[:shown]
    large = {one.distance for one in gains}
    folds = []
    for one in generations:
        label = "what the mutation changed" if one.distance else "pseudo-code"
        code = Code(one.diff, label, diff=one.distance > 0)
        folds.append(Fold(generation_title(one), (code,), open=one.distance in large))
    return tuple(folds)
