"""Checks of hyperparameters that hand-written optimizers share; each raises `ValueError` naming the first wrong one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def check_not_negative(group: Mapping[str, Any], *names: str) -> None:
    """Finite numbers of at least 0; of tuples, every entry."""
    for name, value in _numbers(group, names):
        if not (_is_number(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def check_positive(group: Mapping[str, Any], *names: str) -> None:
    """Finite numbers above 0."""
    for name, value in _numbers(group, names):
        if not (_is_number(value) and value > 0):
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def check_unit(group: Mapping[str, Any], *names: str) -> None:
    """Numbers in [0, 1), as decays of averages are."""
    for name, value in _numbers(group, names):
        if not (_is_number(value) and 0 <= value < 1):
            raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")


def check_beta(group: Mapping[str, Any], *names: str, count: int = 2) -> None:
    """Tuples of `count` numbers in [0, 1)."""
    words = {2: "two", 3: "three"}
    for name in names:
        value = group[name]
        fits = isinstance(value, tuple | list) and len(value) == count
        if not (fits and all(_is_number(beta) and 0 <= beta < 1 for beta in value)):
            raise ValueError(f"{name} must be {words[count]} numbers in [0, 1), got {value!r}")


def check_bool(group: Mapping[str, Any], *names: str) -> None:
    """Switches."""
    for name in names:
        if not isinstance(group[name], bool):
            raise ValueError(f"{name} must be True or False, got {group[name]!r}")


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):  # a learning rate may be one number in a tensor
        return value.numel() == 1 and math.isfinite(value.item())
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(group: Mapping[str, Any], names: tuple[str, ...]) -> list[tuple[str, Any]]:
    named: list[tuple[str, Any]] = []
    for name in names:
        value = group[name]
        several = isinstance(value, tuple | list)
        named += [(f"{name}[{i}]", v) for i, v in enumerate(value)] if several else [(name, value)]
    return named
