"""A live progress bar on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Report = Callable[[int, str], None]
"""Takes how much is done so far and a few words on how it goes."""


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Report]:
    """Show a bar while the block runs, if standard error is a terminal; the block calls what it is given."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=5) as progress:
        bar = progress.add_task(title, total=total, words="")
        yield lambda done, words: progress.update(bar, completed=done, words=words)
