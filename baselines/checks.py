"""Checks of hyperparameters that hand-written optimizers share; each raises `ValueError` naming the first wrong one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_not_negative(group: Mapping[str, Any], *names: str) -> None:
    """Finite numbers of at least 0."""
    for name in names:
        value = _plain(group[name]) if name == "lr" else group[name]
        if not (_is_number(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def check_positive(group: Mapping[str, Any], *names: str) -> None:
    """Finite numbers above 0."""
    for name in names:
        value = group[name]
        if not (_is_number(value) and value > 0):
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def check_unit(group: Mapping[str, Any], *names: str) -> None:
    """Numbers in [0, 1), as decays of averages are."""
    for name in names:
        value = group[name]
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


def check_dtype(group: Mapping[str, Any], *names: str) -> None:
    """Floating-point dtypes, or None."""
    for name in names:
        dtype = group[name]
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f"{name} must be a floating-point dtype like torch.float32, got {dtype!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """A learning rate, which may be one number in a tensor, for schedules that change it in place."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
