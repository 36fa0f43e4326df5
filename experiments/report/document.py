"""What a report is made of, however it is shown: `report.html`, `report.markdown` and `report.terminal` render it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from optforge.primitives import Program


@dataclass(frozen=True)
class Paragraph:
    """Sentences; a ``verdict`` says what was found, a ``warning`` stands out, a ``note`` is small print."""

    text: str
    style: Literal["text", "verdict", "warning", "note"] = "text"


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Lines as they are; with `diff`, those that begin with ``+`` or ``-`` stand out. `label` is read aloud."""

    text: str
    label: str = "code"
    diff: bool = False


@dataclass(frozen=True)
class Formula:
    """The formula of a program; its pseudo-code should stand beside it, as a terminal shows no formulas."""

    program: Program


@dataclass(frozen=True)
class Table:
    """A title, column names, and rows of text; columns from `numeric` on are numbers.

    `spare` names columns that may be left out where there is no room, the first to go first.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: int = 1
    spare: tuple[str, ...] = ()

    def without(self, column: str) -> Table:
        """The same table without one of its columns."""
        at = self.header.index(column)
        header, *rows = ((*row[:at], *row[at + 1 :]) for row in (self.header, *self.rows))
        return replace(self, header=header, rows=tuple(rows), spare=tuple(s for s in self.spare if s != column))


@dataclass(frozen=True)
class Figure:
    """One picture: a title, what it shows in a sentence, and the function that draws it on matplotlib axes."""

    title: str
    caption: str
    draw: Callable[[Any], None]


@dataclass(frozen=True)
class Figures:
    """Pictures side by side where there is room; only HTML shows them."""

    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Fold:
    """Blocks under a line that opens and closes them; a terminal leaves them out."""

    title: str
    blocks: tuple[Block, ...]
    open: bool = False


Block = Paragraph | Bullets | Code | Formula | Table | Figures | Fold


@dataclass(frozen=True)
class Section:
    """A heading and what is under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A report: its title, what was found, and sections that show why."""

    title: str
    opening: tuple[Paragraph, ...]
    sections: tuple[Section, ...]


def number(x: float | None, digits: int = 4) -> str:
    """Text of a number to `digits` significant digits; a dash for None and NaN."""
    return "–" if x is None or math.isnan(x) else f"{x:.{digits}g}"


def facts(title: str, found: dict[str, Any], longest: int = 400) -> Table:
    """A table of two columns from nested dictionaries; what is longer than `longest` characters is cut."""
    rows = []
    for name, value in _flat(found):
        text = "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        text = f"{value:,}" if type(value) is int else text
        rows.append((name, text if len(text) <= longest else text[:longest] + " …"))
    return Table(title, ("what", "value"), tuple(rows), numeric=2)


def _flat(found: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}: ")
        else:
            yield f"{prefix}{name}", value
