"""The funnel's rules: normalisation, selection, checkpoints, the meta-overfitting point; and the Pareto front."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from optforge.baselines import BASELINES
from optforge.search.evolution.archive import Point, pareto, point
from optforge.search.evolution.standing import Individual
from optforge.search.funnel import (
    BOUND,
    FLOOR,
    Stage,
    by_seed,
    check_unseen,
    checkpoints,
    overfitting_point,
    relative,
    select,
)

ADAMW = BASELINES["adamw"].program


def individuals(*scores: float) -> list[Individual]:
    return [Individual(n, n // 4, ADAMW, score) for n, score in enumerate(scores)]


def test_adamw_scores_nothing_and_lower_losses_score_lower() -> None:
    reference = (0.31, 0.29, 0.33)
    assert relative(reference, reference, 2.3) == (0.0, 0.0, 0.0)
    better, worse = (relative(tuple(k * x for x in reference), reference, 2.3) for k in (0.9, 1.1))
    assert all(b < 0 < w for b, w in zip(better, worse, strict=True))
    floor = 2.3 * FLOOR
    assert better[1] == pytest.approx(math.log((0.9 * 0.29 + floor) / (0.29 + floor)))


def test_a_score_does_not_depend_on_the_unit_of_the_loss() -> None:
    losses, reference = (0.2, 0.6), (0.3, 0.5)
    scaled = relative([1e6 * x for x in losses], [1e6 * x for x in reference], 2e6)
    assert scaled == pytest.approx(relative(losses, reference, 2.0))


def test_seeds_are_paired() -> None:
    # each seed a tenth better, though the seeds differ a hundredfold: a ratio of means would see the largest alone
    assert relative((0.9, 90.0), (1.0, 100.0), 1e-9) == pytest.approx((math.log(0.9),) * 2)


def test_no_run_counts_more_than_the_bound_and_two_solved_tasks_are_equal() -> None:
    assert relative((1e9, 0.0, math.inf, math.nan), (0.1, 0.1, 0.1, 0.1), 1.0) == (BOUND, -BOUND, BOUND, BOUND)
    assert relative((), (0.1, 0.1), 1.0) == (BOUND, BOUND)
    (solved,) = relative((1e-12,), (1e-7,), 1.0)
    assert abs(solved) < 1e-3
    # one task lost outweighs one won, but not more than that
    assert by_seed([relative((math.inf,), (1.0,), 2.0), relative((0.0,), (1.0,), 2.0)]) == (0.0,)


def test_a_reference_that_is_none_is_refused() -> None:
    for reference, start in (((), 1.0), ((math.inf,), 1.0), ((1.0,), 0.0), ((1.0,), math.nan)):
        with pytest.raises(ValueError, match="must be finite"):
            relative((1.0,), reference, start)
    with pytest.raises(ValueError):
        relative((1.0, 2.0), (1.0,), 1.0)


def test_the_best_go_on_and_of_equals_the_older() -> None:
    scores = {7: 0.2, 3: 0.2, 5: -0.1, 9: 0.4}
    assert select(scores, 2) == [5, 3]
    assert select(scores, 0) == [5, 3, 7, 9]


@pytest.mark.parametrize("change", [{"seeds": ()}, {"seeds": (1, 1)}, {"keep": -1}, {"ladder": (0.1, 0.01)}])
def test_a_stage_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="stage small"):
        Stage(**{"name": "small", "tasks": ("digits",), "steps": 0, "seeds": (1, 2), "keep": 3, **change})  # type: ignore[arg-type]


def test_meta_validation_sees_nothing_that_selected() -> None:
    small = Stage("small", ("a", "b"), 0, (1, 2), 3)
    check_unseen([small, Stage("last", ("c",), 0, (3,), 0)], ["digits"])
    for tasks, seeds in ((("b", "c"), (3,)), (("digits",), (3,)), (("c",), (2, 3))):
        with pytest.raises(ValueError, match="last needs"):
            check_unseen([small, Stage("last", tasks, 0, seeds, 0)], ["digits"])


def test_checkpoints_show_the_best_so_far_and_the_youngest_that_trained() -> None:
    history = individuals(math.inf, math.inf, 3.0, 4.0, 2.0, math.inf, 1.0)
    looks = checkpoints(history, 2)
    assert [(c.trained, c.best.number, c.youngest.number) for c in looks] == [(4, 2, 3), (6, 4, 4), (7, 6, 6)]
    # what was looked at stays looked at when the search goes on
    assert looks[:2] == checkpoints([*history, *individuals(*[0.5] * 20)[7:]], 2)[:2]
    assert checkpoints(individuals(math.inf, math.inf), 1) == []
    assert checkpoints([], 1) == []


def test_the_overfitting_point_is_where_only_the_proxy_goes_on() -> None:
    both = [(n, 1.0 - n / 10, -n / 10) for n in range(8)]
    assert overfitting_point(both) is None
    stalled = [(n, proxy, max(meta, -0.3)) for n, proxy, meta in both]
    assert overfitting_point(stalled) == 3
    assert overfitting_point(stalled, patience=5) is None
    assert overfitting_point(stalled[:6]) is None  # two gains of the proxy since then: too early to say
    # a search that stands still on both overfits nothing
    assert overfitting_point([*stalled[:4], *((n, 0.7, -0.3) for n in range(4, 12))]) is None
    # nor do gains below the smallest that counts move the point
    drifting = [(n, proxy, meta - 1e-4 * n) for n, proxy, meta in stalled]
    assert overfitting_point(drifting) == 3
    assert overfitting_point([]) is None


def test_the_front_is_what_nothing_dominates() -> None:
    rng = random.Random(0)
    points = [Point(n, rng.choice([0.1, 0.2, 0.3, math.inf]), 4.0 * rng.randrange(4), rng.randrange(6), ADAMW)
              for n in range(200)]  # fmt: skip

    def dominates(a: Point, b: Point) -> bool:
        return all(x <= y for x, y in zip(a[1:4], b[1:4], strict=True)) and a[1:4] != b[1:4]

    finite = [p for p in points if math.isfinite(p.fitness)]
    expected = {p[1:4] for p in finite if not any(dominates(q, p) for q in finite)}
    front = pareto(points, lambda p: p.objectives)
    assert {p[1:4] for p in front} == expected
    assert len(front) == len(expected)
    assert all(a.fitness <= b.fitness for a, b in pairwise(front))
    for p in front:
        assert p.number == min(q.number for q in finite if q[1:4] == p[1:4])


def test_a_point_measures_live_code_and_state() -> None:
    found = point(Individual(5, 0, ADAMW, 0.25))
    assert found[:4] == (5, 0.25, 8.0, 16)
    assert point(Individual(6, 0, BASELINES["lion"].program, 0.5))[2:4] == (4.0, 7)
