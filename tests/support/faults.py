"""Shared by tests of several files."""

from __future__ import annotations

from typing import TypeVar

import pytest

F = TypeVar("F")


LONG = (pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(3600))


def long(test: F) -> F:
    """Part of `make faults` only."""
    for mark in LONG:
        test = mark(test)
    return test
