"""Checks of hyperparameters that hand-written optimizers share."""

from __future__ import annotations

import math


def check_not_negative(**values: float) -> None:
    """Raise `ValueError` naming the first value that is not a finite number of at least 0."""
    for name, value in values.items():
        if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def check_positive(**values: float) -> None:
    """Raise `ValueError` naming the first value that is not a finite number above 0."""
    for name, value in values.items():
        if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def check_beta(**values: tuple[float, ...]) -> None:
    """Raise `ValueError` naming the first value that is not a pair of numbers in [0, 1)."""
    for name, pair in values.items():
        two = isinstance(pair, tuple | list) and len(pair) == 2
        if not (two and all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in pair)):
            raise ValueError(f"{name} must be two numbers in [0, 1), got {pair!r}")
