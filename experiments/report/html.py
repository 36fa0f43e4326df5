"""A document as one HTML file that asks nobody for anything."""

from __future__ import annotations

from functools import cache, partial
from itertools import count
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from optforge.experiments.report.document import Document, Figure
from optforge.experiments.report.drawing import svg
from optforge.experiments.report.formula import svg_lines
from optforge.primitives import Program


def render_html(document: Document) -> str:
    """A whole HTML file: light or dark as the reader's system, wide or narrow, on screen or on paper.

    Its own policy forbids it to load anything, and to run scripts.
    """
    numbers = count(1)
    return _environment().get_template("page.html.j2").render(document=document, svg=partial(_svg, numbers))


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters |= {"kind": lambda block: type(block).__name__, "formula": _formula, "latex": _latex}
    return found


def _svg(numbers: count[int], figure: Figure) -> Markup:
    return Markup(svg(figure, f"f{next(numbers)}"))  # names inside a picture must be unique on the page


def _formula(program: Program) -> list[Markup]:
    return [Markup(line) for line in svg_lines(program) or []]


def _latex(program: Program) -> str:
    from optforge.primitives.analysis.formula import latex

    return latex(program)
