"""What guards a learned rate: the cap where some gradients are 0, spikes anywhere, and losses that are told."""

from __future__ import annotations

import math

import pytest
import torch
from support.learned import PROGRAMS, Classes, Problem
from torch import nn

from optforge.baselines import BASELINES
from optforge.learned import learn
from optforge.learned.reasons import Moves
from optforge.learned.rules import Seen, named_rule
from optforge.primitives import ProgramError, ProgramOptimizer


@pytest.mark.parametrize("name", ["adamw", "lion", "momentum"])
@pytest.mark.parametrize("lr", [1.0, 10.0])
def test_behind_zeros_the_first_step_is_bounded_all_the_same(name, lr):
    """A head of zeros, behind which no other gradient is anything but 0 in the first step."""
    task = Classes(depth=3)
    nn.init.zeros_(task.model[-1].weight)
    nn.init.zeros_(task.model[-1].bias)
    losses = task.train(learn(task.model.parameters(), PROGRAMS[name], lr), 120)
    assert max(losses) < 1.5 * math.log(3) and task.end() < 0.5


@pytest.mark.parametrize("name", ["adamw", "momentum", "sgd"])
@pytest.mark.parametrize("spike", [0, 1, 50])
@pytest.mark.parametrize("size", [1e4, 1e24])
def test_a_spike_leaves_the_run_unaffected_whenever_it_is(name, spike, size):
    """Also one whose norm, though no element, is infinite in float32."""
    ends, rates = [], []
    for at in (-1, spike):
        task = Classes()
        optimizer = learn(task.model.parameters(), PROGRAMS[name], 1e-2)
        task.train(optimizer, 150, at, size=size)
        ends.append(task.end())
        rates.append(optimizer.learned_values()["lr"])
    assert ends[1] < 1.15 * ends[0] and rates[1] == pytest.approx(rates[0], rel=0.3)


def test_a_spike_in_any_tensor_is_seen():
    """Of twenty, in one: weights and biases alike."""
    ends = []
    for where in (None, *range(20)):
        task = Classes(depth=9)
        assert len(list(task.model.parameters())) == 20
        optimizer = learn(task.model.parameters(), PROGRAMS["momentum"], 1e-2)
        task.train(optimizer, 12, -1 if where is None else 10, where)
        ends.append(task.end())
    assert max(ends[1:]) < 1.1 * ends[0]


def test_a_spike_is_scaled_to_the_usual_size_and_larger_gradients_become_usual():
    p = nn.Parameter(torch.zeros(4))
    optimizer = learn([p], PROGRAMS["sgd"], 1e-3)
    moves = []
    for step in range(30):
        p.grad = torch.full((4,), 1.0 if step < 10 else 100.0)
        before = p.detach().clone()
        optimizer.step()
        moves.append((p.detach() - before).norm().item() / optimizer.param_groups[0]["log_factor"].exp().item())
    assert moves[10] == pytest.approx(moves[9], rel=1e-3) and moves[-1] == pytest.approx(100 * moves[9], rel=1e-3)


@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_the_order_of_groups_does_not_matter(name):
    rates = []
    for order in (1, -1):
        problem = Problem()
        groups = [{"params": part.parameters()} for part in (problem.model[0], problem.model[2])]
        optimizer = learn(groups[::order], PROGRAMS[name], 1e-5, per="group")
        for step in range(80):
            problem.step(optimizer, step % 40)
        rates.append([float(group["learning"]["log"]) for group in optimizer.param_groups][::order])
    assert rates[0] == pytest.approx(rates[1], rel=1e-6)
    assert name == "adamw" or rates[0][0] != rates[0][1]  # both of AdamW's are at the cap


def test_a_later_group_takes_over_what_was_learned_of_other_hyperparameters():
    problem = Problem()
    params = list(problem.model.parameters())
    optimizer = learn(params[:2], PROGRAMS["adamw"], 1e-3, what=("lr", "beta1"))
    for step in range(10):
        problem.step(optimizer, step)
    learned = float(optimizer.param_groups[0]["beta1"])
    optimizer.add_param_group({"params": params[2:3]})
    optimizer.add_param_group({"params": params[3:], "beta1": 0.5})
    assert learned != 0.9 and [float(g["beta1"]) for g in optimizer.param_groups] == [learned, learned, 0.5]


def test_a_plain_checkpoint_whose_schedule_was_at_zero_is_gone_on_from():
    problem = Problem()
    plain = ProgramOptimizer(problem.model.parameters(), PROGRAMS["adamw"], 1e-3)
    problem.step(plain, 0)
    plain.param_groups[0]["lr"] = 0.0
    optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], 1e-3)
    optimizer.load_state_dict(plain.state_dict())
    problem.step(optimizer, 1)
    optimizer.param_groups[0]["lr"] = 1e-3
    problem.step(optimizer, 2)
    assert optimizer.learned_values()["lr"] == pytest.approx(1e-3, rel=0.5)


@pytest.mark.parametrize("name", ["momentum", "sgd"])
def test_after_a_rest_a_parameter_that_was_not_measured_does_not_count(name, monkeypatch):
    """Its gradients come every other step, and grow: sums of two different steps would make cosines beyond 1."""
    monkeypatch.setattr("optforge.learned.following._BEGINNING", 4)
    p, q = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = learn([p, q], PROGRAMS[name], 1e-3, rule="multiplicative", hyper_lr=1.0, every=10)
    for step in range(40):
        before = optimizer.learned_values()["lr"]
        p.grad = torch.ones(3) * 1.3**step if step % 2 else None
        q.grad = torch.tensor([1.0, 0.0, 0.0]) if step % 3 else torch.tensor([0.0, 1.0, 0.0])
        optimizer.step()
        change = math.log(optimizer.learned_values()["lr"] / before)
        assert abs(change) <= 1 + 1e-9
        if step in (19, 29, 39):  # what moves the rate is `q` alone
            expected = -(q.grad @ last_update(name, q, step)).item()
            assert float(optimizer.hypergradient) == pytest.approx(expected, rel=1e-5)


def last_update(name: str, q: nn.Parameter, step: int) -> torch.Tensor:
    """Of `q`, from the gradients of the test above."""
    gradients = [torch.tensor([1.0, 0, 0]) if t % 3 else torch.tensor([0, 1.0, 0]) for t in range(step)]
    update = torch.zeros(3)
    for g in gradients:
        update = (0.9 * update if name == "momentum" else 0.0) + g
    return update


@pytest.mark.parametrize(("told", "trusted"), [(False, False), (True, True)])
def test_a_given_rate_is_trusted_further_while_the_loss_is_known_to_fall(told, trusted):
    """A fifth of the weights' size a step, at first."""
    task = Classes()
    optimizer = learn(task.model.parameters(), PROGRAMS["adamw"], 0.04)
    task.train(optimizer, 60, told=told)
    assert (optimizer.learned_values()["lr"] > 0.02) is trusted


@pytest.mark.parametrize("compiled", [False, True])
def test_the_rule_of_polyak_on_a_parabola(compiled):
    """(f - 0) / (g·g) of f = x²/2 is a half, whatever the rate is at first; one far too large costs its first step."""
    for lr in (1e-3, 100.0):
        p = nn.Parameter(torch.ones(5, dtype=torch.float64))
        optimizer = learn([p], PROGRAMS["sgd"], lr, rule="polyak", compile=compiled)
        for _ in range(60):
            p.grad = p.detach().clone()
            optimizer.step(lambda p=p: p.detach().square().sum() / 2)
        assert p.detach().norm() < 1e-3 and optimizer.learned_values()["lr"] < 20


def test_the_rule_of_polyak_by_hand():
    """The lift is bounded by (f - f*) / (g·u), and f* moves half the way to the lowest loss after 100 steps."""
    rule = named_rule("polyak")
    memory = rule.init()
    seen = Seen(*map(number, (0.9, 1.0, 1.0, 0.01, 2.0, 0.024, 0.02)))
    for step in range(1, 101):
        change, memory = rule.step(memory, seen, 0.3)
        assert change.item() == pytest.approx(math.log(0.024 / 2.0 / 0.01))
        assert memory["floor"].item() == (pytest.approx(0.01) if step == 100 else 0.0)
    change, _ = rule.step(memory, seen, 0.3)
    assert change.item() == pytest.approx(math.log(0.014 / 2.0 / 0.01))
    free, _ = rule.step(memory, seen._replace(gu=number(-1.0)), 0.3)  # uphill, nothing is known
    assert free.item() == pytest.approx(0.3 * 0.9)


def test_the_rule_of_polyak_asks_for_losses():
    p = nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    with pytest.raises(ProgramError, match=r"needs the loss: call optimizer.step\(closure\)"):
        learn([p], PROGRAMS["sgd"], 0.1, rule="polyak").step()
    assert torch.equal(p.detach(), torch.ones(2))


def number(x: float) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64)


def test_processes_with_losses_of_their_own_come_to_the_same_rates(monkeypatch):
    """What one of two hears must not move its rates, as the other hears something else."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    rates = []
    for unit in (1.0, -1.0):
        task = Classes()
        optimizer = learn(task.model.parameters(), PROGRAMS["adamw"], 0.04)
        for step in range(70):
            optimizer.zero_grad()
            task.loss().backward()
            optimizer.step(lambda step=step, unit=unit: unit * step)
        rates.append(optimizer.learned_values()["lr"])
    assert rates[0] == rates[1]


def test_a_plain_checkpoint_is_not_begun_anew_by_a_spike():
    p = nn.Parameter(torch.ones(8, 8))
    plain = ProgramOptimizer([p], PROGRAMS["adamw"], 1e-3)
    for _ in range(5):
        p.grad = torch.ones(8, 8)
        plain.step()
    optimizer = learn([p], PROGRAMS["adamw"], 1e-3)
    optimizer.load_state_dict(plain.state_dict())
    for size in (1e3, 1.0, 1.0):
        p.grad = torch.full((8, 8), size)
        optimizer.step()
    assert optimizer.state[p]["step"] == 8


def test_gradients_that_are_elsewhere_in_the_second_step_are_no_spike():
    """Rows of an embedding, of which the first batch has one that is looked at."""
    p = nn.Parameter(torch.ones(100, 16))
    optimizer = learn([p], PROGRAMS["adamw"], 1e-3)
    for row in (0, 7, 8):
        p.grad = torch.full((100, 16), 1e-6)
        p.grad[row] = 1.0
        optimizer.step()
    assert optimizer.state[p]["step"] == 3


@pytest.mark.parametrize("spike", [1.0, 1e4])
def test_after_a_spike_in_the_first_step_what_losses_told_still_counts(spike):
    p = nn.Parameter(torch.full((16, 16), 0.25))
    optimizer = learn([p], PROGRAMS["adamw"], 0.04)
    generator = torch.Generator().manual_seed(0)
    for step in range(30):
        p.grad = torch.randn(16, 16, generator=generator) * (spike if step == 0 else 1.0)
        optimizer.step(lambda step=step: 2.0 - 0.01 * step)
    assert optimizer.learned_values()["lr"] == pytest.approx(0.04)


@pytest.mark.parametrize("told", [False, True])
def test_after_a_spike_in_the_first_step_nothing_is_on_trial(told):
    """The given rate, which that step made seem far too large, is in use again, and the reason is true."""
    rates = []
    for spike in (-1, 0):
        task = Classes()
        optimizer = learn(task.model.parameters(), PROGRAMS["sgd"], 1e-2)
        moves = Moves(optimizer)
        task.train(optimizer, 1, spike, told=told)
        assert len(moves.take()) == (spike == 0)
        task.train(optimizer, 1, told=told)
        assert [": the first gradients were" in sentence for sentence in moves.take()] == [True] * (spike == 0)
        task.train(optimizer, 40, told=told)
        rates.append(optimizer.learned_values()["lr"])
    assert rates[1] == pytest.approx(rates[0], rel=0.3) and rates[0] > 0.05


@pytest.mark.parametrize("compiled", [False, True])
def test_a_first_gradient_whose_square_overflows_is_a_spike_too(compiled):
    """Its square would stay in the second average of AdamW for ever, and nothing would move again."""
    ended = []
    for size in (1e4, 1e25):
        p = nn.Parameter(torch.full((16, 16), 0.25))
        optimizer = learn([p], PROGRAMS["adamw"], 1e-3, compile=compiled)
        generator = torch.Generator().manual_seed(0)
        for step in range(30):
            p.grad = torch.randn(16, 16, generator=generator) * (size if step == 0 else 1.0)
            optimizer.step()
        ended.append((p.detach().clone(), optimizer.state[p]["v"]))
    torch.testing.assert_close(ended[1], ended[0], rtol=1e-4, atol=1.01e-3)  # the first step, which moves nothing now


def test_a_later_group_begins_with_what_is_common():
    problem = Problem()
    params = list(problem.model.parameters())
    groups = [{"params": params[:1]}, {"params": params[1:2]}]
    optimizer = learn(groups, PROGRAMS["momentum"], 1e-5, per="group")
    for step in range(30):
        problem.step(optimizer, step)
    optimizer.add_param_group({"params": params[2:]})
    first, _, new = (group["learning"] for group in optimizer.param_groups)
    assert float(first["own"]) != 0 and float(new["log"]) == float(first["common"])


@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16])
def test_of_parameters_in_two_dtypes_all_steps_count(other):
    """A compiled step cannot write sums of two dtypes into one table."""
    rates = []
    for compiled in (False, True):
        params = [nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8, 8, dtype=other))]
        optimizer = learn(params, PROGRAMS["adamw"], 1e-6, compile=compiled)
        for _ in range(60):
            for p in params:
                p.grad = p.detach().clone()
            optimizer.step()
        rates.append(optimizer.learned_values()["lr"])
    assert rates[1] == pytest.approx(rates[0], rel=1e-3) and rates[1] > 1e-4


@pytest.mark.parametrize("name", ["adamw", "momentum", "sgd", "lion"])
@pytest.mark.parametrize(("between", "factor"), [(0.0, 1.5), (1e-6, 2.0)])
def test_batches_that_say_next_to_nothing_do_not_make_spikes_of_the_others(name, between, factor):
    """One gradient in 25 says where the minimum is; what is between them is 0, or next to it."""
    sizes = []
    for learned in (False, True):
        generator = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.ones(20, 20))
        optimizer = (learn if learned else ProgramOptimizer)([p], PROGRAMS[name], 1e-2)
        for step in range(1500):
            noise = torch.randn(20, 20, generator=generator)
            p.grad = p.detach() + 0.1 * noise if step % 25 == 24 else between * noise
            optimizer.step()
        sizes.append(p.detach().square().mean().item())
    assert sizes[1] < factor * sizes[0] + 0.005


@pytest.mark.parametrize(("rule", "hyper_lr"), [("additive", 1e6), ("multiplicative", 1.0), ("tower", 0.5)])
def test_a_factor_stays_where_it_can_come_back_from(rule, hyper_lr):
    """Gradients that turn against each step lower the rate to its limit, and no further."""
    p = nn.Parameter(torch.ones(4, 4))
    optimizer = learn([p], PROGRAMS["sgd"], 1e-3, rule=rule, hyper_lr=hyper_lr)
    for step in range(400):
        p.grad = torch.full_like(p, 1.0 if step % 2 else -1.0)
        optimizer.step()
    learned = optimizer.param_groups[0]["learning"]
    assert float(learned["common"]) == float(learned["log"]) == pytest.approx(-math.log(1e12))
    assert optimizer.learned_values()["lr"] == pytest.approx(1e-15)


@pytest.mark.parametrize("name", ["adamw", "momentum"])
@pytest.mark.parametrize("shapes", [[()], [(10,)], [(10,), ()], [(10,), (3,), (3,)]], ids=str)
def test_without_matrices_elements_of_vectors_are_what_a_step_is_bounded_by(name, shapes):
    """From zeros to ones, as in a linear model; the first step is looked at once."""
    for lr in (1e-6, 1e-2, 10.0):
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.zeros(s)) for s in shapes]
        optimizer = learn(params, PROGRAMS[name], lr)
        probe, probed, largest = optimizer._probe, [], 0.0
        optimizer._probe = lambda *args, probe=probe, probed=probed: (probed.append(args), probe(*args))[1]
        for _ in range(500):
            for p in params:
                p.grad = p.detach() - 1 + 0.1 * torch.randn(p.shape, generator=generator)
            optimizer.step()
            largest = max(largest, *(p.abs().max().item() for p in params))
        assert len(probed) == len(params) and largest < 1.3
        assert max((p - 1).abs().max().item() for p in params) < 0.3


def test_a_rule_that_is_switched_off_moves_nothing():
    p = nn.Parameter(torch.full((10, 10), 5.0))
    optimizer = learn([p], PROGRAMS["sgd"], 1.9, rule="polyak", hyper_lr=0)
    for _ in range(10):
        p.grad = p.detach().clone()
        optimizer.step(lambda: p.detach().square().sum().item())
        optimizer.step()
    assert optimizer.learned_values() == {"lr": 1.9}


@pytest.mark.parametrize("told", [False, True])
def test_derivatives_do_not_undercut_a_rate_that_is_trusted(told):
    """Gradients that agree lift the rate, and gradients that turn lower it again: to where it began, and no further."""
    p = nn.Parameter(torch.full((8, 8), 100.0))
    optimizer = learn([p], PROGRAMS["sgd"], 1e-2)
    rates = []
    for step in range(120):
        p.grad = torch.full_like(p, 1.0 if step < 20 or step % 2 else -1.0)
        optimizer.step((lambda step=step: 2.0 - 0.01 * step) if told else None)
        rates.append(optimizer.learned_values()["lr"])
    assert max(rates) > 0.05 and min(rates) == rates[-1] == pytest.approx(1e-2)


@pytest.mark.parametrize(("name", "lr"), [("rmsprop", 2e-3), ("adagrad", 0.02)])
def test_told_the_loss_a_rate_that_works_for_the_program_works_all_the_same(name, lr):
    """Of rules whose first steps are the largest, as nothing corrects their averages."""
    ends = []
    for make in (ProgramOptimizer, learn):
        task = Classes()
        task.train(make(task.model.parameters(), BASELINES[name].program, lr), 150, told=True)
        ends.append(task.end())
    assert ends[1] <= 1.02 * ends[0]
