"""Kinds, names, hyperparameters with their scales, slots."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import names

from optforge.primitives import SCALES, SIGNALS, Hyper, Kind, ProgramError, Slot
from optforge.primitives.kinds import RESERVED, join


def test_join_is_broadcasting() -> None:
    assert join(Kind.ROW, Kind.COL) is Kind.TENSOR
    assert join(Kind.SCALAR, Kind.ROW) is Kind.ROW
    assert join(Kind.COL, Kind.COL, Kind.SCALAR) is Kind.COL
    assert join() is Kind.SCALAR


@given(st.floats(1e-300, 1e300))
def test_log_scale_round_trip(value: float) -> None:
    scale = SCALES["log"]
    assert scale.inverse(scale.forward(value)) == pytest.approx(value, rel=1e-12)


@given(st.just(0.0) | st.floats(1e-12, 1, exclude_max=True))
def test_unit_scale_round_trip(value: float) -> None:
    scale = SCALES["unit"]
    assert scale.inverse(scale.forward(value)) == pytest.approx(value, rel=1e-12)


@given(st.floats(0, 30))
def test_unit_scale_round_trip_from_the_unconstrained_side(x: float) -> None:
    scale = SCALES["unit"]
    back = scale.forward(scale.inverse(x))
    # near 1, natural values are 1e-16 apart, which is exp(x) times as much in unconstrained space
    assert back == pytest.approx(x, abs=1e-12 + 3e-16 * math.exp(x))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_linear_scale_is_the_identity(value: float) -> None:
    assert SCALES["linear"].forward(value) == value == SCALES["linear"].inverse(value)


@pytest.mark.parametrize("name", SCALES)
@given(x=st.floats(allow_nan=False, allow_infinity=False))
def test_scale_inverse_stays_in_the_natural_range(name: str, x: float) -> None:
    """A learned or tuned value may wander anywhere in unconstrained space and is still a legal one."""
    assert SCALES[name].contains(SCALES[name].inverse(x))


def test_unit_scale_measures_decays_by_their_horizon() -> None:
    steps = [SCALES["unit"].forward(x) for x in (0.0, 0.9, 0.99, 0.999, 0.9999)]
    differences = [b - a for a, b in pairwise(steps)]
    assert differences == pytest.approx([math.log(10)] * 4, rel=1e-9)


def test_a_decay_of_zero_can_be_left_and_is_the_least() -> None:
    scale = SCALES["unit"]
    assert scale.inverse(scale.forward(0.0) + math.log(10)) == pytest.approx(0.9)
    assert scale.inverse(-1.0) == scale.inverse(-math.inf) == 0.0


def test_zero_is_switched_off_for_good() -> None:
    scale = SCALES["log"]
    assert scale.forward(0.0) == -math.inf
    assert scale.inverse(-math.inf) == 0.0
    assert scale.inverse(scale.forward(0.0) + 5) == 0.0


@pytest.mark.parametrize(
    ("scale", "value"),
    [("log", -1e-9), ("log", math.inf), ("unit", 1.0), ("unit", -0.1), ("linear", math.inf), ("linear", math.nan),
     ("log", math.nan), ("unit", math.nan), ("linear", "0.1"), ("linear", True), ("linear", None)],
)  # fmt: skip
def test_hyper_refuses_values_outside_its_scale(scale: str, value: object) -> None:
    with pytest.raises(ProgramError, match="hyper decay"):
        Hyper("decay", value, scale)  # type: ignore[arg-type]


def test_hyper_refuses_unknown_scale_naming_the_known() -> None:
    with pytest.raises(ProgramError, match=r"'cubic'.*log, unit, linear"):
        Hyper("a", 0.5, "cubic")


def test_negative_zero_becomes_zero() -> None:
    assert math.copysign(1, Hyper("a", -0.0).default) == 1
    assert math.copysign(1, Slot("a", init=-0.0).init) == 1  # type: ignore[arg-type]


def test_whole_numbers_become_floats() -> None:
    assert type(Hyper("a", 1).default) is float
    assert type(Slot("a", init=1).init) is float


BAD_NAMES = ["", "A", "1a", "a-b", "a b", "a\n", "é", "a" * 41, "x0", "x12", "import os", "a'", 3, None, b"a",
             *SIGNALS, *sorted(RESERVED)]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_bad_names_are_refused(name: object) -> None:
    with pytest.raises(ProgramError, match="hyperparameter name"):
        Hyper(name, 0.5)  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match="slot name"):
        Slot(name)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["nan", "inf", "params", "maximize", "lr", "step", "update"])
def test_names_with_another_meaning_are_reserved(name: str) -> None:
    """Numbers of the text form and options of torch optimizers cannot be hyperparameters as well."""
    with pytest.raises(ProgramError, match="reserved"):
        Hyper(name, 0.5)


@given(names)
def test_good_names_are_accepted(name: str) -> None:
    assert Hyper(name, 0.5).name == Slot(name).name == name


@pytest.mark.parametrize("init", [math.nan, math.inf, "q", True, None])
def test_slot_refuses_bad_init(init: object) -> None:
    with pytest.raises(ProgramError, match="slot m: init"):
        Slot("m", Kind.TENSOR, init)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Kind.SCALAR, Kind.ROW, Kind.COL])
def test_only_tensor_slots_can_start_as_a_copy(kind: Kind) -> None:
    with pytest.raises(ProgramError, match="tensor slot"):
        Slot("m", kind, "g")


def test_slot_refuses_what_is_no_kind() -> None:
    with pytest.raises(ProgramError, match="slot m: 3 is not a Kind"):
        Slot("m", 3)  # type: ignore[arg-type]
