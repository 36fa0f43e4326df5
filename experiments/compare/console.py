"""What a comparison shows in the terminal: progress while it runs, then verdict and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from optforge.experiments.compare.comparison import Comparison
from optforge.experiments.compare.tables import Table, entry_table, notes, pair_table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

    from optforge.experiments.compare.contest import Contest


Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many runs are finished, and how many are known to be needed."""


@contextmanager
def comparison_progress() -> Iterator[Progress]:
    """A bar for each stage on standard error, if that is a terminal; otherwise one line when a stage begins."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    stages: dict[str, TaskID] = {}

    def report(what: str, done: int, total: int) -> None:
        if what not in stages:
            stages[what] = bars.add_task(what, total=total)
            if not console.is_terminal:
                console.print(f"{what}: {total} training runs", highlight=False)
        bars.update(stages[what], completed=done, total=total)

    with bars:
        yield report


@contextmanager
def runs_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar over the training runs of each round; without a terminal, a line for each tenth of them.

    Later rounds depend on earlier ones: ranges may be widened, and reported runs follow the tuned setting.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("training runs"))
    bars = Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_terminal)
    number, bar, said = 0, bars.add_task(""), -1

    def report(done: int, total: int) -> None:
        nonlocal number, bar, said
        if said < 0 or done < said:  # another round
            number += 1
            bar = bars.add_task(f"round {number}", total=total)
        if not console.is_terminal and (
            said < 0 or done < said or 10 * done // max(1, total) > 10 * said // max(1, total)
        ):
            console.print(f"round {number}: {done} of {total} training runs", highlight=False)
        said = done
        bars.update(bar, completed=done, total=total)

    with bars:
        yield report


def print_comparison(comparison: Comparison) -> None:
    """Print the verdict, the table of optimizers, that of their pairs, and the notes to standard output.

    In a narrow terminal the tables leave out what can be spared; in a file they are as wide as they need to
    be.
    """
    console = _console()
    console.print()
    console.print(comparison.verdict, style="bold", markup=False)
    for table in (entry_table(comparison), pair_table(comparison)):
        print_table(table)
    console.print()
    print_notes(notes(comparison))


def print_contest(contest: Contest) -> None:
    """Print the verdict over all tasks, then the tables of each, and the notes once."""
    console = _console()
    console.print()
    console.print(contest.verdict, style="bold", markup=False)
    for comparison in contest.comparisons:
        for table in (entry_table(comparison), pair_table(comparison)):
            print_table(table)
    console.print()
    pairs = sum(len(comparison.pairs) for comparison in contest.comparisons)
    longest = max(contest.comparisons, key=lambda comparison: comparison.protocol.steps)  # of few, no share is exact
    print_notes([*contest.notes, *notes(longest, pairs)])


def print_table(table: Table) -> None:
    """Print a table to standard output after an empty line, or nothing if it has no rows."""
    console = _console()
    if table.rows:
        while table.spare and _width(table, console) > console.width:
            table = table.without(table.spare[0])
        console.print()
        console.print(_rich(table))


def print_notes(lines: Iterable[str]) -> None:
    """Print remarks below a table."""
    for line in lines:
        _console().print(f"· {line}", style="dim", markup=False)


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, 120))


def _width(table: Table, console: Console) -> int:
    """Columns of the terminal that the table takes without folding a cell."""
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=10_000), _rich(table)).maximum


def _rich(table: Table) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    title = Text(table.title, style="italic")
    shown = RichTable(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for index, name in enumerate(table.header):
        shown.add_column(Text(name), justify="right" if index >= table.numeric else "left")
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    return shown
