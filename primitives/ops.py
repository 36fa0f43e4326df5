"""The op table: its rows by name, subsets of them, and rows that join it.

Rows from elsewhere join by `register`, or from other distributions, as entry points of the group ``optforge.ops``. A
distribution names a row, or an iterable of rows, in its metadata::

    [project.entry-points."optforge.ops"]
    smooth_sign = "my_package.ops:SMOOTH_SIGN"

Its rows are loaded once for each process, when a name is looked up that is not in the table yet. A program file can
thus cause the import of what is installed under this group, and of nothing else; it has no say in what that is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from optforge.primitives.kinds import SIGNALS, ProgramError
from optforge.primitives.op import PUSHED, Op, moving
from optforge.primitives.op_rows import ROWS

GROUP = "optforge.ops"


class Table(dict[str, Op]):
    """Rows by name. Looking up a name that is not there loads the plug-ins first, in whichever process it happens.

    Of each row without a derivative there is another, ``jvp_…``, which is not listed (see `primitives.op.moving`).

    Attributes:
        failures: sentences on plug-ins that could not be loaded; None before the first attempt.
    """

    failures: list[str] | None = None

    def __missing__(self, name: str) -> Op:
        load_plugins()
        row = self.get(name)
        if row is None and name.startswith(PUSHED):
            return _moving(self[name.removeprefix(PUSHED)])
        if row is None:
            raise KeyError(name)
        return row


_moving = lru_cache(maxsize=256)(moving)


OPS = Table((op.name, op) for op in ROWS)

DOMAINS: dict[str, Callable[[Any], Any]] = {
    # maps from any real tensor into the set, for tests and probes
    "real": lambda x: x,
    "nonzero": lambda x: x + (x >= 0) * 2e-2 - 1e-2,
    "nonnegative": lambda x: x.abs(),
    "positive": lambda x: x.abs() + 1e-2,
    "unit_ball": lambda x: 0.99 * x.tanh(),
    "at_least_one": lambda x: 1.01 + x.abs(),
    "above_minus_one": lambda x: x.abs() - 0.99,
}


_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII)
_BUILDER = frozenset({"hyper", "slot", "op", "build", *SIGNALS})  # attributes of a Builder, beside which ops stand


def get_op(name: object) -> Op:
    """The row called `name`; raises `ProgramError` with the nearest names when there is none."""
    reason = ""
    try:
        row = OPS[name] if isinstance(name, str) else None
    except KeyError:
        row = None
    except ProgramError as error:  # a plug-in cannot be loaded: it might have been its row
        row, reason = None, f"; {error}"
    if row is None:
        import difflib

        near = difflib.get_close_matches(name[:60], OPS, n=3) if isinstance(name, str) else []
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ProgramError(f"unknown op {repr(name)[:60]}{hint}{reason}")
    return row


def subset(*names: str) -> tuple[str, ...]:
    """Names of the ops in the union of the named subsets, in table order; a single op's name is a subset of one.

    ========== ================================================================================================
    lion45     what programs of Chen et al. 2023 are made of, and their elementwise `clip` (see `primitives.lion45`)
    statistics mean and root mean square of a whole parameter
    bounds     clamp to an interval
    smooth     soft sign
    masks      comparisons, 1.0 or 0.0 for each element
    lazy       what is computed in some steps only
    protected  total variants of partial functions: finite for finite arguments of moderate size
    matrix     rows, columns, and whole matrices
    preconditioners square matrices of the left and the right side, their products, roots and bases
    elementwise everything that does not mix the elements of a parameter
    all        the whole table
    ========== ================================================================================================

    Rows of installed plug-ins count, in every call alike.
    """
    load_plugins()
    known = subset_names() | set(OPS)
    for name in names:
        if name not in known:
            raise ProgramError(f"unknown op subset {name!r}; choose from {', '.join(sorted(subset_names()))}")
    return tuple(op.name for op in OPS.values() if any(_belongs(op, name) for name in names))


def subset_names() -> set[str]:
    """Names of all subsets of more than one op."""
    return set().union(*(op.subsets for op in OPS.values())) | {"elementwise", "all"}


def _belongs(op: Op, name: str) -> bool:
    return name in ("all", op.name) or name in op.subsets or (name == "elementwise" and not op.reduces)


def register(ops: Iterable[Op]) -> None:
    """Add rows to the table, all or none. Templates are code, so register only rows you trust.

    Raises:
        ProgramError: if something is no row, is malformed, or has the name of a row that is already there.
    """
    rows: dict[str, Op] = {}
    for op in ops:
        if not isinstance(op, Op):
            raise ProgramError(f"expected an Op, got {type(op).__name__}")
        if op.name in OPS or op.name in rows:
            raise ProgramError(f"op {op.name!r} is already in the table")
        _check_row(op)
        rows[op.name] = op
    OPS.update(rows)


def _check_row(op: Op) -> None:
    if not (isinstance(op.name, str) and _NAME.fullmatch(op.name)) or op.name in _BUILDER:
        raise ProgramError(f"op name {str(op.name)[:60]!r} is reserved or not a lower-case identifier of 40 characters")
    if not (isinstance(op.arity, int) and 1 <= op.arity <= 4):
        raise ProgramError(f"op {op.name!r} must take 1 to 4 arguments, not {op.arity!r}")
    if len(op.domain) != op.arity or not set(op.domain) <= set(DOMAINS):
        raise ProgramError(f"op {op.name!r} needs a domain for each argument, one of {', '.join(DOMAINS)}")
    if not (isinstance(op.flops, str) or op.flops > 0) or not op.source:
        raise ProgramError(f"op {op.name!r} needs a positive number of flops and a source")
    if op.derivative is not None and not callable(op.derivative):
        raise ProgramError(f"op {op.name!r} must have a function as its derivative, or None, not {op.derivative!r}")
    try:
        fits = bool(op.result) and callable(op.function)
    except Exception as error:
        raise ProgramError(
            f"op {op.name!r} has a broken template or kind rule: {type(error).__name__}: {error}"
        ) from error
    if not fits:
        raise ProgramError(f"op {op.name!r} accepts no arguments at all; check its kind rule")


def load_plugins(*, again: bool = False) -> None:
    """Register the rows of all installed plug-ins, once.

    Args:
        again: look for plug-ins that were installed after the first call.

    Raises:
        ProgramError: one sentence for each distribution whose rows cannot be loaded; the others' rows are registered.
    """
    if OPS.failures is None or again:
        OPS.failures = []  # before loading: a plug-in's module may itself look up ops
        failures = []
        for point in sorted(entry_points(group=GROUP), key=lambda e: (_distribution(e), e.name)):
            try:
                _load(point)
            except ProgramError as error:
                failures.append(str(error))
        OPS.failures = failures
    if OPS.failures:
        raise ProgramError("; ".join(OPS.failures))


def _load(point: EntryPoint) -> None:
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
