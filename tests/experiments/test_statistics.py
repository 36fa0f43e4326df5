"""Statistics against hand-computed numbers, dualities, and simulations in which the truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from optforge.experiments.compare.statistics import (
    Verdict,
    censor,
    compare_pairs,
    corrected,
    difference_p,
    equivalence_p,
    holm,
    mean_interval,
)


def test_holm_by_hand() -> None:
    # sorted: 0.005 × 4, 0.01 × 3, 0.03 × 2, 0.04 × 1 but no less than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_does_not_count_missing_tests() -> None:
    corrected = holm([0.02, math.nan, 0.01])
    assert math.isnan(corrected[1])
    assert corrected[0] == pytest.approx(0.02) and corrected[2] == pytest.approx(0.02)


def test_t_interval_by_hand() -> None:
    # 1, 2, 3, 4: standard error 1.2910 / 2, and 3.1824 is Student's 97.5 % quantile for 3 degrees of freedom
    interval = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert interval.method == "t" and interval.level == 0.95
    assert interval.low == pytest.approx(2.5 - 3.1824 * 0.64550, abs=1e-4)
    assert interval.high == pytest.approx(2.5 + 3.1824 * 0.64550, abs=1e-4)


@pytest.mark.parametrize(("n", "repeats", "method"), [(5, 600, "t"), (30, 120, "BCa")])
def test_interval_covers_the_true_mean_as_often_as_it_says(n: int, repeats: int, method: str) -> None:
    rng = np.random.default_rng(n)
    intervals = [mean_interval(rng.normal(3.0, 2.0, n)) for _ in range(repeats)]
    assert {i.method for i in intervals} == {method}
    covered = np.mean([3.0 in i for i in intervals])
    slack = 3 * math.sqrt(0.95 * 0.05 / repeats)
    assert 0.935 - slack < covered < 0.95 + slack


def test_bootstrap_interval_follows_the_skew_and_repeats_exactly() -> None:
    skewed = np.random.default_rng(0).lognormal(0, 1, 40)
    interval = mean_interval(skewed)
    assert interval.high - skewed.mean() > 1.1 * (skewed.mean() - interval.low)
    assert mean_interval(skewed) == interval


def test_paired_p_is_that_of_two_related_samples() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=8), rng.normal(0.5, 1, size=8)
    assert difference_p(a - b) == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_equivalence_agrees_with_the_interval() -> None:
    # two one-sided tests at 5 % accept exactly if the 90 % interval lies within the margin
    rng = np.random.default_rng(2)
    accepted = 0
    for _ in range(200):
        x = rng.normal(0.2, 0.5, 10)
        interval = mean_interval(x, level=0.9)
        within = interval.low > -0.5 and interval.high < 0.5
        accepted += within
        assert (equivalence_p(x, 0.5) < 0.05) == within
    assert 20 < accepted < 180


def test_difference_at_the_margin_is_rarely_called_equivalent() -> None:
    rng = np.random.default_rng(3)
    wrong = np.mean([equivalence_p(rng.normal(0.1, 0.1, 10), 0.1) <= 0.05 for _ in range(600)])
    assert wrong < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 600)


def test_false_claims_among_many_pairs_stay_below_five_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    for slow in ("bootstrap_interval", "detectable"):  # which no verdict looks at
        monkeypatch.setattr(f"optforge.experiments.compare.statistics.{slow}", lambda *_: math.nan)
    rng = np.random.default_rng(4)
    false = 0
    for _ in range(200):
        seed_effect = rng.normal(size=8)
        runs = {name: seed_effect + rng.normal(size=8) + 10 for name in "abcd"}  # six pairs, no difference
        pairs = compare_pairs(runs, smallest_effect=0.0)
        false += any(pair.verdict is not Verdict.NO_DIFFERENCE for pair in pairs)
    assert false / 200 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def test_pairing_finds_what_the_spread_over_seeds_would_hide() -> None:
    rng = np.random.default_rng(5)
    hard = rng.normal(1.0, 0.3, 10)  # how hard each seed is; the same for all
    runs = {"base": hard, "planted": 0.98 * hard + rng.normal(0, 0.003, 10), "noisy": hard + rng.normal(0, 0.3, 10)}
    found = {(p.first, p.second): p for p in compare_pairs(runs)}
    assert found["base", "planted"].verdict is Verdict.WORSE
    assert found["base", "planted"].seen_from("planted").verdict is Verdict.BETTER
    assert found["base", "noisy"].verdict is Verdict.NO_DIFFERENCE


def test_certain_but_tiny_difference_is_equivalent() -> None:
    base = np.linspace(0.9, 1.1, 10)
    (pair,) = compare_pairs({"a": base, "b": base * 1.001 + 1e-5 * np.sin(np.arange(10))})
    assert pair.p_holm < 1e-6 and pair.margin == pytest.approx(0.01, rel=0.01)
    assert pair.verdict is Verdict.EQUIVALENT


def test_identical_losses_differ_by_exactly_zero() -> None:
    losses = [0.3, 0.1, 0.2]
    (pair,) = compare_pairs({"a": losses, "b": losses})
    assert (pair.difference, pair.p, pair.p_equivalence) == (0.0, 1.0, 0.0)
    assert (pair.interval.low, pair.interval.high, pair.interval.method) == (0.0, 0.0, "constant")
    assert pair.verdict is Verdict.EQUIVALENT


def test_failed_runs_count_as_their_start() -> None:
    losses = np.array([[0.5, math.nan, 0.5, 3.0], [math.inf, 0.4, 0.4, 0.4]])
    diverged = np.array([[False, False, True, False], [False] * 4])
    counted, failed = censor(losses, diverged, np.array([2.0, 2.1, 2.2, 2.3]))
    assert counted.tolist() == [[0.5, 2.1, 2.2, 2.3], [2.0, 0.4, 0.4, 0.4]]
    assert failed.tolist() == [[False, True, True, True], [True, False, False, False]]


def test_failing_on_some_seeds_makes_an_optimizer_worse() -> None:
    start = np.full(10, 2.3)
    safe = np.linspace(0.30, 0.31, 10)
    losses = np.stack([safe, np.where(np.arange(10) % 2 == 0, math.nan, 0.9 * safe)])
    counted, failed = censor(losses, np.zeros_like(losses, dtype=bool), start)
    names = ("safe", "risky")
    (pair,) = compare_pairs(dict(zip(names, counted, strict=True)), dict(zip(names, failed, strict=True)))
    assert pair.verdict is Verdict.BETTER  # among finished runs alone, risky would win


def test_both_failing_is_no_evidence_of_equivalence() -> None:
    start, failed = np.array([2.3, 2.2, 2.4]), np.array([True, True, True])
    (pair,) = compare_pairs({"a": start, "b": start}, {"a": failed, "b": failed})
    assert pair.verdict is Verdict.NO_DIFFERENCE
    assert math.isnan(pair.detectable) and math.isnan(pair.power), "a spread of zero promises nothing"
    once, never = np.array([True, False, False]), np.array([False] * 3)
    losses = {"a": start, "b": np.array([2.3, 1.0, 1.5]), "c": np.array([2.0, 1.1, 1.3])}
    found = corrected(compare_pairs(losses, {"a": once, "b": once, "c": never}))
    assert [math.isnan(pair.detectable) for pair in found] == [True, False, False]


def test_single_run_is_marked_and_claims_nothing() -> None:
    (pair,) = compare_pairs({"a": [0.1], "b": [5.0]})
    assert pair.verdict is Verdict.SINGLE_RUN
    assert pair.interval.method == "single run" and math.isnan(pair.interval.low) and math.isnan(pair.p_holm)


def test_turning_a_pair_round() -> None:
    (pair,) = compare_pairs({"a": [1.0, 1.1, 1.2, 1.3], "b": [2.0, 2.2, 2.1, 2.4]})
    turned = pair.seen_from("b")
    assert (pair.verdict, turned.verdict) == (Verdict.BETTER, Verdict.WORSE)
    assert turned.difference == -pair.difference and turned.interval.low == -pair.interval.high
    assert turned.seen_from("a") == pair == pair.seen_from("a")
    with pytest.raises(ValueError, match="c is neither a nor b"):
        pair.seen_from("c")


def test_unequal_seeds_and_raw_divergence_are_refused() -> None:
    with pytest.raises(ValueError, match="a 2, b 3"):
        compare_pairs({"a": [1.0, 2.0], "b": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="finite"):
        mean_interval([1.0, math.nan])
