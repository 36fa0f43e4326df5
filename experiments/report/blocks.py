"""What reports are made of: blocks shown both as HTML and as Markdown, with everything escaped in one place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from optforge.experiments.compare.tables import Table
from optforge.experiments.report.formula import svg_lines
from optforge.experiments.report.plots import Panel, svg
from optforge.primitives import Program

_MARKUP = re.compile(r"([\\`*_<>\[\]|#~&])")


@dataclass(frozen=True)
class Text:
    """A paragraph; `style` is empty, ``verdict``, ``mark`` or ``note``."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Items:
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
    """The formula of a program."""

    program: Program


@dataclass(frozen=True)
class Figures:
    """Pictures side by side where there is room; Markdown has only their captions."""

    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Fold:
    """Blocks under a line that opens and closes them."""

    title: str
    blocks: tuple[Block, ...]
    open: bool = False


@dataclass(frozen=True)
class Section:
    """A heading and what is under it; a section without title continues the one before."""

    title: str
    blocks: tuple[Block, ...]


Block = Text | Items | Code | Formula | Figures | Fold | Table


def block_html(block: Block, salt: str = "") -> str:
    """A block as HTML; `salt` keeps the names inside its pictures apart from those of others on the page."""
    match block:
        case Text(text, style):
            return f'<p class="{style or "text"}">{escape(text)}</p>'
        case Items(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Code(text, label, diff):
            lines = "".join(map(_diff_line, text.splitlines())) if diff else escape(text)
            return f'<pre tabindex="0" aria-label="{escape(label)}">{lines}</pre>'
        case Formula(program):
            return _formula_html(program)
        case Figures(panels):
            return f'<div class="figures">{"".join(_figure(p, f"{salt}-{i}") for i, p in enumerate(panels))}</div>'
        case Fold(title, blocks, is_open):
            inner = "\n".join(block_html(b, f"{salt}-{i}") for i, b in enumerate(blocks))
            return f"<details{' open' * is_open}><summary>{escape(title)}</summary>{inner}</details>"
        case Table():
            return _table_html(block)


def block_markdown(block: Block) -> str:
    """A block as Markdown; empty where there is nothing to show."""
    match block:
        case Text(text, style):
            return f"**{plain(text)}**" if style == "verdict" else plain(text)
        case Items(items):
            return "\n".join(f"- {plain(item)}" for item in items)
        case Code(text, _, diff):
            return _fenced(text, "diff" if diff else "")
        case Formula(program):
            from optforge.primitives.analysis.formula import latex

            return _fenced(latex(program), "latex")
        case Figures(panels):
            return "\n".join(f"- In the HTML report: {plain(p.title)}. {plain(p.caption)}" for p in panels)
        case Fold(title, blocks, _):
            return "\n\n".join([f"**{plain(title)}**", *map(block_markdown, blocks)])
        case Table():
            return _table_markdown(block)


def plain(text: str) -> str:
    """`text` on one line so that Markdown shows it as it is."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def facts(title: str, found: dict[str, Any], longest: int = 400) -> Table:
    """A table of two columns from nested dictionaries; what is longer than `longest` characters is cut."""
    rows = []
    for name, value in _flat(found):
        text = "–" if value is None else ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        text = f"{value:,}" if type(value) is int else text
        rows.append((name, text if len(text) <= longest else text[:longest] + " …"))
    return Table(title, ("what", "value"), tuple(rows), numeric=2)


def _flat(found: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in found.items():
        rows += _flat(value, f"{prefix}{name}: ") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return rows


def _formula_html(program: Program) -> str:
    found = svg_lines(program)
    if found is None:
        from optforge.primitives.analysis.formula import latex

        return block_html(Code(latex(program), "formula in LaTeX"))
    return f'<div class="formula scroll" tabindex="0">{"".join(f"<div>{line}</div>" for line in found)}</div>'


def _figure(panel: Panel, salt: str) -> str:
    # names inside a picture are made of its title, which may occur again on the page
    picture = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>f{salt}-", svg(panel))
    picture = picture.replace("<svg", f'<svg role="img" aria-label="{escape(panel.title)}"', 1)
    caption = f"<figcaption>{escape(panel.caption)}</figcaption>"
    return f"<figure><h3>{escape(panel.title)}</h3>{picture}{caption}</figure>"


def _diff_line(line: str) -> str:
    tag = {"+": "ins", "-": "del"}.get(line[:1], "span")
    return f"<{tag}>{escape(line)}</{tag}>\n"


def _fenced(text: str, language: str) -> str:
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _cells(row: Sequence[str], tag: str, numeric: int) -> str:
    marks = [' class="n"' if i >= numeric else "" for i in range(len(row))]
    scope = ' scope="col"' if tag == "th" else ""
    return "".join(f"<{tag}{scope}{mark}>{escape(cell)}</{tag}>" for mark, cell in zip(marks, row, strict=True))


def _table_html(table: Table) -> str:
    rows = "".join(f"<tr>{_cells(row, 'td', table.numeric)}</tr>" for row in table.rows)
    kind = ' class="facts"' if table.numeric >= len(table.header) else ""
    head = f"<thead><tr>{_cells(table.header, 'th', table.numeric)}</tr></thead>"
    caption = f"<caption>{escape(table.title)}</caption>" if table.title else ""
    return f'<div class="scroll" tabindex="0"><table{kind}>{caption}{head}<tbody>{rows}</tbody></table></div>'


def _table_markdown(table: Table) -> str:
    rule = ["---:" if i >= table.numeric else "---" for i in range(len(table.header))]
    lines = [[plain(h) for h in table.header], rule, *([plain(cell) for cell in row] for row in table.rows)]
    title = [f"{plain(table.title)}:\n"] if table.title else []
    return "\n".join([*title, *(f"| {' | '.join(line)} |" for line in lines)])
