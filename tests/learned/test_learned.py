"""Learned learning rates: the derivative against finite differences, the rules by hand, resume, and robustness."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle

import pytest
import torch
from support.learned import PROGRAMS, Problem, sgd

from optforge.learned import LearnedOptimizer, learn
from optforge.primitives import ProgramError, ProgramOptimizer
from optforge.primitives.text import parse_program


@pytest.fixture(params=sorted(PROGRAMS))
def program(request):
    return PROGRAMS[request.param]


@pytest.mark.parametrize("ratio", [1.0, 3.0])
def test_hypergradient_is_the_derivative_of_the_next_loss(program, ratio):
    """Against a central difference in float64; with two groups, both rates follow the learned one in proportion."""
    lr, last = 0.02, 4

    def next_loss(rate):
        problem = Problem()
        optimizer = ProgramOptimizer(problem.groups(lr, ratio), program)
        for step in range(last):
            problem.step(optimizer, step)
        for group, share in zip(optimizer.param_groups, (1.0, ratio), strict=True):
            group["lr"] = share * rate
        problem.step(optimizer, last)
        return problem.loss(last + 1).item()

    problem = Problem()
    optimizer = learn(problem.groups(lr, ratio), program, hyper_lr=0)
    assert optimizer.hypergradient is None
    for step in range(last + 2):
        problem.step(optimizer, step)
    change = 1e-6
    expected = (next_loss(lr + change) - next_loss(lr - change)) / (2 * change)
    assert abs(expected) > 1e-4
    assert optimizer.hypergradient.item() == pytest.approx(expected, rel=1e-6)


def test_a_scheduler_enters_the_derivative_by_the_chain_rule():
    """With the scheduler at half, the learned rate has half the effect."""
    found = []
    for lr, factor in ((0.02, 0.5), (0.01, 1.0)):
        problem = Problem()
        optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], lr, hyper_lr=0)
        optimizer.param_groups[0]["lr"] *= factor
        for step in range(3):
            problem.step(optimizer, step)
        found.append(optimizer.hypergradient.item() / factor)
    assert found[0] == pytest.approx(found[1], rel=1e-12)


def test_the_rule_by_hand():
    """Gradient descent on ½‖A p‖² without a cap: averages of cosines, written out, with a rate that is lifted."""
    a = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    p = torch.ones(3, dtype=torch.float64, requires_grad=True)
    optimizer = learn([p], sgd(), 0.01, hyper_lr=0.2, cap=None)
    q, alpha, last, trace, weight = torch.ones(3, dtype=torch.float64), 0.01, None, 0.0, 0.0
    for _ in range(20):
        optimizer.zero_grad()
        (0.5 * (a @ p).square().sum()).backward()
        optimizer.step()
        g = a @ a @ q
        step = alpha * g  # what a step shows moves the rate of the next one
        if last is not None:
            trace, weight = 0.9 * trace + 0.1 * float(g @ last / (g.norm() * last.norm())), 0.9 * weight + 0.1
            mean = trace / weight
            alpha = max(0.01, alpha * math.exp(0.2 * mean if abs(mean) > 0.1 else 0.0))
        q, last = q - step, g
        assert optimizer.learned_values()["lr"] == pytest.approx(alpha, rel=1e-12)
        torch.testing.assert_close(p.detach(), q, rtol=1e-12, atol=0)
    assert alpha > 0.02


@pytest.mark.parametrize(("lr", "rises"), [(1e-4, True), (0.9, False)])
def test_small_rates_rise_and_large_ones_fall(lr, rises):
    p = torch.ones(4, dtype=torch.float64, requires_grad=True)
    optimizer = learn([p], sgd(), lr)
    for _ in range(10):
        optimizer.zero_grad()
        (p.square().sum()).backward()
        optimizer.step()
    assert (optimizer.learned_values()["lr"] > lr) is rises


def test_without_learning_it_is_the_plain_program_bit_for_bit(program):
    problems = Problem(), Problem()
    plain = ProgramOptimizer(problems[0].model.parameters(), program, 0.01)
    learned = learn(problems[1].model.parameters(), program, 0.01, hyper_lr=0)
    for step in range(10):
        assert problems[0].step(plain, step) == problems[1].step(learned, step)
    assert torch.equal(problems[0].flat(), problems[1].flat())


def test_all_tensors_of_a_step_use_the_same_rate():
    problem = Problem()
    optimizer = learn(problem.model.parameters(), sgd(), 0.001, hyper_lr=0.5)
    for step in range(5):
        before = [p.detach().clone() for p in problem.model.parameters()]
        rate = optimizer.learned_values()["lr"]
        problem.step(optimizer, step)
        for old, p in zip(before, problem.model.parameters(), strict=True):
            torch.testing.assert_close(p.detach(), old - rate * p.grad, rtol=1e-12, atol=1e-15)
    assert rate != 0.001


@pytest.mark.parametrize("name", ["adamw", "accumulated", "reads_lr"])
@pytest.mark.parametrize("compiled", [False, True])
def test_resume_is_bit_for_bit(name, compiled):
    def start():
        problem = Problem()
        optimizer = learn(problem.groups(1e-4, 2.0), PROGRAMS[name], compile=compiled)
        return problem, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)

    def go(problem, optimizer, scheduler, steps):
        for step in steps:
            problem.step(optimizer, step)
            scheduler.step()

    whole = start()
    go(*whole, range(20))
    half = start()
    go(*half, range(10))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (half[0].model, *half[1:])], file)
    file.seek(0)
    resumed = start()
    go(*resumed, range(12, 15))  # which leaves no trace
    for part, state in zip((resumed[0].model, *resumed[1:]), torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    go(*resumed, range(10, 20))
    assert torch.equal(resumed[0].flat(), whole[0].flat())
    assert resumed[1].learned_values() == whole[1].learned_values()
    assert resumed[1].learned_values()["lr"] != 1e-4


def test_a_state_dict_is_not_changed_by_later_steps():
    problem = Problem()
    optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], 1e-4)
    for step in range(3):
        problem.step(optimizer, step)
    state = optimizer.state_dict()
    before = copy.deepcopy(state["param_groups"])
    problem.step(optimizer, 3)
    assert state["param_groups"] == before != optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("compiled", [False, True])
def test_copies_go_on_alike(clone, compiled):
    problem = Problem()
    optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], 1e-4, compile=compiled)
    for step in range(3):
        problem.step(optimizer, step)
    other, copied = clone((problem, optimizer))
    for step in range(3, 6):
        assert problem.step(optimizer, step) == other.step(copied, step)
    assert optimizer.learned_values() == copied.learned_values() != {"lr": 1e-4}


def test_learning_can_start_from_a_plain_checkpoint():
    problem = Problem()
    plain = ProgramOptimizer(problem.model.parameters(), PROGRAMS["adamw"], 1e-4)
    for step in range(5):
        problem.step(plain, step)
    learned = learn(problem.model.parameters(), PROGRAMS["adamw"], 0.5)
    learned.load_state_dict(plain.state_dict())
    assert learned.learned_values() == {"lr": 1e-4}
    for step in range(5, 8):
        problem.step(learned, step)
    assert learned.learned_values()["lr"] != 1e-4


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "whats", list(itertools.permutations([("lr",), ("lr", "beta1"), ("weight_decay", "beta1"), ("eps",)], 2))
)
def test_a_checkpoint_of_another_choice_goes_on_with_what_both_learn(whats, compiled):
    problem, other = Problem(), Problem()
    first, second = (
        learn(part.model.parameters(), PROGRAMS["adamw"], 1e-4, what=what, compile=compiled)
        for part, what in zip((problem, other), whats, strict=True)
    )
    for step in range(5):
        problem.step(first, step)
    other.model.load_state_dict(problem.model.state_dict())
    second.load_state_dict(first.state_dict())
    both = set(whats[0]) & set(whats[1])
    assert {n: x for n, x in second.learned_values().items() if n in both} == {
        n: x for n, x in first.learned_values().items() if n in both
    }
    for step in range(5, 9):
        problem.step(first, step)
        other.step(second, step)
    assert all(value != second.defaults[name] for name, value in second.learned_values().items())


def test_the_order_of_names_is_of_no_meaning():
    """A checkpoint has a slot for each, under names that the order does not change."""
    problem, other = Problem(), Problem()
    first, second = (
        learn(part.model.parameters(), PROGRAMS["adamw"], 0.01, what=what)
        for part, what in ((problem, ("lr", "beta1", "weight_decay")), (other, ("weight_decay", "lr", "beta1")))
    )
    for step in range(5):
        problem.step(first, step)
    other.model.load_state_dict(problem.model.state_dict())
    second.load_state_dict(first.state_dict())
    for step in range(5, 9):
        problem.step(first, step)
        other.step(second, step)
    assert torch.equal(problem.flat(), other.flat()) and first.learned_values() == second.learned_values()


@pytest.mark.parametrize("how", ["older", "other"])
def test_a_checkpoint_of_another_version_is_a_sentence_and_changes_nothing(how):
    problem = Problem()
    optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], 1e-4)
    problem.step(optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        learned = group.pop("learned:rate")
        group |= {"learning": {"log": 1.0}} if how == "older" else {"learned:rate": learned | {"own": 0.0}}
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ProgramError, match="kept learned rates in another form; load the weights alone"):
        optimizer.load_state_dict(saved)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]


def test_schedulers_multiply():
    problem = Problem()
    optimizer = learn(problem.model.parameters(), sgd(), 0.001, hyper_lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in range(6):
        before = problem.flat()
        rate = optimizer.learned_values()["lr"] / (1 + step)
        problem.step(optimizer, step)
        g = torch.cat([p.grad.reshape(-1) for p in problem.model.parameters()])
        torch.testing.assert_close(problem.flat(), before - rate * g, rtol=1e-12, atol=1e-15)
        assert optimizer.effective_lrs() == [pytest.approx(rate)]
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001 / 7)  # the scheduler's value is its own
    assert optimizer.learned_values()["lr"] > 0.001


def test_a_rate_scheduled_to_zero_leaves_the_learned_one_alone():
    problem = Problem()
    optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], 0.001)
    optimizer.param_groups[0]["lr"] = 0.0
    for step in range(3):
        problem.step(optimizer, step)
    assert optimizer.learned_values() == {"lr": 0.001}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_gradients_that_are_not_finite_leave_the_rate_unchanged(bad):
    p = torch.ones(3, requires_grad=True)
    optimizer = learn([p], PROGRAMS["lion"], 1e-4)
    for _ in range(3):
        p.grad = torch.ones(3)
        optimizer.step()
    rate = optimizer.learned_values()["lr"]
    assert rate > 1e-4
    for _ in range(3):
        p.grad = torch.tensor([1.0, bad, 1.0])
        optimizer.step()
        assert optimizer.learned_values()["lr"] == rate


@pytest.mark.parametrize("hyper_lr", [1e-3, 1e3, 1e30])
@pytest.mark.parametrize("cap", [None, 0.01])
def test_the_rate_stays_positive_and_finite(cap, hyper_lr):
    generator = torch.Generator().manual_seed(0)
    p = torch.ones(3, requires_grad=True)
    optimizer = learn([p], PROGRAMS["lion"], 1.0, cap=cap, hyper_lr=hyper_lr)
    for step in range(300):
        p.grad = torch.randn(3, generator=generator) * 10.0 ** (step % 60 - 30)
        optimizer.step()
        assert 0 < optimizer.learned_values()["lr"] < math.inf


def test_closures():
    problem = Problem()
    optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], 1e-4)
    other = Problem()
    reference = learn(other.model.parameters(), PROGRAMS["adamw"], 1e-4)
    for step in range(5):

        def closure(step=step):
            optimizer.zero_grad()
            loss = problem.loss(step)
            loss.backward()
            return loss

        assert float(optimizer.step(closure).detach()) == other.step(reference, step)
    assert optimizer.learned_values() == reference.learned_values() != {"lr": 1e-4}


def test_a_later_group_takes_over_the_learned_factor():
    first, second = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = learn([first], sgd(), 0.001, hyper_lr=0.5)
    for _ in range(3):
        first.grad = torch.ones(2)
        optimizer.step()
    optimizer.add_param_group({"params": [second], "lr": 0.002})
    factor = optimizer.learned_values()["lr"] / 0.001
    assert factor > 1
    second.grad, first.grad = torch.ones(2), None
    before = second.detach().clone()
    optimizer.step()
    torch.testing.assert_close(second.detach(), before - 0.002 * factor)


@pytest.mark.parametrize("compiled", [False, True])
def test_parameters_without_gradient_do_not_count(compiled):
    frozen, moved = (torch.ones(2, requires_grad=True) for _ in range(2))
    optimizer = learn([frozen, moved], sgd(), 0.1, hyper_lr=0.0, compile=compiled)
    moved.grad, frozen.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    optimizer.step()
    assert optimizer.hypergradient.item() == -4.0
    moved.grad, frozen.grad = torch.ones(2), None
    optimizer.step()
    assert optimizer.hypergradient.item() == -2.0
    moved.grad, frozen.grad = torch.ones(2), 3 * torch.ones(2)
    optimizer.step()  # the last move of what was frozen is one of two steps ago
    assert optimizer.hypergradient.item() == -8.0


def test_an_update_that_is_the_gradient_survives_zero_grad_in_place():
    p = torch.ones(2, requires_grad=True)
    optimizer = learn([p], sgd(), 0.1, hyper_lr=0.0)
    p.grad = torch.ones(2)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    p.grad += 3
    optimizer.step()
    assert optimizer.hypergradient.item() == -6.0


def test_ascent_learns_as_descent_does():
    rates = []
    for sign in (1, -1):
        p = torch.ones(4, dtype=torch.float64, requires_grad=True)
        optimizer = learn([p], sgd(), 1e-3, maximize=sign < 0)
        for _ in range(5):
            optimizer.zero_grad()
            (sign * p.square().sum()).backward()
            optimizer.step()
        rates.append(optimizer.learned_values()["lr"])
    assert rates[0] == rates[1] > 1e-3


def test_half_precision_parameters():
    p = torch.ones(300, dtype=torch.bfloat16, requires_grad=True)
    optimizer = learn([p], PROGRAMS["adamw"], 1e-4, state_dtype=torch.float32)
    for _ in range(3):
        p.grad = torch.full_like(p, 300.0)
        optimizer.step()
    assert optimizer.hypergradient.dtype is torch.float64 and torch.isfinite(optimizer.hypergradient)
    assert optimizer.learned_values()["lr"] > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": ("gamma",)}, "cannot learn 'gamma'; choose from: lr, beta1, beta2, eps, weight_decay"),
        ({"what": "gamma"}, "cannot learn 'gamma'; choose from: lr, beta1, beta2, eps, weight_decay"),
        ({"what": ()}, "nothing to learn was named; choose lr or hyper"),
        ({"hyper_lr": -1.0}, "hyper_lr must be a finite number of at least 0, got -1.0"),
        ({"hyper_lr": math.nan}, "hyper_lr must be a finite number of at least 0, got nan"),
        ({"cap": 0.0}, "cap must be a positive number, as 0.01 for 1 % of the weights, or None, got 0.0"),
        ({"cap": "high"}, "cap must be a positive number, as 0.01 for 1 % of the weights, or None, got 'high'"),
        ({"differentiable": True}, "choose learning or differentiable"),
        ({"hyper_lr": True}, "hyper_lr must be a finite number of at least 0, got True"),
        ({"what": "weight_decay", "weight_decay": 0.0}, "weight_decay is 0, and would stay so"),
        ({"what": ("lr", "eps"), "eps": 0.0}, "eps is 0, and would stay so"),
        ({"what": ("lr", "eps"), "eps": -1.0}, "eps: -1.0 is outside [0, inf) of its log scale"),
        ({"what": ("lr", "beta1"), "beta1": 1.0}, "beta1: 1.0 is outside [0, 1) of its unit scale"),
        ({"lr": torch.tensor([0.1, 0.2])}, "lr must be"),
        ({"what": None}, "what to learn must be a name or names of hyperparameters, got None"),
        ({"what": ("lr", 3)}, "what to learn must be a name or names of hyperparameters, got ('lr', 3)"),
        ({"every": 0}, "every must be a whole number of steps, at least 1, got 0"),
        ({"every": 2.5}, "every must be a whole number of steps, at least 1, got 2.5"),
        ({"every": True}, "every must be a whole number of steps, at least 1, got True"),
        ({"lr": 0.0}, "lr must be positive to be learned, got 0.0"),
        ({"lr": -0.1}, "lr must be positive to be learned, got -0.1"),
        ({"lr": math.nan}, "lr must be positive to be learned, got nan"),
        ({"lr": math.inf}, "lr must be a finite number of at least 0, got inf"),
        ({"lr": "fast"}, "lr must be a finite number of at least 0, got 'fast'"),
        ({"momentum": 0.9}, "unknown hyperparameter 'momentum'"),
    ],
)
def test_misuse_is_a_sentence(options, message):
    with pytest.raises(ProgramError) as caught:
        learn([torch.ones(2, requires_grad=True)], PROGRAMS["adamw"], **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_group_without_a_rate_cannot_be_learned():
    optimizer = learn([torch.ones(2, requires_grad=True)], PROGRAMS["adamw"])
    with pytest.raises(ProgramError, match="lr must be positive to be learned, got 0"):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "lr": 0})


def test_a_group_with_what_cannot_be_moved_is_refused_and_not_kept():
    optimizer = learn([torch.ones(2, requires_grad=True)], PROGRAMS["adamw"], what=("lr", "eps"))
    with pytest.raises(ProgramError, match="eps is 0, and would stay so"):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "eps": 0.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("options", [{}, {"state_dtype": torch.float32}])
def test_sums_are_not_kept_in_float16(options):
    p = torch.ones(2, 2, dtype=torch.float16, requires_grad=True)
    optimizer = learn([p], PROGRAMS["sgd"], 1e-3, **options)
    for _ in range(8):
        p.grad = torch.full_like(p, 3e-4)
        optimizer.step()
    assert optimizer.learned_values()["lr"] > 2e-3


def test_a_name_given_twice_is_learned_once():
    assert learn([torch.ones(2, requires_grad=True)], PROGRAMS["adamw"], what=["lr", "lr"]).what == ("lr",)


def test_a_single_name_is_one_thing_to_learn():
    assert isinstance(learn([torch.ones(2, requires_grad=True)], sgd(), what="lr"), LearnedOptimizer)


def test_the_cosine_is_that_of_the_whole_step():
    """Two groups with rates 1 : 3 move along (g₁, 3 g₂), and all of it counts."""
    first, second = (torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = learn([{"params": [first], "lr": 1e-4}, {"params": [second], "lr": 3e-4}], sgd(), hyper_lr=0.5)
    for gradients in (((1.0, 2.0), (3.0, 4.0)), ((2.0, -1.0), (1.0, 1.0))):
        first.grad, second.grad = (torch.tensor(g, dtype=torch.float64) for g in gradients)
        optimizer.step()
    moved, g = torch.tensor([1.0, 2.0, 9.0, 12.0]), torch.tensor([2.0, -1.0, 1.0, 1.0])
    cosine = float(moved @ g / (moved.norm() * g.norm()))
    assert cosine > 0.1
    assert optimizer.learned_values()["lr"] == pytest.approx(1e-4 * math.exp(0.5 * cosine), rel=1e-6)


def test_the_last_update_is_not_read_from_a_slot_that_nothing_keeps():
    """A slot that nothing reads stays what it was at first, although its successor is the update."""
    program = parse_program("""optforge 1
slot m = 0.0 tensor
slot v = 0.0 tensor
x0 = add(v, g)
x1 = mul(x0, 0.5)
update x1
next m = x1
next v = g
""")
    w = torch.full((4, 3), 5.0, dtype=torch.float64, requires_grad=True)
    optimizer, last, before = learn([w], program, lr=1e-6), None, torch.zeros(4, 3, dtype=torch.float64)
    for _ in range(5):
        optimizer.zero_grad()
        w.square().sum().backward()
        expected = None if last is None else -(w.grad * last).sum()
        optimizer.step()
        if expected is not None:
            torch.testing.assert_close(optimizer.hypergradient, expected)
        last, before = (before + w.grad) / 2, w.grad.clone()
    assert optimizer.learned_values()["lr"] > 2e-6
