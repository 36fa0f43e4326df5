"""What losses that are told change: the trial of a rate that was set aside, and the way back of one that was lifted."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Container
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.learned import Classes
from torch import nn

from optforge.baselines import BASELINES
from optforge.experiments.tasks import get_task
from optforge.experiments.training.train import train
from optforge.learned import LearnedOptimizer, following, guarded_optimizer, learn, measured, spikes
from optforge.learned.losses import OVER, PASSED, PATIENCE, WAITING, WINDOW, Losses, heard, set_aside, tried, trusted
from optforge.learned.reasons import Moves
from optforge.learned.rules import CAP, RULES
from optforge.primitives import ProgramOptimizer

ADAMW, SGD = BASELINES["adamw"].program, BASELINES["sgd"].program


class Scripted:
    """A matrix that stays where it is, gradients that are noise, or agree, and losses that a test makes up."""

    def __init__(self, lr: float, agree: bool = False, maximize: bool = False, size: float = 1.0) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.p, self.size = nn.Parameter(torch.full((64, 64), size)), size
        self.sign, self.agree = -1.0 if maximize else 1.0, agree
        self.optimizer = learn([self.p], ADAMW, lr, maximize=maximize)
        self.moves = Moves(self.optimizer)

    def step(self, loss: float) -> float:
        """One step that is told a loss; the rate afterwards."""
        self.p.grad = torch.ones(64, 64) if self.agree else torch.randn(64, 64, generator=self.generator)
        self.optimizer.step(lambda: self.sign * loss)
        self.moved = (self.p.detach() - self.size).abs().max().item()
        self.p.data.fill_(self.size)
        return self.optimizer.learned_values()["lr"]

    def steps(self, losses: list[float]) -> list[float]:
        """As many as there are losses."""
        return [self.step(loss) for loss in losses]

    def state(self, name: str) -> float:
        """A number of what is kept."""
        learning = self.optimizer.param_groups[0]["learning"]
        return float(learning[name] if name in learning else learning["losses"][Losses._fields.index(name)])


def falling(count: int, start: float = 4.0, by: float = 0.01) -> list[float]:
    return [start - by * i for i in range(count)]


def on_trial(maximize: bool = False, start: float = 4.0, jump: float = 0.0) -> Scripted:
    """A rate that was set aside at first, as a step with it changes more than a quarter of weights; now on trial."""
    run = Scripted(0.2, maximize=maximize, size=0.7)
    rates = run.steps([loss + jump * (i > 15) for i, loss in enumerate(falling(WINDOW - 1, start))])
    start += jump
    assert max(rates) < 0.02 and (run.state("phase"), run.state("since")) == (WAITING, WINDOW - 2)
    run.p.data.fill_(1.0)
    run.size = 1.0  # the weights have grown meanwhile
    assert run.step(start - 0.24) < 0.02
    assert run.step(start - 0.25) == pytest.approx(0.2) and run.moved > 0.02  # in that very step
    return run


def test_a_rate_on_trial_by_which_losses_fall_is_kept():
    run = on_trial()
    assert run.steps(falling(200, 3.7, 0.02)) == [pytest.approx(0.2)] * 200
    assert run.state("phase") == PASSED


def test_a_rate_on_trial_by_which_losses_rise_is_forgotten_at_once():
    run = on_trial()
    assert run.step(6.0) == pytest.approx(0.2)  # one may be an outlier
    rates = [run.step(6.0)]
    assert run.moved < 0.02 and run.state("given") == 0  # before that step
    rates += run.steps([6.0] * 4)
    assert rates[0] == pytest.approx(CAP / run.state("large"), rel=0.1) and max(rates) < 0.02
    assert max(run.steps(falling(3 * WINDOW))) < 0.02 and run.state("phase") == OVER  # there is no second one


@pytest.mark.parametrize(("by", "kept"), [(0.0, False), (0.003, False), (0.008, True), (0.02, True)])
def test_a_rate_on_trial_is_kept_if_losses_fall_at_least_half_as_far_as_without_it(by, kept):
    """By 0.01 in each of the steps before, of which the average shows about 16, or 0.09 for its half."""
    run = on_trial()
    average = run.state("loss")
    rates = run.steps([average - by * i + 0.03 * (-1) ** i for i in range(WINDOW)])
    assert rates[:-1] == [pytest.approx(0.2)] * (WINDOW - 1) and (rates[-1] > 0.02) == kept


def test_losses_that_rose_before_a_trial_say_nothing_about_it():
    run = on_trial(jump=20.0)
    assert run.steps(falling(60, 23.7, 0.02)) == [pytest.approx(0.2)] * 60


def test_one_loss_that_is_far_larger_does_not_decide_a_trial():
    run = on_trial()
    losses = falling(60, 3.7, 0.02)
    losses[10] = 1e30
    assert run.steps(losses) == [pytest.approx(0.2)] * 60


def test_a_rate_by_which_losses_have_fallen_is_forgotten_once_they_stop_to():
    run = on_trial()
    run.steps(falling(100, 3.7, 0.02))
    run.agree = True  # steps of noise would change no more than 5 %
    rates = run.steps([1.9, 1.8] * 75)
    assert rates[20] == pytest.approx(0.2) and max(rates[-20:]) < 0.05
    rates += run.steps(falling(100, 1.9))
    assert all(b < 2 * a for a, b in pairwise(rates))  # there is no second trial


def test_losses_that_are_no_longer_told_end_the_trust_of_a_trial():
    run = on_trial()
    run.steps(falling(50, 3.7, 0.02))
    rates = []
    for _ in range(PATIENCE):
        run.p.grad = torch.randn(64, 64, generator=run.generator)
        run.optimizer.step()
        rates.append(run.optimizer.learned_values()["lr"])
    assert rates[-2] == pytest.approx(0.2) and rates[-1] < 0.05


def test_a_rate_that_changes_too_much_gets_no_trial():
    run = Scripted(2.0)
    assert max(run.steps(falling(100))) < 0.02 and run.state("phase") == OVER


def test_trials_are_the_same_for_what_is_maximized():
    runs = [on_trial(maximize=maximize) for maximize in (False, True)]
    rates = [run.steps(falling(10, 3.7, 0.02) + [9.0] * 3) for run in runs]
    assert rates[0] == pytest.approx(rates[1], rel=0.01) and len(set(rates[0])) > 1


def test_losses_may_be_negative():
    run = on_trial(start=-100.0)
    assert run.steps(falling(60, -100.3, 0.02)) == [pytest.approx(0.2)] * 60
    assert max(on_trial(start=-100.0).steps([-90.0] * 3)[1:]) < 0.02


def test_a_trial_goes_on_after_a_resume():
    whole = on_trial()
    whole.steps(falling(10, 3.7, 0.02))
    part = Scripted(0.2)
    part.p.data.copy_(whole.p.data)
    part.optimizer.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    part.generator.set_state(whole.generator.get_state())
    rest = [*falling(30, 3.5, 0.02), *[5.0] * 4]
    assert whole.steps(rest) == part.steps(rest) and torch.equal(whole.p, part.p)


def test_each_move_of_a_trial_has_its_reason():
    run = Scripted(0.2, size=0.7)
    run.step(4.0)
    (aside,) = run.moves.take()
    assert aside.startswith("lr lowered from 0.2 to 0.007: this is the cap, at which")
    run.steps(falling(WINDOW - 2, 3.99))
    run.p.data.fill_(1.0)
    run.size = 1.0
    run.steps([3.76, 3.75])
    assert run.moves.take() == ["lr raised from 0.007 to 0.2: losses are told, so that the given rate gets a trial"]
    run.steps([9.0] * 3)
    (failed,) = run.moves.take()
    assert failed.endswith(": losses have risen with the rate that was given")
    run = on_trial()
    run.moves.take()
    run.steps([run.state("loss") + 0.03 * (-1) ** i for i in range(WINDOW)])
    (failed,) = run.moves.take()
    assert failed.endswith(": losses have hardly fallen with the rate that was given")
    kept = on_trial()
    kept.moves.take()
    kept.steps(falling(60, 3.7, 0.02))
    kept.moves.noted["lr"] = 0.01
    assert kept.moves.take() == ["lr raised from 0.01 to 0.2: losses fell well with it"]
    kept.agree = True  # steps of noise would change no more than 5 %
    kept.steps([2.6, 2.5] * 60)
    (stalled,) = kept.moves.take()
    assert stalled.endswith(": losses have not fallen for 50 steps with the rate that was given")
    kept.optimizer.param_groups[0]["learning"] |= {"log": torch.tensor(-9.0)}
    (later,) = kept.moves.take()
    assert "losses" not in later  # that reason is told once


def lifted() -> Scripted:
    """A rate that gradients have lifted a hundredfold, and losses that fell with a little noise."""
    run = Scripted(1e-5, agree=True)
    noise = torch.rand(60, generator=torch.Generator().manual_seed(1)).tolist()
    run.steps([loss + 0.1 * (x - 0.5) for loss, x in zip(falling(60), noise, strict=True)])
    assert run.state("rises") == 0 and run.optimizer.learned_values()["lr"] > 1e-3
    run.moves.take()
    return run


def test_a_lifted_rate_by_which_losses_rise_is_halved_for_each_rise_and_is_never_below_the_given_one():
    run, rates = lifted(), []
    for factor in range(60):
        run.agree = False
        rates.append(run.step(3.5 + 2.0 * 1.2**factor))
    first = next(i for i, rate in enumerate(rates) if rate < 0.6 * rates[0])
    assert first < 15 and run.state("rises") >= 5
    run.steps([3.5 + 2.0 * 1.2**60 * 2.0**factor for factor in range(30)])
    assert min(rates) > run.optimizer.learned_values()["lr"] == pytest.approx(1e-5, rel=1e-6)
    assert run.moves.take()[-1].endswith(": losses have risen, so that it goes back towards the rate that was given")


def test_other_hyperparameters_go_half_the_way_back_as_losses_rise():
    run = Scripted(1e-3)
    run.optimizer = learn([run.p], ADAMW, 10.0, what=("lr", "beta1", "weight_decay"), hyper_lr=1e-12)
    run.optimizer.param_groups[0] |= {"beta1": 0.99, "weight_decay": 0.04}
    moves = Moves(run.optimizer)
    start = run.optimizer.param_groups[0]["learning"]["start"]
    assert start == {"beta1": 0.9, "weight_decay": 0.01}
    run.p.grad = torch.ones(64, 64)
    for loss in [*[1.0, 1.1] * 15, *[2.0] * 12]:
        run.optimizer.step(lambda loss=loss: loss)
    assert run.state("rises") == pytest.approx(1.0, rel=0.01)
    assert run.optimizer.learned_values() == {
        "lr": pytest.approx(CAP / run.state("large"), rel=0.1),  # the cap, which is below the given rate, and stays
        "beta1": pytest.approx(1 - math.sqrt(0.1 * 0.01)), "weight_decay": pytest.approx(0.02)
    }  # fmt: skip
    reasons = dict(zip(run.optimizer.what, moves.take(), strict=True))
    assert "this is the cap" in reasons["lr"]  # it was not above the given one
    assert all(
        reasons[name].endswith(": losses have risen, so that it goes back towards where it began")
        for name in ("beta1", "weight_decay")
    )


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"two-sided", "polyak"}))
def test_the_plain_rules_do_not_listen(rule):
    """They are as the literature has them."""
    rates = []
    for told in (False, True):
        p = nn.Parameter(torch.ones(8, 8))
        optimizer = learn([p], ADAMW, 1e-5, rule=rule)
        for step in range(60):
            p.grad = torch.ones(8, 8)
            optimizer.step((lambda step=step: 4.0 - 0.1 * step if step < 30 else 2.0**step) if told else None)
        rates.append(optimizer.learned_values()["lr"])
    assert rates[0] == rates[1] > 1e-5


def test_a_single_loss_that_is_far_larger_is_no_rise():
    run = lifted()
    before = run.optimizer.learned_values()["lr"]
    run.agree = False
    run.steps([1e6, *[3.4] * 20])
    assert run.state("rises") == 0 and run.optimizer.learned_values()["lr"] >= 0.9 * before


def test_losses_that_rise_with_the_given_rate_change_nothing():
    run = Scripted(1e-3, size=10.0)
    rates = run.steps([*falling(40), *(4.0 * 1.1**i for i in range(40))])
    assert rates == [pytest.approx(1e-3)] * 80 and run.state("rises") == 0


class Untold(LearnedOptimizer):
    """Does not listen."""

    def _told(self, loss: object) -> None:
        pass


@pytest.mark.parametrize("told", [False, True])
def test_gradient_descent_does_not_diverge_in_a_rest(told, monkeypatch):
    """The cap lets a rate rise to where a step grows what it should shrink: losses show it, or gradients do."""
    if told:
        monkeypatch.setattr(guarded_optimizer, "RISING", math.inf)
    make = LearnedOptimizer if told else Untold
    result = train(get_task("quadratic"), lambda params, lr: make(params, SGD, lr), 0.1, seed=101)
    assert result.train_loss < 0.01


def test_while_gradients_grow_no_step_rests():
    """So that what is learned is what steps that all measure come to."""
    kept = []
    for every in (1, 20):
        p = nn.Parameter(torch.full((8, 8), 100.0))
        optimizer = learn([p], SGD, 1e-3, every=every)
        for step in range(240):
            p.grad = torch.full_like(p, 1.0 if step < 200 else 1.2 ** (step - 200))
            p.grad[::2] *= (-1) ** step  # half of the cosine is 0
            optimizer.step()
        learning = optimizer.param_groups[0]["learning"]
        kept.append([optimizer.learned_values()["lr"], *(float(learning[name]) for name in ("large", "norm"))])
    assert kept[0] == pytest.approx(kept[1], rel=0.05)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, 1e308, -1e308, 1e99]), max_size=90),
    st.booleans(),
)
def test_numbers_and_tensors_come_to_the_same(losses, lifted):
    """On devices all of it is tensors, and nothing waits."""

    def run(number: Callable[[float], object]) -> list[float]:
        known = Losses(*(number(0.0) for _ in Losses._fields))._replace(phase=number(WAITING))
        for step, loss in enumerate(losses):
            known, risen = heard(known, number(loss), number(1.0 if lifted else 0.0) > 0, step)  # type: ignore[operator]
            known, begins, failed = tried(known, risen, number(0.1), step)
            known = set_aside(known, risen, step)
            found = [*known, risen, begins, failed, *trusted(known, step)]
        return [float(x) for x in (found if losses else known)]

    assert run(float) == pytest.approx(run(lambda x: torch.tensor(x, dtype=torch.float64)), nan_ok=True)
    assert all(map(math.isfinite, run(float)[:-1]))


@pytest.mark.parametrize(("name", "lr"), [("rmsprop", 1e-2), ("adagrad", 0.1)])
def test_a_trial_makes_up_for_most_of_what_the_cap_costs(name, lr):
    """Of rules whose first steps are the largest, as nothing corrects their averages; 25 steps are the price."""
    ends = []
    for make, told in ((ProgramOptimizer, True), (learn, False), (learn, True)):
        task = Classes()
        task.train(make(task.model.parameters(), BASELINES[name].program, lr), 150, told=told)
        ends.append(task.end())
    plain, without, told_end = ends
    assert without > 10 * plain and told_end - plain < 0.1 * (without - plain)


@pytest.mark.parametrize(
    ("spike", "untold", "most"),
    [
        *((spike, (), 1.01) for spike in (0, 1, 3, 10, 26, 30, 60)),
        *((-1, (step,), 1.5) for step in (0, 1, 10, 30)),
        (-1, range(1, 200, 3), 1.5),
        (-1, range(40), 2.0),
    ],
)
def test_neither_a_single_loss_nor_one_that_is_not_told_decides_anything(spike, untold, most):
    """Of a rate that is set aside at first, and ends at ten times the loss where it gets no trial."""
    ends = []
    for size, silent in ((1.0, ()), (1e4, untold)):
        task = Classes()
        optimizer = learn(task.model.parameters(), BASELINES["rmsprop"].program, 1e-2)

        def told(step: int, loss: float, size: float = size, silent: Container[int] = silent) -> float | None:
            return None if step in silent else loss * (size if step == spike else 1.0)

        task.train(optimizer, 200, told=told)
        ends.append(task.end())
    assert ends[1] < most * ends[0] < 0.1


@pytest.mark.parametrize("growing", [lambda step: 0.03 * step, lambda step: 5.0 * (step > 60), lambda step: 1.02**step])
def test_losses_that_rise_for_reasons_of_their_own_cost_little(growing):
    ends = []
    for share in (0.0, 1.0):
        task = Classes()
        optimizer = learn(task.model.parameters(), ADAMW, 1e-5)
        task.train(optimizer, 200, told=lambda step, loss, share=share: loss + share * growing(step))
        ends.append(task.end())
    assert ends[1] < 1.6 * ends[0]


@pytest.mark.parametrize(("name", "lr", "most"), [("momentum", 1.0, 0.2), ("lion", 0.01, 0.8), ("sgd", 3.0, 0.5)])
def test_a_rate_that_destroys_networks_is_not_kept_for_losses_that_fall_at_first(name, lr, most):
    """Without learning they end at 1e10, 2.5 and 1e10."""
    result = train(get_task("digits"), lambda params, lr: learn(params, BASELINES[name].program, lr), lr, seed=100)
    assert result.valid_loss < most


@pytest.mark.parametrize(
    ("losses", "most"),
    [
        (lambda noise: noise, 0),
        (lambda noise: [x.exp() for x in noise], 1),
        (lambda noise: [0.0] * 40 + noise, 2),
        (lambda noise: [round(2 * float(x)) for x in noise], 0),
        (lambda noise: [5.0, *noise[1:]], 0),
        (lambda noise: [(10 + x) / (1 + i) ** 0.5 for i, x in enumerate(noise)], 0),
        (lambda noise: [i % 3 + 0.01 * x for i, x in enumerate(noise)], 2),
        (lambda noise: [3.0] * len(noise), 0),
    ],
)
def test_noise_is_no_rise(losses, most):
    generator = torch.Generator().manual_seed(0)
    counts = []
    for _ in range(5):
        known, count = Losses(*[0.0] * len(Losses._fields)), 0
        for step, loss in enumerate(losses(list(torch.randn(1000, generator=generator)))):
            known, risen = heard(known, float(loss), True, step)
            count += risen
        counts.append(count)
    assert sum(counts) <= most * len(counts)


def test_a_rise_is_seen_soon_and_counts_once_and_is_forgotten_slowly():
    noise = torch.randn(3000, generator=torch.Generator().manual_seed(0)).tolist()
    known, rises = Losses(*[0.0] * len(Losses._fields)), []
    for step, loss in enumerate(noise):
        known, risen = heard(known, loss + (6.0 if step >= 300 else 0.0), True, step)
        rises += [step] if risen else []
        assert step != 1300 or known.rises == pytest.approx(math.exp(-1), rel=0.05)
    assert len(rises) == 1 and 300 < rises[0] < 312


@pytest.mark.parametrize("per", ["global", "tensor"])
def test_on_devices_where_nothing_waits_trials_and_rises_are_the_same(per, monkeypatch):
    """There all numbers are tensors, whatever a closure returns."""

    def run(name: str, lr: float) -> list[float]:
        task, rates = Classes(), []
        optimizer = learn(task.model.parameters(), BASELINES[name].program, lr, per=per)

        def told(step: int, loss: float) -> float:
            rates.append(optimizer.learned_values()["lr"])
            return loss + (5.0 if step > 60 else 0.0)

        task.train(optimizer, 90, told=told)
        return [*rates, optimizer.learned_values()["lr"], task.end()]

    cases = [("rmsprop", 1e-2), ("momentum", 1e-4), ("sgd", 3.0)]
    floats = [run(*case) for case in cases]
    for module in (guarded_optimizer, following, spikes, measured):
        monkeypatch.setattr(module, "near", lambda x, device: x)
    for case, expected in zip(cases, floats, strict=True):
        assert run(*case) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "kind", [np.array, lambda x: np.array([x]), np.float32, torch.tensor, lambda x: torch.tensor([[x]])]
)
def test_one_number_in_any_form_is_heard(kind):
    run = Scripted(1e-3)
    run.p.grad = torch.ones(64, 64)
    run.optimizer.step(lambda: kind(0.5))
    assert (run.state("told"), run.state("last")) == (1.0, 0.5)
