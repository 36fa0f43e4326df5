"""Estimators of meta-gradients against derivatives of a loop written out by hand; resume of meta-training."""

from __future__ import annotations

import math

import pytest
import torch
from support.meta import STEPS, THETA, HeavyBall, drawn, problem
from torch import nn

from optforge.learned.meta.models import LSTMRule, MLPRule, flatten, unflatten
from optforge.learned.meta.tasks import classifier, quadratics
from optforge.learned.meta.trainer import MetaTrainer, evaluate
from optforge.learned.meta.training import Backpropagation, begin, unroll


def by_hand(theta, starts, steps, curvature, root=False, late=0.0, before=0):
    """Mean objective of `steps` steps after `before` of each worker, by a loop over workers and steps."""
    instances, params = starts
    found = []
    for w, y, x in zip(instances["w"], instances["y"], params["x"], strict=True):
        m = torch.zeros_like(x)
        total = torch.zeros((), dtype=torch.float64)
        for number in range(before + steps):
            if number == before:
                x, m = x.detach(), m.detach()
            r = w @ x - y
            value = r.square().sum()
            g = 2 * w.T @ r
            g = g.detach() + curvature * (g - g.detach())
            if number >= before:
                measured = (value + 0.001) ** 0.5 if root else value
                total = total + measured * (1 + late) * ((number + 1) / STEPS) ** late
            m = theta[1] * m + g
            x = x - theta[0] * m
        found.append(total / steps)
    return torch.stack(found)


def segments(estimator, theta, count, lengths, generator):
    """Estimates of successive segments with θ as it is."""
    instances, params = drawn(count)
    carried, done, found = estimator.begin(HeavyBall(), theta, params), 0, []
    for length in lengths:
        batches = torch.zeros(count, length, 0)
        estimate, carried = estimator.segment(
            HeavyBall(), problem(), theta, carried, instances, batches, done, generator
        )
        found.append(estimate)
        done += length
    return found


@pytest.mark.parametrize(("root", "late"), [(False, 0.0), (True, 2.0)])
@pytest.mark.parametrize("curvature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [math.inf, 1e-3])
def test_backpropagation_is_the_derivative_of_the_loop(curvature, root, late, clip):
    instances, params = drawn(2)
    estimator = Backpropagation(5, curvature, clip)
    carried = estimator.begin(HeavyBall(), THETA, params)
    generator = torch.Generator()
    for done in (0, 5):
        estimate, carried = estimator.segment(
            HeavyBall(), problem(root, late), THETA, carried, instances, torch.zeros(2, 5, 0), done, generator
        )
        theta = THETA.clone().requires_grad_()
        values = by_hand(theta, (instances, params), 5, curvature, root, late, before=done)
        each = [torch.autograd.grad(value, theta, retain_graph=True)[0] for value in values]
        expected = torch.stack([x * min(1.0, clip / x.norm().item()) for x in each]).mean(0)
        torch.testing.assert_close(estimate.gradient, expected, rtol=1e-8, atol=0)


def test_less_curvature_leaves_something_out():
    exact, short = (
        segments(Backpropagation(None, c), THETA, 2, [STEPS], torch.Generator())[0].gradient for c in (1.0, 0.0)
    )
    assert not torch.allclose(exact, short, rtol=0.05)


@pytest.mark.parametrize("rule", [LSTMRule(), MLPRule()])
def test_workers_are_trained_as_if_alone(rule):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.rand(40, 6, generator=generator), torch.randint(3, (40,), generator=generator)
    task = classifier("toy", x, y, (4,), horizon=5, workers=3, batch_size=8)
    theta = flatten(rule.initial(generator), rule)
    losses = evaluate(rule, task, theta, 7, 3)
    again = torch.Generator().manual_seed(7)
    instances, params = task.draw(again, 3)
    batches = task.batches(again, 3, 6)
    for k in range(3):
        own = begin(rule, {n: p[k : k + 1] for n, p in params.items()})
        carry = type(own)(
            {n: p[0] for n, p in own.params.items()},
            {n: {m: s[0] for m, s in d.items()} for n, d in own.states.items()},
        )
        _, alone, _ = unroll(rule, task, theta, carry, instances, batches[k])
        torch.testing.assert_close(losses[k], alone, rtol=1e-5, atol=1e-6)


def test_a_classifier_starts_as_torch_does_and_has_its_loss():
    x, y = torch.rand(30, 5), torch.randint(4, (30,))
    y[0] = 3
    task = classifier("toy", x, y, (7, 6), "relu", batch_size=9)
    generator = torch.Generator().manual_seed(0)
    _, params = task.draw(generator, 2)
    batch = task.batches(generator, 2, 1)[0, 0]
    net = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4))
    for k, layer in enumerate((net[0], net[2], net[4])):
        for part, p in (("weight", layer.weight), ("bias", layer.bias)):
            assert params[f"{k}.{part}"].abs().max() <= 1 / layer.in_features**0.5
            with torch.no_grad():
                p.copy_(params[f"{k}.{part}"][1])
    found = task.loss({n: p[1] for n, p in params.items()}, {}, batch)
    torch.testing.assert_close(found, nn.functional.cross_entropy(net(x[batch]), y[batch]))


def trainer(steps=8):
    rule = MLPRule(hidden=6)
    return MetaTrainer(rule, [quadratics(3, 10, 4), quadratics(2, 10, 4)], Backpropagation(5), steps, seed=5)


def test_meta_training_goes_on_exactly_from_any_run():
    whole, first = trainer(), trainer()
    for _ in range(4):
        whole.run()
        whole.validate()
    for _ in range(2):
        first.run()
        first.validate()
    second = trainer()
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.run()
        second.validate()
    assert torch.equal(whole.theta, second.theta)
    assert torch.equal(whole.best_theta, second.best_theta)
    assert (whole.done, whole.best) == (second.done, second.best)


def test_meta_training_lowers_the_loss():
    rule = LSTMRule(hidden=6)
    found = MetaTrainer(rule, [quadratics(2, 20, 32)], Backpropagation(10), 60, lr=0.01)
    before = evaluate(rule, found.problems[0], found.theta, 99, 64)[:, -1].mean()
    while found.done < 60:
        found.run()
    after = evaluate(rule, found.problems[0], found.theta, 99, 64)[:, -1].mean()
    assert after < 0.7 * before


def test_weights_survive_being_flattened():
    rule = LSTMRule()
    weights = rule.initial(torch.Generator().manual_seed(0))
    back = unflatten(flatten(weights, rule), rule)
    assert all(torch.equal(weights[k], back[k]) for k in weights)
