"""Ops from other distributions: entry points of the group ``optforge.ops``.

A distribution names a row, or an iterable of rows, in its metadata::

    [project.entry-points."optforge.ops"]
    smooth_sign = "my_package.ops:SMOOTH_SIGN"

Its rows are loaded once for each process, when a name is looked up that is not in the table yet. A program file can
thus cause the import of what is installed under this group, and of nothing else; it has no say in what that is.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from optforge.primitives.kinds import ProgramError
from optforge.primitives.op import Op

GROUP = "optforge.ops"

_outcome: list[str] | None = None  # sentences on what could not be loaded; None before the first attempt


def load_plugins(*, again: bool = False) -> None:
    """Register the rows of all installed plug-ins, once.

    Args:
        again: look for plug-ins that were installed after the first call.

    Raises:
        ProgramError: one sentence for each distribution whose rows cannot be loaded; the others' rows are registered.
    """
    global _outcome
    if _outcome is None or again:
        _outcome = []  # before loading: a plug-in's module may itself look up ops
        failures = []
        for point in sorted(entry_points(group=GROUP), key=lambda e: (_distribution(e), e.name)):
            try:
                _load(point)
            except ProgramError as error:
                failures.append(str(error))
        _outcome = failures
    if _outcome:
        raise ProgramError("; ".join(_outcome))


def _load(point: EntryPoint) -> None:
    from optforge.primitives.ops import OPS, register

    where = f"the plug-in {point.name!r} of the distribution {_distribution(point)!r}"
    try:
        found = point.load()
    except Exception as error:
        raise ProgramError(f"{where} cannot be loaded: {_words(error)}") from error
    if not isinstance(found, Op | Iterable) or isinstance(found, str | bytes):
        raise ProgramError(f"{where} must be an Op or several, not {type(found).__name__}")
    try:
        rows = [found] if isinstance(found, Op) else list(found)
        register(row for row in rows if not any(row is known for known in OPS.values()))
    except Exception as error:
        raise ProgramError(f"{where} is refused: {_words(error)}") from error


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown"


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, ProgramError) else f"{type(error).__name__}: {text}"
