"""The benchmark of learned rules: stacked runs are single runs, rates are tuned, and the table says what was found."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from optforge.experiments.bench import meta
from optforge.experiments.bench.meta import CASES, METHODS, Case, drawn, hand_made, measure, table
from optforge.experiments.training.meta_problems import digit_images
from optforge.learned.meta.tasks import classifier, quadratics


@pytest.mark.parametrize("method", list(METHODS))
def test_functions_of_a_seed_do_not_mix(method):
    """All at once, and one at a time with the optimizer of its own."""
    problem = quadratics(3, 8)
    found, curve = hand_made(method, 0.02, problem, [5, 6], 3)
    instances, params, _ = drawn(problem, [5, 6], 3)
    finals, curves = [], []
    for k in range(6):
        x = params["x"][k].clone().requires_grad_()
        optimizer, own = METHODS[method]([x], lr=0.02), []
        for _ in range(9):
            optimizer.zero_grad()
            loss = (instances["w"][k] @ x - instances["y"][k]).square().sum()
            own.append(loss.item())
            loss.backward()
            optimizer.step()
        finals.append(own[-1])
        curves.append(own[:-1])
    assert found == pytest.approx([np.mean(finals[:3]), np.mean(finals[3:])], rel=1e-4)
    assert curve == pytest.approx(np.mean(curves, 0).tolist(), rel=1e-4)


def test_the_best_of_all_rates_is_used(monkeypatch):
    monkeypatch.setattr(meta, "FINE", (1e-4, 0.01, 0.02, 10.0))
    case = Case(lambda: quadratics(3, 20), "quadratics", 16, True)
    row = measure("x", case, "momentum 0.9", range(2))
    problem = case.problem()

    def tuned(lr):
        return np.mean([hand_made("momentum 0.9", lr, problem, [s], 16).finals for s in meta.TUNING])

    assert row["lr"] == min(meta.FINE, key=tuned)
    assert not row["edge"]
    assert len(row["finals"]) == 2
    assert len(row["curve"]) == 20


def test_a_rate_that_explodes_is_infinitely_bad():
    assert hand_made("momentum 0.9", 1e4, quadratics(3, 60), [0, 1], 2).finals == [math.inf, math.inf]


def test_the_end_is_measured_on_many_examples():
    x, y = digit_images(8)
    problem = classifier("digits", x.repeat(3, 1), y.repeat(3), horizon=2)
    found, _ = hand_made("Adam", 0.0, problem, [0, 1], 1)
    _, params, _ = drawn(problem, [0, 1], 1)
    expected = [problem.loss({k: p[i] for k, p in params.items()}, {}, torch.arange(4096)) for i in range(2)]
    assert found == pytest.approx([float(x) for x in expected], rel=1e-5)


def row(method, lr, finals):
    return {"case": "quadratics", "method": method, "lr": lr, "edge": False, "finals": finals, "curve": []}


def test_verdicts_are_those_of_paired_intervals():
    noise = np.random.default_rng(0).normal(size=10)
    tuned = row("Adam", 0.1, (5 + noise).tolist())
    rows = [tuned, row("momentum 0.9", 0.1, (6 + noise).tolist())]
    rows += [row("meta-lstm", None, (4.9 + noise + 0.01 * noise[::-1]).tolist()), row("meta-mlp", None, [5.5] * 10)]
    lines = table(rows).splitlines()
    assert "best tuned" in lines[2]
    assert lines[4].endswith("better |")  # by far less than seeds differ
    assert lines[5].endswith("not told apart |")
    rows[-1] = row("meta-mlp", None, [math.inf, *[1.0] * 9])
    assert "1 of 10 diverged" in table(rows)


def test_two_cases_are_those_of_the_paper():
    assert [name for name, case in CASES.items() if case.main] == ["quadratics", "MLP on MNIST"]
