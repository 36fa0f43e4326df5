"""Learned rates as a drop-in: compiled steps, buffers, other hyperparameters, the cap before the first step."""

from __future__ import annotations

import math

import pytest
import torch
from support.learned import PROGRAMS, Problem
from torch import nn
from torch.optim import Optimizer

from optforge.baselines import BASELINES
from optforge.learned import learn
from optforge.learned.rate import CAP
from optforge.learned.watch import watched
from optforge.primitives import Kind, ProgramOptimizer

# Of those for matrices, which torch compiles for seconds, one for each way to make a step from one, and one that is
# refreshed now and then; the compiled steps of all programs as they are have tests of their own.
COMPILED = sorted(name for name in PROGRAMS if name not in ("prodigy", "muon-original", "adamuon", "muon-h", "shampoo"))


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_is_eager(name):
    ended = []
    for compiled in (False, True):
        problem = Problem()
        optimizer = learn(problem.groups(1e-4, 2.0), PROGRAMS[name], compile=compiled)
        for step in range(12):
            problem.step(optimizer, step)
        ended.append((problem.flat(), optimizer.learned_values()["lr"]))
    torch.testing.assert_close(ended[1][0], ended[0][0], rtol=1e-10, atol=1e-12)
    assert ended[1][1] == pytest.approx(ended[0][1], rel=1e-9) and ended[0][1] != 1e-4


@pytest.mark.parametrize(("name", "buffers"), [("adamw", 0), ("adam", 0), ("momentum", 0), ("lion", 1), ("sgd", 1)])
def test_buffers_of_a_learned_rate(name, buffers):
    """None where the state tells the last update; plain descent and Lion keep it."""
    watch = watched(BASELINES[name].program)
    extra = [s for s in watch.program.state if s.name in watch.extra and s.kind is Kind.TENSOR]
    assert len(extra) == buffers


@pytest.mark.parametrize(("name", "per_hyper"), [("beta1", 2), ("weight_decay", 1)])
def test_buffers_of_other_hyperparameters(name, per_hyper):
    """The last derivative of the update, and for a decay that of the average."""
    watch = watched(BASELINES["adamw"].program, ("lr", name))
    assert len([s for s in watch.program.state if s.name in watch.extra and s.kind is Kind.TENSOR]) == per_hyper


def test_other_hyperparameters_stay_in_range_and_move():
    problem = Problem()
    optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], 0.01, what=("lr", "beta1", "eps", "weight_decay"))
    for step in range(40):
        problem.step(optimizer, step)
    values = optimizer.learned_values()
    begin = {"beta1": 0.9, "eps": 1e-8, "weight_decay": 0.01}
    assert 0 < values["beta1"] < 1 and values["eps"] > 0 and values["weight_decay"] > 0
    assert all(values[name] != start for name, start in begin.items())


@pytest.mark.parametrize("compiled", [False, True])
def test_a_decay_comes_to_zero_and_leaves_it(compiled):
    """It moves as log(1 - β), by κ/10 a step at most, so that 0 is a value like others and the least of all."""
    p = nn.Parameter(torch.full((4, 3), 100.0, dtype=torch.float64))
    optimizer = learn([p], PROGRAMS["momentum"], 0.01, what="momentum", momentum=0.2, hyper_lr=0.5, compile=compiled)
    found = []
    for step in range(60):
        turned = step < 40 and step % 4 >= 2  # against the gradient two steps before, which momentum would repeat
        p.grad = torch.full_like(p, -1.0 if turned else 1.0)
        optimizer.step()
        found.append(-math.log1p(-optimizer.learned_values()["momentum"]))
    assert found[30:40] == [0.0] * 10
    assert found[42:] == pytest.approx([0.05 * k for k in range(1, 19)], rel=1e-9)  # the gradients agree entirely


@pytest.mark.parametrize("name", ["adamw", "normed"])
def test_a_rate_far_too_large_is_bounded_before_the_first_step(name):
    """The probe sees what the step sees, the norm of all gradients included."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = learn(model.parameters(), PROGRAMS[name], 1e9)
    (1e6 * model(torch.randn(16, 64)).square().mean()).backward()
    optimizer.step()
    moved = [(p - b).norm() / math.sqrt(p.shape[0]) for p, b in zip(model.parameters(), before, strict=True)]
    assert min(moved[0], moved[2]) <= CAP * 1.01 and max(moved[0], moved[2]) < 10 * CAP


def test_a_rate_below_the_cap_is_left_alone_at_first():
    problem = Problem()
    optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], 1e-5)
    problem.step(optimizer, 0)
    assert optimizer.learned_values() == {"lr": pytest.approx(1e-5)}


def test_a_given_rate_between_both_caps_is_kept():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4))
    rates = {}
    for lr in (1e-3, 3e-3, 1e-1):  # the first matrix has 64 inputs: Adam's first step is 8 of its sizes
        optimizer = learn(model.parameters(), PROGRAMS["adamw"], lr)
        model.zero_grad()
        model(torch.randn(16, 64)).square().mean().backward()
        optimizer.step()
        rates[lr] = optimizer.learned_values()["lr"]
    assert rates[1e-3] == pytest.approx(1e-3) and rates[3e-3] == pytest.approx(3e-3)
    assert rates[1e-1] < 2 * CAP / 5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_never_enters(bad):
    p = nn.Parameter(torch.ones(3, 3))
    optimizer = learn([p], PROGRAMS["adamw"], 0.01, what=("lr", "weight_decay"))
    for step in range(12):
        p.grad = torch.full((3, 3), bad) if step in (0, 5) else torch.ones(3, 3)
        optimizer.step()
        values = optimizer.learned_values()
        assert all(0 < v < math.inf for v in values.values())


def test_the_rule_does_not_depend_on_the_unit_of_the_loss():
    """Adam's updates do not, either."""
    rates = []
    for unit in (1.0, 1e4):
        problem = Problem()
        optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], 1e-3, eps=1e-30)
        for step in range(20):
            optimizer.zero_grad()
            (unit * problem.loss(step)).backward()
            optimizer.step()
        rates.append(optimizer.learned_values()["lr"])
    assert rates[0] == pytest.approx(rates[1], rel=1e-9)


@pytest.mark.parametrize(
    ("hyper", "start"), [("beta1", 0.9), ("beta1", 0.98), ("beta1", 0.999), ("beta2", 0.999), ("beta2", 0.9999)]
)
@pytest.mark.parametrize(("dtype", "compiled"), [(torch.float32, False), (torch.float32, True), (torch.float64, False)])
def test_a_derivative_that_is_rounding_moves_nothing(hyper, start, dtype, compiled):
    """The first update of AdamW does not depend on its decays: its averages are corrected for their bias."""
    p = torch.nn.Parameter(torch.linspace(-1, 1, 12, dtype=dtype))
    optimizer = learn([p], BASELINES["adamw"].program, lr=1e-3, what=[hyper], compile=compiled, **{hyper: start})
    for step in range(2):
        p.grad = torch.linspace(1, 3, 12, dtype=dtype) * p.detach() * (1 + step)
        optimizer.step()
    assert optimizer.learned_values()[hyper] == start
    for step in range(2, 5):
        p.grad = torch.linspace(1, 3, 12, dtype=dtype) * p.detach() * (1 + step)
        optimizer.step()
    assert abs(optimizer.learned_values()[hyper] - start) > 1e-3 * (1 - start)


class Classes:
    """Three classes by a random linear rule, batches of 64 from 512 points; a network with one or more layers of 32."""

    def __init__(self, depth: int = 1, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.x, w = (torch.randn(s, generator=self.generator) for s in ((512, 16), (16, 3)))
        self.y = (self.x @ w).argmax(1)
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Linear(16, 32), nn.Tanh()]
        for _ in range(depth - 1):
            layers += [nn.Linear(32, 32), nn.Tanh()]
        self.model = nn.Sequential(*layers, nn.Linear(32, 3))

    def loss(self) -> torch.Tensor:
        i = torch.randint(512, (64,), generator=self.generator)
        return nn.functional.cross_entropy(self.model(self.x[i]), self.y[i])

    def end(self) -> float:
        with torch.no_grad():
            return nn.functional.cross_entropy(self.model(self.x), self.y).item()

    def train(self, optimizer: Optimizer, steps: int) -> list[float]:
        """Losses of some steps."""
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses


@pytest.mark.parametrize("name", ["adamw", "lion", "momentum"])
@pytest.mark.parametrize("lr", [1.0, 10.0])
def test_behind_zeros_the_first_step_is_bounded_all_the_same(name, lr):
    """A head of zeros, behind which no other gradient is anything but 0 in the first step."""
    task = Classes(depth=3)
    nn.init.zeros_(task.model[-1].weight)
    nn.init.zeros_(task.model[-1].bias)
    losses = task.train(learn(task.model.parameters(), PROGRAMS[name], lr), 120)
    assert max(losses) < 1.5 * math.log(3) and task.end() < 0.5


@pytest.mark.parametrize("name", ["adamw", "momentum"])
def test_the_order_of_groups_does_not_matter(name):
    rates = []
    for order in (1, -1):
        problem = Problem()
        groups = [{"params": part.parameters()} for part in (problem.model[0], problem.model[2])]
        optimizer = learn(groups[::order], PROGRAMS[name], 1e-5)
        for step in range(80):
            problem.step(optimizer, step % 40)
        rates.append(optimizer.learned_values()["lr"])
    assert rates[0] == pytest.approx(rates[1], rel=1e-6) and rates[0] > 1e-4


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
    monkeypatch.setattr("optforge.learned.optimizer.BEGINNING", 4)
    p, q = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = learn([p, q], PROGRAMS[name], 1e-3, hyper_lr=1.0, cap=None, every=10)
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


@pytest.mark.parametrize("name", ["adamw", "momentum"])
@pytest.mark.parametrize("shapes", [[()], [(10,)], [(10,), ()], [(10,), (3,), (3,)]], ids=str)
def test_without_matrices_elements_of_vectors_are_what_a_step_is_bounded_by(name, shapes):
    """From zeros to ones, as in a linear model; the first step is looked at once."""
    for lr in (1e-6, 1e-2, 10.0):
        generator = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.zeros(s)) for s in shapes]
        optimizer = learn(params, PROGRAMS[name], lr)
        largest = 0.0
        for _ in range(500):
            for p in params:
                p.grad = p.detach() - 1 + 0.1 * torch.randn(p.shape, generator=generator)
            optimizer.step()
            largest = max(largest, *(p.abs().max().item() for p in params))
        assert largest < 1.3
        assert max((p - 1).abs().max().item() for p in params) < 0.3


def test_derivatives_do_not_undercut_a_rate_that_is_trusted():
    """Gradients that agree lift the rate, and gradients that turn lower it again: to where it began, and no further."""
    p = nn.Parameter(torch.full((8, 8), 100.0))
    optimizer = learn([p], PROGRAMS["sgd"], 1e-2)
    rates = []
    for step in range(120):
        p.grad = torch.full_like(p, 1.0 if step < 20 or step % 2 else -1.0)
        optimizer.step()
        rates.append(optimizer.learned_values()["lr"])
    assert max(rates) > 0.05 and min(rates) == rates[-1] == pytest.approx(1e-2)


def last_update(name: str, q: nn.Parameter, step: int) -> torch.Tensor:
    """Of `q`, from the gradients of the test above."""
    gradients = [torch.tensor([1.0, 0, 0]) if t % 3 else torch.tensor([0, 1.0, 0]) for t in range(step)]
    update = torch.zeros(3)
    for g in gradients:
        update = (0.9 * update if name == "momentum" else 0.0) + g
    return update
