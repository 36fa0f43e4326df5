"""Power, tunability, sensitivity, time to target and profiles against simulation, other libraries and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from optforge.experiments.compare.measures import (
    best_of,
    detectable,
    median_or_censored,
    power,
    profile,
    steps_to_target,
    width,
)
from optforge.experiments.compare.statistics import compare_pairs


@pytest.mark.parametrize(("count", "effect", "alpha"), [(10, 1.0, 0.05), (10, 0.7, 0.005), (5, 2.0, 0.05)])
def test_power_is_how_often_the_test_finds_the_effect(count: int, effect: float, alpha: float) -> None:
    rng = np.random.default_rng(count)
    draws = rng.normal(effect * 3, 3.0, (4000, count))
    found = np.mean(stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= alpha)
    promised = power(3.0, count, effect * 3, alpha)
    assert abs(found - promised) < 3 * math.sqrt(promised * (1 - promised) / 4000)


def test_power_without_effect_is_the_level_and_never_falls() -> None:
    assert power(1.0, 10, 0.0, 0.05) == pytest.approx(0.05)
    found = [power(1.0, 10, effect) for effect in (0.1, 0.5, 1.0, 2.0, 10.0, 1000.0)]
    assert found == sorted(found) and found[-1] == 1.0
    assert power(0.0, 10, 0.1) == 1.0 and math.isnan(power(1.0, 1, 1.0))


def test_detectable_is_found_with_the_wanted_power() -> None:
    effect = detectable(0.3, 10, 0.01, 0.8)
    assert power(0.3, 10, effect, 0.01) == pytest.approx(0.8, abs=1e-6)
    # Student's shift for 80 % and two-sided 5 % with many runs: 1.96 + 0.84 standard errors
    assert detectable(1.0, 10_000, 0.05) == pytest.approx((1.959964 + 0.841621) / 100, rel=1e-3)
    assert detectable(0.0, 10) == 0.0 and math.isnan(detectable(1.0, 1))


def test_pairs_promise_power_at_the_strictest_level() -> None:
    rng = np.random.default_rng(0)
    losses = {name: 1 + rng.normal(0, 0.01, 10) for name in "abc"}
    (pair, *_) = pairs = compare_pairs(losses, smallest_effect=0.02)
    assert len(pairs) == 3
    assert pair.spread == pytest.approx(np.std(losses["a"] - losses["b"], ddof=1))
    assert pair.power == pytest.approx(power(pair.spread, 10, pair.margin, 0.05 / 3))
    assert pair.bootstrap is not None and pair.bootstrap.method == "BCa"
    assert pair.seen_from("b").bootstrap.low == -pair.bootstrap.high  # type: ignore[union-attr]


def test_planted_improvement_is_found_as_often_as_promised() -> None:
    """2 % on the mean loss, in noise that leaves real doubt: the promise is neither empty nor a certainty."""
    rng = np.random.default_rng(1)
    found, promised = [], power(0.02, 10, 0.02)
    assert 0.6 < promised < 0.9
    for _ in range(300):
        hard = rng.normal(1.0, 0.2, 10)  # the same for both: pairing takes it out
        (pair,) = compare_pairs({"planted": hard - 0.02 + rng.normal(0, 0.02, 10), "base": hard}, smallest_effect=0.001)
        found.append(pair.verdict.value == "better")
    assert abs(np.mean(found) - promised) < 3 * math.sqrt(promised * (1 - promised) / 300)


def test_best_of_k_by_hand() -> None:
    assert best_of([3.0, 4.0, 1.0, 2.0]) == [3.0, 3.0, 1.0, 1.0]


def test_width_by_hand() -> None:
    rates = [0.001, 0.01, 0.1, 1.0]
    # best 1.0, start 3.0: 1.1 is near. On the left half way from 1.0 to 1.2; on the right all of it, then 2.0
    assert width(rates, [1.2, 1.0, 1.1, 2.0], 3.0) == pytest.approx(0.5 + 1.0)
    assert width(rates, [1.0, 1.0, 1.0, 1.0], 3.0) == pytest.approx(3.0)  # not beyond what was tried
    assert width(rates, [3.0, 1.0, 3.0, 1.0], 3.0) == pytest.approx(0.1)  # a second valley does not count
    assert math.isnan(width(rates, [3.0, 3.0, 3.0, 3.0], 3.0))


def test_steps_to_target() -> None:
    assert steps_to_target([5.0, 3.0, 1.0, 2.0], 200, 3.0) == 100
    assert steps_to_target([5.0, 3.0], 7, 3.5) == 7 and steps_to_target([5.0], 10, 1.0) == math.inf
    assert steps_to_target([math.nan, 1.0], 10, 1.0) == 10
    assert median_or_censored([10, math.inf, 20]) == 20 and median_or_censored([10, 20, math.inf, math.inf]) == math.inf


def test_profile_by_hand() -> None:
    found = profile({"a": [1.0, 4.0], "b": [2.0, 2.0]}, [0.0, 0.0])
    assert found == {"a": [1.0, 2.0], "b": [1.0, 2.0]}
    solved = profile({"a": [1e-12, 1.0], "b": [1e-15, 1.0]}, [1.0, 1.0])  # both solved the first problem
    assert max(*solved["a"], *solved["b"]) < 1.001
    exact = profile({"a": [0.0], "b": [1.0]}, [1.0])  # solved to the last digit
    assert exact == {"a": [1.0], "b": [pytest.approx(1001.0)]}


def test_problems_without_ratios_are_left_out_of_the_profile() -> None:
    losses = {"a": [-1.0, 4.0, -3.0, 0.0, 1e300], "b": [2.0, 2.0, -2.0, 0.0, 1e-300]}
    assert profile(losses, [30.0, 0.0, 5.0, 0.0, 0.0]) == {"a": [2.0], "b": [1.0]}
    assert profile({"a": [-1.0], "b": [-2.0]}, [1.0]) == {"a": [], "b": []}
