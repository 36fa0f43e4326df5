"""Formulas as SVG: mathematical notation that needs neither scripts nor fonts from elsewhere."""

from __future__ import annotations

import re
from html import escape

from optforge.primitives import Program

_SIZE = 17.0  # of a letter, in pixels
_MARGIN = 2.0
_COMMANDS = {1: "M", 2: "L", 3: "Q", 4: "C", 79: "Z"}  # matplotlib's path codes
_REPLACED = {
    r"\begin{cases}": r"\left\{ ", r"\end{cases}": r"\right.", r"\\": r",\; ", "&": r"\;",
    r"\text": r"\mathrm", r"\frac": r"\dfrac", r"\lVert": r"\|", r"\bmod": r"\;\mathrm{mod}\;", r"\rVert": r"\|",
}  # fmt: skip
_WRAPPING = re.compile(r"\\(?:begin|end)\{(?:aligned|gathered)\}")


def svg_lines(program: Program) -> list[str] | None:
    """A program's formula as one SVG for each of its lines, drawn in the colour of the text around it.

    None if it has notation that matplotlib's mathematical text does not know.
    """
    from optforge.primitives.analysis.formula import latex

    lines = re.split(r"\\\\(?:\[\w+\])?\n", _WRAPPING.sub("", latex(program)))
    found = [_simplified(line) for line in lines if line.strip()]
    try:
        return [_svg(line) for line in found]
    except ValueError:  # from matplotlib's parser
        return None


def _simplified(line: str) -> str:
    """LaTeX without what only aligns and groups, and with cases on one line."""
    for old, new in _REPLACED.items():
        line = line.replace(old, new)
    return line.strip()


def _svg(formula: str) -> str:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    path = TextPath((0, 0), f"${formula}$", size=_SIZE, prop=FontProperties(math_fontfamily="cm"))
    box = path.get_extents()
    strokes = []
    for points, code in path.iter_segments(curves=True, simplify=False):
        flipped = [f"{-x:.2f}" if i % 2 else f"{x:.2f}" for i, x in enumerate(points)]
        command = _COMMANDS[int(code)]
        strokes.append("Z" if command == "Z" else command + " ".join(flipped))
    left, top = min(0.0, box.x0) - _MARGIN, -max(box.y1, _SIZE) - _MARGIN
    width, height = box.x1 - left + _MARGIN, max(-box.y0, 0.3 * _SIZE) + _MARGIN - top
    return (
        f'<svg class="math" role="img" aria-label="{escape(formula)}" width="{width:.1f}" height="{height:.1f}" '
        f'viewBox="{left:.1f} {top:.1f} {width:.1f} {height:.1f}"><path fill="currentColor" d="{"".join(strokes)}"/>'
        "</svg>"
    )
