"""Warnings that name the user's line, not one of this project."""

from __future__ import annotations

import sys
import warnings

_PASSED = frozenset({"optforge", "torch", "lightning", "numpy", "contextlib"})
"""Packages between a user's line and what it leads to."""


def warn(message: str, category: type[Warning]) -> None:
    """Warn of what the nearest line outside of this project, torch and Lightning has led to."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_back is not None and _package(frame) in _PASSED:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _package(frame: object) -> str:
    return str(getattr(frame, "f_globals", {}).get("__name__", "")).partition(".")[0]


__all__ = ["warn"]
