"""Search spaces: equal relative widths, equal numbers of dimensions, edges on both sides; by hand."""

from __future__ import annotations

import pytest

from optforge.baselines import BASELINES
from optforge.experiments.compare.spaces import Dimension, Space, declared, spaces
from optforge.experiments.programs.rules import configured


@pytest.mark.parametrize(
    ("dimension", "low", "high"),
    [
        (Dimension("lr", "rate", 0.01), 0.01 / 10**1.5, 0.01 * 10**1.5),
        (Dimension("weight_decay", "log", 0.1), 0.1 / 10**1.5, 0.1 * 10**1.5),
        (Dimension("beta2", "unit", 0.999), 1 - 0.001 * 10**0.5, 1 - 0.001 / 10**0.5),
        (Dimension("x", "linear", -4.0), -6.0, -2.0),
        (Dimension("x", "linear", 0.0), -0.5, 0.5),
    ],
)
def test_ranges_by_hand(dimension: Dimension, low: float, high: float) -> None:
    assert [dimension.value(x) for x in (0, 0.5, 1)] == pytest.approx([low, dimension.centre, high])


def test_a_share_stays_a_share_however_far_its_range_is_widened() -> None:
    beta = Dimension("beta", "unit", 0.5)
    assert beta.value(-10) == 0.0 and beta.value(1.5) < 1


def test_a_range_of_shares_begins_at_zero_and_keeps_its_width() -> None:
    beta = Dimension("beta", "unit", 0.529)
    # 1 − β runs from 1 down by a decade, and the centre lies where it lay
    assert [beta.value(x) for x in beta.bounds] == pytest.approx([0.0, 0.9]) and beta.value(0.5) == 0.529
    assert beta.value(beta.bounds[0] + 0.01) > 0.02, "no two places are the same"
    assert Dimension("beta", "unit", 0.9).bounds == (0.0, 1.0)
    space = Space((Dimension("lr", "rate", 1.0), beta), ((0.0, 1.0), beta.bounds))
    assert space.edges((0.5, beta.bounds[0])) == [], "there is nothing beyond 0"
    assert space.edges((0.05, beta.bounds[1])) == [(0, -1), (1, 1)]
    assert space.inside(space.place((0.3, 0.7))) == pytest.approx([0.3, 0.7])


def test_a_range_of_shares_is_widened_no_further_than_zero() -> None:
    beta = Dimension("beta", "unit", 0.8)  # whose range ends at 0.37
    space = Space((beta,), (beta.bounds,))
    assert space.edges((0.05,)) == [(0, -1)]
    wide, (strip,) = space.widened([(0, -1)])
    assert [beta.value(x) for x in strip.bounds[0]] == pytest.approx([0.0, 1 - 0.2 * 10**0.5])
    shares = [Dimension("beta", "unit", c / 20) for c in range(1, 20)]
    assert {d.value(at) for d in shares for at in (d.least, d.least - 1)} == {0.0}
    assert wide.bounds == ((beta.least, 1.0),) and wide.edges((beta.least,)) == []


def test_edges_are_the_outer_tenth_of_what_is_searched_now() -> None:
    space = Space((Dimension("a", "log", 1.0), Dimension("b", "log", 1.0)), ((0.0, 1.0), (0.0, 2.0)))
    assert space.edges((0.5, 1.0)) == []
    assert space.edges((0.09, 1.0)) == [(0, -1)] and space.edges((0.91, 1.0)) == [(0, 1)]
    assert space.edges((0.11, 1.81)) == [(1, 1)] and space.edges((0.05, 0.19)) == [(0, -1), (1, -1)]


def test_widening_adds_half_a_declared_range_and_tries_only_that() -> None:
    space = Space((Dimension("a", "log", 1.0), Dimension("b", "log", 1.0)), ((0.0, 1.0), (0.0, 1.0)))
    wide, (low, high) = space.widened([(0, -1), (1, 1)])
    assert wide.bounds == ((-0.5, 1.0), (0.0, 1.5))
    assert low.bounds == ((-0.5, 0.0), (0.0, 1.5)) and high.bounds == ((-0.5, 1.0), (1.0, 1.5))
    assert low.inside((0.5, 0.0)) == [-0.25, 0.0]
    assert space.widened([]) == (space, ())
    assert declared(wide)[1] == {"name": "b", "scale": "log", "centre": 1.0,
                                 "low": pytest.approx(10**-1.5), "high": pytest.approx(10**3)}  # fmt: skip


def test_all_have_as_many_dimensions_as_the_one_with_the_fewest_but_a_control_takes_none_away() -> None:
    programs = [BASELINES[name].program for name in ("adamw", "lion", "sgd", "gradient-descent")]
    found = spaces(programs[:2], [0.1, 0.2], 3)
    assert [[d.name for d in s.dimensions] for s in found] == [["lr", "weight_decay", "beta1"]] * 2
    assert found[1].dimensions[1].centre == 0.01  # for a default of 0
    assert [len(s.dimensions) for s in spaces(programs[:3], [0.1] * 3, 3)] == [2, 2, 2]
    assert [len(s.dimensions) for s in spaces(programs, [0.1] * 4, 3)] == [1] * 4
    controls = spaces(programs, [0.1] * 4, 3, [False, False, True, True])
    assert [len(s.dimensions) for s in controls] == [3, 3, 2, 1]
    assert [len(s.dimensions) for s in spaces(programs[:2], [0.1] * 2, 9)] == [4, 4]


def test_hyperparameters_reach_the_fallback() -> None:
    muon = configured(BASELINES["muon"].program, {"lr": 0.3, "weight_decay": 0.5, "momentum": 0.8})
    assert muon.fallback is not None
    assert muon.defaults()["momentum"] == 0.8
    assert muon.defaults()["weight_decay"] == muon.fallback.defaults()["weight_decay"] == 0.5
