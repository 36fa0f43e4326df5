"""What each statement of a program is worth, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optforge.experiments.report.document import Table


def effects_table(title: str, effects: Sequence[Mapping[str, Any]], unit: str) -> Table:
    """A row for each statement, from what `Effect.as_json` wrote."""
    rows = []
    for e in effects:
        interval = e["interval"]
        change = f"failed: {e['failed'][:60]}" if e["failed"] else "no longer trains"
        if interval is not None:
            change = f"{e['difference']:+.4g} [{interval['low']:+.3g}, {interval['high']:+.3g}]"
        rows.append((e["statement"], e["instead"], change, "yes" if e["harmless"] else "no"))
    return Table(title, ("statement", "instead", f"change of the {unit} without it", "can go"), tuple(rows), numeric=3)
