"""Steps that rest: after the beginning, most steps measure nothing, and what is learned stands still in them."""

from __future__ import annotations

import io

import pytest
import torch
from support.learned import PROGRAMS, Problem

from optforge.learned import LearnedOptimizer, learn, optimizer
from optforge.learned.watch import watched
from optforge.primitives import ProgramOptimizer
from optforge.primitives.kinds import Kind
from optforge.primitives.parameters import ASIDE
from optforge.primitives.program import Program

EVERY = 5
LEARNS = [1, 2, 4, 9, 14, 19]  # the steps that do; the first of all has no step before it


@pytest.fixture(autouse=True)
def beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beginning of 3 steps, in place of 200."""
    monkeypatch.setattr(optimizer, "BEGINNING", 3)


@pytest.fixture(params=sorted(PROGRAMS))
def program(request: pytest.FixtureRequest) -> Program:
    """Each of many."""
    return PROGRAMS[request.param]


BOTH = [*((name, False) for name in sorted(PROGRAMS)), *((name, True) for name in ("adamw", "lion", "normed", "sgd"))]


@pytest.mark.parametrize(("name", "compiled"), BOTH)
def test_resting_steps_are_those_of_the_plain_program_bit_for_bit(name, compiled):
    """With learning switched off, whatever rests."""
    ends, program = [], PROGRAMS[name]
    for make in (
        lambda p: ProgramOptimizer(p, program, 0.02, compile=compiled),
        lambda p: learn(p, program, 0.02, compile=compiled, hyper_lr=0, every=EVERY),
    ):
        problem = Problem()
        optimizer = make(problem.groups(0.02, 3.0))
        for step in range(17):
            problem.step(optimizer, step)
        ends.append(problem.flat())
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("name", "compiled", "what"), [*((*both, ("lr",)) for both in BOTH), ("adamw", True, ("lr", "beta1"))]
)
def test_what_is_measured_after_a_rest_is_what_is_measured_without_one(name, compiled, what):
    """All sums at a learning step are exactly what steps that all measure find."""
    found: dict[int, list[tuple[torch.Tensor | None, list[list[float]]]]] = {}
    for every in (1, EVERY):
        problem, found[every] = Problem(), []
        optimizer = learn(
            problem.groups(0.02, 3.0), PROGRAMS[name], what=what, hyper_lr=0, every=every,
            compile=compiled,
        )  # fmt: skip
        for step in range(20):
            problem.step(optimizer, step)
            states = [optimizer.state[p] for p in problem.model.parameters()]
            values = [[x.tolist() for name, x in state.items() if name.startswith(ASIDE)] for state in states]
            found[every].append((optimizer.hypergradient, values))
    known = [step for step, (value, _) in enumerate(found[EVERY]) if value is not None]
    assert known == LEARNS
    for step in known:
        assert found[EVERY][step] == found[1][step]


@pytest.mark.parametrize("every", [1, 2, EVERY])
def test_a_rate_moves_in_learning_steps_only(every):
    problem = Problem()
    optimizer = learn(problem.model.parameters(), PROGRAMS["adamw"], 1e-5, every=every)
    rates = [optimizer.learned_values()["lr"]]
    for step in range(20):
        problem.step(optimizer, step)
        rates.append(optimizer.learned_values()["lr"])
    moved = [step for step in range(20) if rates[step] != rates[step + 1]]
    assert moved == [step for step in range(1, 20) if step < 3 or step % every == every - 1]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["adamw", "lion", "sgd"])
@pytest.mark.parametrize("stopped", [6, 8, 9])
def test_resume_in_a_rest_is_bit_for_bit(name, compiled, stopped):
    def new(problem: Problem) -> LearnedOptimizer:
        return learn(problem.groups(1e-4, 3.0), PROGRAMS[name], every=EVERY, compile=compiled)

    whole, first, second = Problem(), Problem(), Problem()
    optimizer = new(whole)
    for step in range(16):
        whole.step(optimizer, step)
    optimizer = new(first)
    for step in range(stopped):
        first.step(optimizer, step)
    file = io.BytesIO()
    torch.save((first.model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    weights, state = torch.load(file)
    second.model.load_state_dict(weights)
    optimizer = new(second)
    optimizer.load_state_dict(state)
    for step in range(stopped, 16):
        second.step(optimizer, step)
    assert torch.equal(whole.flat(), second.flat())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_a_parameter_may_begin_in_a_rest(name, compiled):
    problem = Problem()
    optimizer = learn(problem.model.parameters(), PROGRAMS[name], 1e-3, every=EVERY, compile=compiled)
    late = problem.model[2].bias.requires_grad_(False)
    for step in range(15):
        late.requires_grad_(step >= 6)
        problem.step(optimizer, step)
    assert optimizer.state[late].keys() == optimizer.state[problem.model[0].bias].keys()
    assert optimizer.hypergradient is not None and torch.isfinite(optimizer.hypergradient)


def test_a_resting_program_keeps_and_measures_nothing(program):
    """But for one number, which says that it has."""
    watch = watched(program)
    names = {slot.name for slot in watch.resting.state}
    assert names <= {slot.name for slot in watch.program.state}
    own = {slot.name for slot in program.state}
    added = [slot for slot in watch.resting.state if slot.name not in own]
    assert [slot.kind for slot in added] == [Kind.SCALAR]
    assert sum(s.kind is Kind.TENSOR for s in watch.resting.state) <= sum(s.kind is Kind.TENSOR for s in program.state)
