"""What `optforge tasks` and `optforge optimizers` print."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from baselines import BASELINES
from experiments.programs import state_bytes
from experiments.tasks import TASKS


def print_tasks() -> None:
    """A table of the tasks: data and model, what is measured, length of a run, licence of the data."""
    columns = ("task", "data and model", "measured", "steps", "batch", "licence of the data")
    _print(columns, [(t.name, t.summary, t.metric, t.steps, t.batch_size, t.licence) for t in TASKS.values()])


def print_optimizers() -> None:
    """A table of the named optimizers: source, size, memory, and where the learning rate usually lies."""
    columns = ("optimizer", "source", "statements", "state bytes/parameter", "usual lr")
    rows = [
        (b.name, b.paper, len(b.program.live.instructions), state_bytes(b.program), f"{low:g} to {high:g}")
        for b in BASELINES.values()
        for low, high in [b.lr_range]
    ]
    _print(columns, rows)


def _print(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*map(str, row))
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 1000  # whoever reads from a pipe wants one line for each row
    console.print(table)
