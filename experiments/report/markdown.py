"""A document as Markdown, and the one writer of Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

from optforge.experiments.report.document import (
    Block,
    Bullets,
    Code,
    Document,
    Figures,
    Fold,
    Formula,
    Paragraph,
    Table,
)
from optforge.primitives import Program

_MARKUP = re.compile(r"([\\`*_<>\[\]|#~&])")
_PIPE = re.compile(r"(?<!\\)\|")


def render_markdown(document: Document) -> str:
    """Everything in `document` but its pictures, which leave their captions; folds are GitHub's ``<details>``."""
    parts = [f"# {plain(document.title)}", *map(_block, document.opening)]
    for section in document.sections:
        parts += [f"## {plain(section.title)}", *map(_block, section.blocks)]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """`text` on one line so that Markdown shows it as it is."""
    return _MARKUP.sub(r"\\\1", " ".join(text.split()))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], numeric: int | None = None) -> str:
    """A table from cells that are Markdown already; columns from `numeric` on are aligned to the right."""
    rule = "".join("---:|" if numeric is not None and i >= numeric else "---|" for i in range(len(header)))
    lines = [" | ".join(_PIPE.sub(r"\|", cell) for cell in row) for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", f"|{rule}", *(f"| {line} |" for line in lines)])


def math_block(program: Program) -> str:
    """The formula of a program as a block that GitHub shows: it refuses the macro ``operatorname``.

    Names of several letters get a thin space between them and other factors.
    """
    from optforge.primitives.analysis.formula import latex

    text = re.sub(r"(\\mathrm\{[^{}]+\}\S*) (?=[a-z{]|\\(?!right|leftarrow|\\))", r"\1 \\, ", latex(program))
    text = re.sub(r"([\w)}])(?<!arrow) (?=\\mathrm)", r"\1 \\, ", text)
    return "```math\n" + re.sub(r"\\operatorname\{(\w+)\}", r"\\mathop{\\mathrm{\1}}\\nolimits", text) + "\n```"


def _block(block: Block) -> str:
    match block:
        case Paragraph(text, style):
            return f"**{plain(text)}**" if style in ("verdict", "warning") else plain(text)
        case Bullets(items):
            return "\n".join(f"- {plain(item)}" for item in items)
        case Code(text, _, diff):
            return _fenced(text, "diff" if diff else "")
        case Formula(program):
            return math_block(program)
        case Table(title, header, rows, numeric):
            cells = [[plain(cell) for cell in row] for row in (header, *rows)]
            return (f"{plain(title)}:\n\n" if title else "") + markdown_table(cells[0], cells[1:], numeric)
        case Figures(figures):
            return "\n".join(f"- In the HTML report: {plain(f.title)}. {plain(f.caption)}" for f in figures)
        case Fold(title, blocks, is_open):
            inner = "\n\n".join(map(_block, blocks))
            return f"<details{' open' * is_open}><summary>{escape(title)}</summary>\n\n{inner}\n\n</details>"


def _fenced(text: str, language: str) -> str:
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
