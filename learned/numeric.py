"""The few numbers that learning computes with: floats on a CPU, tensors on other devices, where nothing may wait.

After a pass over all parameters nothing else is in a processor's caches, and an operation of torch on one number takes
as long as one on ten thousand. Formulas are written once: ``+ - *`` and ``** 0.5`` work on both, `of` gives the rest.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Number: TypeAlias = Any
"""A float or a 0-dimensional tensor of float64; where there are many, a numpy array or a tensor."""

quiet = np.errstate(all="ignore")
"""Context in which numpy computes with what is not finite as torch does, without a warning."""


class Floats:
    """What numpy and torch call so, for floats; what is not a number stays so."""

    isfinite = math.isfinite

    @staticmethod
    def where(condition: bool, a: float, b: float) -> float:
        """`a` if the condition holds, else `b`."""
        return a if condition else b

    @staticmethod
    def maximum(a: float, b: float) -> float:
        """The larger one."""
        return a if a > b or a != a else b

    @staticmethod
    def minimum(a: float, b: float) -> float:
        """The smaller one."""
        return a if a < b or a != a else b

    @staticmethod
    def clip(x: float, low: float, high: float) -> float:
        """The number between two bounds that is nearest to `x`."""
        return min(max(x, low), high)

    @staticmethod
    def exp(x: float) -> float:
        """To the power of e."""
        return math.exp(x) if not x > 709.0 else math.inf

    @staticmethod
    def log(x: float) -> float:
        """Natural logarithm."""
        return math.log(x) if not x <= 0.0 else -math.inf if x == 0.0 else math.nan

    log1p = math.log1p

    @staticmethod
    def divide(a: float, b: float) -> float:
        """`a` over `b`, which may be 0."""
        return a / b if b else a * math.inf


def of(x: Number) -> type[Floats] | ModuleType:
    """What has ``exp``, ``log``, ``where``, ``clip``, ``divide``, … for `x`."""
    return Floats if isinstance(x, float) else torch if isinstance(x, Tensor) else np


def near(x: Tensor, device: torch.device) -> Number:
    """A tensor for computations beside numbers on `device`; an array on a CPU may share its memory."""
    if device.type != "cpu":
        return x.to(device, non_blocking=True)
    return x.numpy(force=True) if x.ndim else x.item()


def kept(x: Number) -> Tensor:
    """A number for state, as a tensor of float64."""
    return x if isinstance(x, Tensor) else torch.tensor(x, dtype=torch.float64)


def total(x: Number) -> Number:
    """The sum of many."""
    return x.sum() if isinstance(x, Tensor) else float(x.sum())


def median(x: Number) -> Number:
    """The lower one of the two in the middle of all that are not 0; not a number, if there is none or one is not."""
    if isinstance(x, Tensor):
        return torch.where(x.isnan().any(), math.nan, torch.where(x == 0, math.nan, x).nanmedian())
    some = x[x != 0]
    return torch.from_numpy(some).median().item() if len(some) else math.nan


__all__ = ["Floats", "Number", "kept", "median", "near", "of", "quiet", "total"]
