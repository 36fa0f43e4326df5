"""Mistakes of the person at the command line, each told in one sentence."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class UserError(Exception):
    """Something that was asked for does not exist or does not fit; the message is one sentence that helps.

    The command line prints it to standard error and exits with code 2, without a traceback.
    """


class FailedError(UserError):
    """What was asked for was done as asked, and failed: a program that does not train, say.

    The command line prints it and exits with code 1.
    """


DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES}


def disk_error(error: BaseException) -> UserError | None:
    """The sentence for an `OSError` of a full disk or of missing permission; None for other errors."""
    if not isinstance(error, OSError) or error.errno not in DISK:
        return None
    where = "" if error.filename is None else f": {error.filename}"
    return UserError(f"{error.strerror}{where}; what was written before is kept")


def nearest(name: str, valid: Iterable[str]) -> str:
    """The part of a sentence that suggests the names among `valid` nearest to `name`; empty if none is
    near."""
    near = difflib.get_close_matches(name, list(valid), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def unknown(what: str, name: str, valid: Iterable[str]) -> UserError:
    """The error for a `name` that is not among `valid`: it suggests the nearest valid ones, then names all.

    `what` says what was looked for, in the singular (``"task"``).
    """
    names = sorted(valid)
    return UserError(f"unknown {what} {name[:80]!r}{nearest(name, names)} (there are: {', '.join(names)})")
