"""How curves look in all pictures, so that one optimizer can be told from the next without its colour, too."""

from __future__ import annotations

# Okabe & Ito 2008, Color Universal Design, without black (unseen on dark) and yellow (unseen on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
