"""A few seconds of `support.fuzz`, hypothesis chooses seeds; the long run is ``python tests/support/fuzz.py``."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fuzz import HOSTILE_NAMES, MAKERS, check_exports, corpus, read, run
from support.strategies import programs

from optforge.baselines import BASELINES
from optforge.primitives import Program

TEXTS = corpus(100, seed=0)


@given(st.sampled_from(MAKERS), st.integers(0, 2**32))
@settings(max_examples=1500)
def test_reading_ends_in_a_program_or_a_program_error(make, seed: int) -> None:
    read(make(TEXTS, random.Random(seed)))


def test_many_cases() -> None:
    outcome = run(20_000, seed=1, exports=0)
    assert outcome["accepted"] > 500
    assert outcome["refused"] > 5000
    assert not outcome["FAILED"]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_stay_out_of_exported_code(name: str) -> None:
    for row in ("adamw", "adafactor", "muon", "schedule-free-adamw"):  # scalars, rows, matrices, weights of averages
        check_exports(BASELINES[row].program, name)


@given(programs(max_body=8), st.text(max_size=30) | st.sampled_from(HOSTILE_NAMES))
@settings(max_examples=40)
def test_no_program_changes_exported_code_by_its_name(program: Program, name: str) -> None:
    check_exports(program, name)


def test_the_runner_tells_what_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("support.fuzz.parse_program", lambda _: 1 / 0)
    assert run(3, seed=0, exports=0) == Counter({"FAILED": 3})
    assert "ZeroDivisionError" in capsys.readouterr().err
