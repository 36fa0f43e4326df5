"""Progress bars of comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
