"""Writing files so that nobody ever reads half of one, and numbers as JSON has them."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

from optforge.experiments.errors import UserError


def check_can_write(option: str, path: Path | None) -> None:
    """Raise `UserError` if `path`, given as `option`, is a folder or in none: before the work, not after it."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        why = "it is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise UserError(f"{option} {path} cannot be written: {why}")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to `path`: readers see the old file or the whole new one, never a part.

    The content goes to a temporary file in the same folder, reaches the disk, and then takes the place of
    `path`.

    Raises:
        OSError: if the folder does not exist or cannot be written to; `path` is then as it was.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp makes files that only the owner may read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def finite_or_null(value: Any) -> Any:
    """`value` with tuples as lists, keys as text and non-finite floats as None, at any depth."""
    if isinstance(value, dict):
        return {str(k): finite_or_null(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_null(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
