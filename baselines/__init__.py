"""Hand-written optimizers from the papers, each paired with its program.

Every class of `BASELINES` can be imported from here: ``from optforge.baselines import AdamW``.
"""

from __future__ import annotations

from typing import Any

from optforge.baselines.base import HandWritten
from optforge.baselines.cautious import cautious
from optforge.baselines.row import Baseline, NamedProgram, Oracle
from optforge.baselines.schedule_free import averaged, is_schedule_free
from optforge.baselines.table import BASELINES, NAMED

_CLASSES: dict[str, Any] = {row.about.__name__: row.about for row in BASELINES.values()}

__all__ = [
    "BASELINES",
    "NAMED",
    "Baseline",
    "HandWritten",
    "NamedProgram",
    "Oracle",
    "averaged",
    "cautious",
    "is_schedule_free",
]
__all__ += sorted(_CLASSES)


def __getattr__(name: str) -> Any:
    """The hand-written optimizers, by the names of their classes."""
    try:
        return _CLASSES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
