"""How curves look in all pictures, so that one optimizer can be told from the next without its colour, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Okabe & Ito 2008, Color Universal Design, without black (unseen on dark) and yellow (unseen on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def curve_style(index: int, colours: Sequence[str] = COLOURS) -> dict[str, Any]:
    """Colour, marker and dashes of curve number `index`: dashes change where colours begin again."""
    return {
        "color": colours[index % len(colours)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": DASHES[index // len(colours) % len(DASHES)],
    }


def short_label(name: str, longest: int = 24) -> str:
    """A name for a legend: its end if it is long, and no ``$`` that would begin a formula."""
    return (name if len(name) <= longest else "…" + name[1 - longest :]).replace("$", r"\$")
