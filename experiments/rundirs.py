"""Run directories: named, created and found so that no run ever overwrites another."""

from __future__ import annotations

import itertools
from pathlib import Path

from optforge.experiments.errors import UserError, nearest

ROOT = Path("runs")
COMPARE_RESULT = "compare.json"
"""In a run directory: what came of a comparison, or of the one that ends a search."""
FUNNEL_RESULT = "funnel.json"
"""In a search's run directory: what came of its funnel."""


def new_run_dir(path: Path | None, command: str, task: str) -> Path:
    """Create a run directory: `path`, or by default the next free ``runs/COMMAND-TASK-N``.

    Raises:
        UserError: if `path` is there already and holds anything, or cannot be created.
    """
    if path is None:
        ROOT.mkdir(exist_ok=True)
        for number in itertools.count(1):
            folder = ROOT / f"{command}-{task}-{number}"
            try:
                folder.mkdir()  # creates or fails: two runs that start at once get two numbers
                return folder
            except FileExistsError:
                continue
    assert path is not None
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} already exists and is never overwritten; choose another --run-dir")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the run directory {path} cannot be created: {error.strerror}") from None
    return path


def existing_run_dir(path: Path) -> Path:
    """`path`, if it is a directory.

    Raises:
        UserError: otherwise, with the nearest names beside it.
    """
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path} is a file, not a run directory")
    siblings = [str(p) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    known = f"; {path.parent} has: {', '.join(sorted(siblings)[:8])}" if siblings else ""
    raise UserError(f"there is no run directory {path}{nearest(str(path), siblings) or known}")


def remove_if_empty(path: Path) -> None:
    """Remove a run directory in which nothing was written, so that its name is free again."""
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
