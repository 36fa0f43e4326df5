"""Imitation of a rule: gradients against a loop written out by hand, and rules that come to make another's steps."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.meta import STEPS, THETA, HeavyBall, drawn, problem

from optforge.learned.meta.imitation import TINY, Imitation
from optforge.learned.meta.tasks import quadratics
from optforge.learned.meta.trainer import MetaTrainer

TAUGHT = {"a": torch.tensor([0.03], dtype=torch.float64), "b": torch.tensor([0.4], dtype=torch.float64)}
SINGLE = {name: w.float() for name, w in TAUGHT.items()}


def by_hand(theta, own, chosen):
    """The mean over workers and steps of the relative error at the `chosen` coordinates."""
    instances, params = drawn(2)
    found = []
    for w, y, x in zip(instances["w"], instances["y"], params["x"], strict=True):
        led, told, made = (torch.zeros_like(x) for _ in range(3))
        for _ in range(STEPS):
            g = 2 * w.T @ (w @ x - y)
            led, told, made = (
                b * m + g for b, m in ((THETA[1], led), (TAUGHT["b"], told), (theta[1], made))
            )  # the leader, if that is the rule itself, has no derivative
            u, target = (theta[0] * made)[chosen], (TAUGHT["a"] * told)[chosen]
            found.append((u - target).square().sum() / (target.square().sum() + TINY))
            x = x - (THETA[0] * led if own else TAUGHT["a"] * told)
    return torch.stack(found).mean()


def estimates(imitation, repeats):
    instances, params = drawn(2)
    generator, batches = torch.Generator().manual_seed(0), torch.zeros(2, STEPS, 0)
    carried, found = imitation.begin(HeavyBall(), THETA, params), []
    for _ in range(repeats):
        estimate, carried = imitation.segment(HeavyBall(), problem(), THETA, carried, instances, batches, 0, generator)
        found.append(estimate.gradient)
    return found


def expected(own, chosen):
    theta = THETA.clone().requires_grad_()
    return torch.autograd.grad(by_hand(theta, own, chosen), theta)[0]


@pytest.mark.parametrize("own", [False, True])
def test_gradients_are_those_of_the_loop(own):
    for found in estimates(Imitation(HeavyBall(), TAUGHT, own=float(own)), 2):
        torch.testing.assert_close(found, expected(own, [0, 1, 2]), rtol=1e-8, atol=0)


def test_each_estimate_looks_at_coordinates_of_its_own():
    pairs = [expected(False, list(chosen)) for chosen in itertools.combinations(range(3), 2)]
    found = estimates(Imitation(HeavyBall(), TAUGHT, coordinates=2, own=0.0), 12)
    seen = [[torch.allclose(gradient, pair, rtol=1e-8, atol=0) for pair in pairs].index(True) for gradient in found]
    assert set(seen) == {0, 1, 2}


@pytest.mark.parametrize("own", [0.0, 0.5])
def test_a_rule_comes_to_make_the_steps_of_another_of_its_kind(own):
    trainer = MetaTrainer(
        HeavyBall(), [problem()], Imitation(HeavyBall(), SINGLE, own=own), 160, lr=0.02, start=THETA.float()
    )  # fmt: skip
    while trainer.done < 160:
        trainer.run()
    assert trainer.runs == 20 and trainer.done == 160
    torch.testing.assert_close(trainer.theta, torch.tensor([0.03, 0.4]), rtol=0.02, atol=0)


def test_imitation_goes_on_exactly_between_training_runs():
    def trainer():
        return MetaTrainer(HeavyBall(), [problem()], Imitation(HeavyBall(), SINGLE, 2), 64, start=THETA.float())

    whole, first, second = trainer(), trainer(), trainer()
    for _ in range(6):
        whole.run()
    for _ in range(3):
        first.run()
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        second.run()
    assert torch.equal(second.theta, whole.theta) and not torch.equal(second.theta, first.theta)


def test_a_teacher_that_diverges_moves_nothing_that_is_not_finite():
    teacher = {"a": torch.tensor([1e30]), "b": torch.tensor([0.5])}
    trainer = MetaTrainer(
        HeavyBall(), [quadratics(3, 10, 2)], Imitation(HeavyBall(), teacher, own=0.0), 8, start=THETA.float()
    )
    assert trainer.run().skipped == 1
    assert torch.equal(trainer.theta, THETA.float())
