"""Selection under noise: posterior means, who is evaluated again, and that a search with repeats resumes to its end."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest
from support.evaluators import ADAMW
from support.searches import run, toy_fitness

from optforge.primitives import Program
from optforge.search.evolution.standing import NOISE, Individual, noise_variance, standings, worth_repeating
from optforge.search.fitness.evaluator import Evaluator, Fitness, Status, evaluating
from optforge.search.ledger import Ledger
from optforge.search.training.executors.processes import Workers


def individual(number: int, *scores: float) -> Individual:
    return Individual(number, 0, ADAMW, scores[0], tuple(enumerate(scores[1:], 1)))


def test_single_evaluations_stand_as_they_are() -> None:
    assert standings([individual(n, x) for n, x in enumerate((0.3, math.inf, -0.1))]) == [0.3, math.inf, -0.1]


def test_a_lucky_program_falls_behind_one_that_is_good_on_every_seed() -> None:
    others = [individual(n, 0.01 * n) for n in range(2, 12)]
    lucky, steady = individual(0, -0.10, 0.02, 0.03), individual(1, -0.05, -0.06, -0.05)
    found = standings([lucky, steady, *others])
    assert found[1] < found[0]
    assert found.index(min(found)) == 1
    assert fmean(steady.scores()) < found[1] < fmean(o.score for o in others)  # drawn towards the others


def test_only_evaluations_of_batches_that_are_known_count() -> None:
    lucky = individual(0, -0.10, 0.3, 0.3)
    others = [individual(n, 0.01 * n, 0.01 * n) for n in range(1, 6)]
    assert standings([lucky, *others], last=0)[0] == -0.10
    assert standings([lucky, *others], last=1)[0] < standings([lucky, *others], last=2)[0]


def test_a_program_that_diverges_on_another_seed_is_no_parent() -> None:
    assert standings([individual(0, -0.2, math.inf), individual(1, 0.1)])[0] == math.inf
    assert worth_repeating([individual(0, -0.2, math.inf), individual(1, 0.1)], 2) == [individual(1, 0.1)]


def test_noise_is_what_was_measured_once_it_was_measured_often() -> None:
    rng = random.Random(0)
    assert noise_variance([[0.1], [0.2]]) == pytest.approx(NOISE**2)
    often = [[rng.gauss(k, 0.2) for _ in range(3)] for k in range(2000)]
    assert noise_variance(often) == pytest.approx(0.04, rel=0.05)


def test_posterior_is_nearer_to_the_truth_than_scores_are() -> None:
    """Draws from the model itself: the elites' believed values have the smaller error, the more so for the best."""
    rng, errors = random.Random(1), {"score": 0.0, "believed": 0.0}
    for _ in range(200):
        truth = [rng.gauss(0, 0.03) for _ in range(40)]
        seen = [individual(n, *(rng.gauss(t, 0.03) for _ in range(1 + 2 * (n % 2)))) for n, t in enumerate(truth)]
        believed = standings(seen)
        for name, values in (("score", [i.score for i in seen]), ("believed", believed)):
            errors[name] += truth[min(range(40), key=values.__getitem__)]
    assert errors["believed"] < errors["score"] - 200 * 0.003


def test_elites_with_the_fewest_evaluations_are_repeated() -> None:
    known = [individual(0, -0.3, -0.3), individual(1, -0.2), individual(2, -0.1), individual(3, 0.5)]
    assert [i.number for i in worth_repeating(known, 1)] == [1]
    assert [i.number for i in worth_repeating(known, 2)] == [1, 2]


def noisy_factory() -> Evaluator:
    def evaluate(programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        found = []
        for program in programs:
            fitness, noise = toy_fitness(program), random.Random(f"{program.key}/{generation}").gauss(0, 0.2)
            ok = fitness.status is Status.OK
            found.append(Fitness(fitness.score + noise, Status.OK, "", 1e-3, (fitness.score,)) if ok else fitness)
        return found

    return evaluate


def test_a_search_that_repeats_resumes_to_the_same_end_with_any_number_of_workers(tmp_path: Path) -> None:
    def noisy(count: int) -> Workers:
        return Workers(evaluating(noisy_factory), count)

    whole = run(tmp_path / "whole", 96, noisy(0), repeats=2)
    assert run(tmp_path / "none", 96, noisy(0)) != whole
    for attempt, stop in enumerate((1, 3, 5)):
        folder = tmp_path / f"parts{attempt}"
        run(folder, 96, noisy(0), stop_after=stop, repeats=2)
        assert run(folder, 96, noisy(0), repeats=2) == whole
    workers = noisy(2)
    assert run(tmp_path / "two", 96, workers, repeats=2) == whole
    workers.close()
    ledger = Ledger.open(tmp_path / "whole", read_only=True)
    repeats = list(ledger.repeats())
    ledger.close()
    assert len(repeats) > 10 and all(number < 8 * batch for number, batch, _ in repeats)


def stopping_factory() -> Evaluator:
    """Tells the bound of each program by its reason, and answers with it where the program is worse."""

    def evaluate(programs: Sequence[Program], generation: int = 0, bounds: Sequence[float] = ()) -> list[Fitness]:
        found = []
        for program, bound in zip(programs, bounds or [math.inf] * len(programs), strict=True):
            fitness = toy_fitness(program)
            ok = fitness.status is Status.OK
            score = min(fitness.score, bound) if ok and fitness.score > bound else fitness.score
            found.append(Fitness(score, fitness.status, str(bound), fitness.lr, (score,)))
        return found

    return evaluate


def test_bounded_search_gives_each_candidate_the_score_of_a_typical_parent_and_resumes_to_the_same_end(
    tmp_path: Path,
) -> None:
    def stopping(count: int) -> Workers:
        return Workers(evaluating(stopping_factory), count)

    whole = run(tmp_path / "whole", 64, stopping(0), bounded=True)
    run(tmp_path / "parts", 64, stopping(0), stop_after=3, bounded=True)
    workers = stopping(2)
    assert run(tmp_path / "parts", 64, workers, bounded=True) == whole
    workers.close()
    assert run(tmp_path / "free", 64, stopping(0)) != whole
    ledger = Ledger.open(tmp_path / "whole", read_only=True)
    try:
        records = list(ledger)
    finally:
        ledger.close()
    assert records[0].fitness.reason == "inf"
    for number in (40, 63):  # bred from batches that end two before its own, of which the youngest 20 are kept
        last = 8 * (number // 8 - 1)
        scores = sorted(record.fitness.score for record in records[last - 20 : last])
        half = next(n for n in range(1, 21) if 1 - (1 - n / 20) ** 3 >= 0.5)  # so many of 20 hold half of all winners
        assert float(records[number].fitness.reason) == scores[half - 1]
