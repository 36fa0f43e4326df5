"""From a figure to an SVG that follows the page's light or dark theme, and what the axes of all figures share."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from optforge.experiments.colours import COLOURS
from optforge.experiments.report.document import Figure

_INK, _GRID = "#0A0B0C", "#0D0E0F"  # stand-ins for the page's colours
_SIZE = (4.7, 3.9)


def svg(figure: Figure, prefix: str) -> str:
    """A figure as a transparent SVG element in the page's colours: ``--ink``, ``--grid``, ``--c0``, …

    Every name inside it begins with `prefix`.
    """
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=_SIZE, layout="tight")  # twice as fast as "constrained"
    axes = canvas.add_subplot()
    _dress(axes)
    figure.draw(axes)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": figure.title}):
        canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub("#[0-9a-f]{6}", lambda found: found[0].upper(), buffer.getvalue())
    colours = {colour: f"var(--c{index})" for index, colour in enumerate(COLOURS)}
    for old, new in (colours | {_INK: "var(--ink)", _GRID: "var(--grid)"}).items():
        text = text.replace(old, new)
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", text[text.index("<svg") :])
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(figure.title)}"', 1)


def _dress(axes: Any) -> None:
    axes.set_facecolor("none")
    axes.tick_params(colors=_INK, which="both", labelsize=10)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color(_INK)
        part.set_size(11)
    for side, spine in axes.spines.items():
        spine.set_color(_INK)
        spine.set_visible(side in ("left", "bottom"))
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.ink = _INK


def legend_below(axes: Any, columns: int = 2) -> None:
    """A legend below the axes, where no curve can be."""
    axes.legend(loc="upper left", bbox_to_anchor=(-0.05, -0.2), ncols=columns, frameon=False, fontsize=10,
                labelcolor=axes.ink, borderaxespad=0, columnspacing=1.2)  # fmt: skip


def log_ticks(axis: Any, subs: Sequence[float] = (1.0,), label: Callable[[float], str] = "{:g}".format) -> None:
    """Ticks at `subs` of each decade. Labels without TeX and no minor ticks: these take most of the time of a plot."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.set_minor_locator(NullLocator())


def power_of_ten(value: float) -> str:
    """``10⁻³`` for numbers near 0.001."""
    return "10" + f"{round(math.log10(value))}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def log_if_positive(axes: Any, lowest: float) -> None:
    """A logarithmic y axis, if `lowest` is on it."""
    if lowest > 0:
        axes.set_yscale("log")
        log_ticks(axes.yaxis, (1.0, 2.0, 5.0))
