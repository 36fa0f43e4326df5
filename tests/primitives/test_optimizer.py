"""`ProgramOptimizer` does what users of torch expect of an optimizer."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.strategies import assert_same, programs, random_gradients, seeds, train
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from optforge.baselines import BASELINES
from optforge.primitives import Builder, Program, ProgramError, ProgramOptimizer, parse_program
from optforge.primitives.optimizer import global_norm

ADAMW, LION = BASELINES["adamw"].program, BASELINES["lion"].program


def text(*lines: str) -> Program:
    return parse_program("\n".join(("optforge 1", *lines)))


SGD = text("update g")
DECAYED = text("hyper decay = 0.5 log", "x0 = mul(p, decay)", "x1 = add(g, x0)", "update x1")
LAST_GRADIENT = text("slot m = 0 tensor", "update m", "next m = g")
ROWS = text("slot r = 0 row", "x0 = row_mean(g)", "x1 = sub(g, r)", "update x1", "next r = x0", "fallback", "update p")


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def step(optimizer: torch.optim.Optimizer, *gradients: Tensor | None) -> None:
    """One step with the given gradients, in the order of the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = None if g is None else g.clone()
    optimizer.step()


def ones(p: Tensor, value: float = 1.0) -> Tensor:
    return torch.full_like(p, value)


# Groups and hyperparameters.


def test_one_step_by_hand() -> None:
    p = parameter(1.0, -2.0)
    step(ProgramOptimizer([p], DECAYED, lr=0.1, decay=0.25), ones(p))
    assert_same(p.detach(), torch.tensor([1 - 0.1 * 1.25, -2 - 0.1 * 0.5], dtype=torch.float64))


def test_groups_override_rate_and_hyperparameters() -> None:
    p, q, r = parameter(1.0), parameter(1.0), parameter(1.0)
    groups = [{"params": [p]}, {"params": [q], "lr": 0.5}, {"params": [r], "decay": 2.0}]
    optimizer = ProgramOptimizer(groups, DECAYED, lr=0.25, decay=1.0)
    step(optimizer, *[torch.zeros(1, dtype=torch.float64)] * 3)
    assert [x.item() for x in (p, q, r)] == [0.75, 0.5, 0.5]
    assert [(g["lr"], g["decay"]) for g in optimizer.param_groups] == [(0.25, 1.0), (0.5, 1.0), (0.25, 2.0)]


def test_defaults_come_from_the_program() -> None:
    optimizer = ProgramOptimizer([parameter(1.0)], ADAMW)
    assert {k: optimizer.defaults[k] for k in ADAMW.defaults()} == ADAMW.defaults()
    assert optimizer.defaults["lr"] == 1e-3


def test_hyperparameters_can_be_changed_between_steps() -> None:
    p = parameter(1.0)
    optimizer = ProgramOptimizer([p], DECAYED, lr=0.25, decay=1.0)
    step(optimizer, ones(p, 0.0))
    optimizer.param_groups[0]["decay"] = 2.0
    step(optimizer, ones(p, 0.0))
    assert p.item() == 0.375


def test_fallback_shares_hyperparameters_by_name() -> None:
    shared = "hyper decay = 0.5 log"
    program = text(shared, "x0 = centralise(g)", "x1 = mul(p, decay)", "x2 = add(x0, x1)", "update x2",
                   "fallback", shared, "hyper other = 1 log",
                   "x0 = mul(p, decay)", "x1 = mul(x0, other)", "update x1")  # fmt: skip
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    step(ProgramOptimizer([p, q], program, lr=1.0, decay=0.25, other=2.0), torch.ones(2, 2), torch.ones(2))
    assert p.tolist() == [[0.75, 0.75], [0.75, 0.75]]
    assert q.tolist() == [0.5, 0.5]


def test_named_parameters_are_accepted() -> None:
    model = nn.Linear(2, 1)
    optimizer = ProgramOptimizer(model.named_parameters(), LION)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


# Refusals.


def test_unknown_hyperparameter_is_refused_by_name() -> None:
    known = "this program has: beta1, beta2, weight_decay"
    with pytest.raises(ProgramError, match=f"unknown hyperparameter 'betas'; {known}"):
        ProgramOptimizer([parameter(1.0)], LION, betas=0.9)
    with pytest.raises(ProgramError, match=f"unknown hyperparameter 'momentum'; {known}"):
        ProgramOptimizer([{"params": [parameter(1.0)], "momentum": 0.9}], LION)
    with pytest.raises(ProgramError, match="this program has: none"):
        ProgramOptimizer([parameter(1.0)], SGD, beta1=0.9)


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(ProgramError, match=r"expected a Program, got str; BASELINES\[name\]\.program is one"):
        ProgramOptimizer([parameter(1.0)], "adamw")  # type: ignore[arg-type]


def test_sparse_gradients_are_refused_before_anything_moves() -> None:
    reads_norm = text("x0 = mul(g, global_norm)", "update x0")
    for program in (SGD, reads_norm):
        p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
        optimizer = ProgramOptimizer([p, q], program)
        p.grad, q.grad = torch.ones(2, 2), torch.eye(2).to_sparse()
        with pytest.raises(ProgramError, match=r"sparse gradients \(parameter of shape \(2, 2\)\)"):
            optimizer.step()
        assert_same(p.detach(), torch.ones(2, 2))


def test_complex_parameters_are_refused_before_anything_moves() -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = ProgramOptimizer([p, q], SGD)
    p.grad, q.grad = torch.ones(2), torch.ones(3, dtype=torch.complex64)
    with pytest.raises(ProgramError, match=r"complex parameters \(parameter of shape \(3,\)\)"):
        optimizer.step()
    assert_same(p.detach(), torch.ones(2))


def test_rows_without_fallback_are_refused_at_construction() -> None:
    program = text("x0 = centralise(g)", "update x0")
    with pytest.raises(ProgramError, match=r"parameter has shape \(3,\); give the program a fallback"):
        ProgramOptimizer([nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))], program)
    optimizer = ProgramOptimizer([nn.Parameter(torch.ones(2, 2))], program)
    with pytest.raises(ProgramError, match="give the program a fallback"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(()))]})
    assert len(optimizer.param_groups) == 1


def test_progress_needs_the_length_of_training() -> None:
    program = text("x0 = mul(g, progress)", "update x0")
    for total in (None, 0, -1, 2.5):
        with pytest.raises(ProgramError, match="total_steps"):
            ProgramOptimizer([parameter(1.0)], program, total_steps=total)  # type: ignore[arg-type]
    p = parameter(0.0)
    optimizer = ProgramOptimizer([p], program, lr=1.0, total_steps=4)
    seen = []
    for _ in range(4):
        step(optimizer, ones(p))
        seen.append(p.item())
    assert seen == [-0.25, -0.75, -1.5, -2.5]
    unread = text("x0 = mul(g, progress)", "update g")
    ProgramOptimizer([p], unread)


# Signals.


def test_global_norm_is_taken_over_all_groups() -> None:
    program = text("x0 = div(g, global_norm)", "update x0")
    p, q, idle = parameter(0.0), parameter(0.0, 0.0), parameter(0.0)
    optimizer = ProgramOptimizer([{"params": [p]}, {"params": [q, idle], "lr": 10.0}], program, lr=1.0)
    step(optimizer, ones(p, 2.0), torch.tensor([1.0, -2.0], dtype=torch.float64), None)
    torch.testing.assert_close(p.detach(), torch.tensor([-2 / 3], dtype=torch.float64))
    torch.testing.assert_close(q.detach(), torch.tensor([-10 / 3, 20 / 3], dtype=torch.float64))
    assert global_norm([None]).item() == 0
    assert global_norm([torch.full((4,), 2.0), None, torch.full((), 3.0, dtype=torch.float64)]).item() == 5


def test_rate_is_a_signal() -> None:
    p = parameter(0.0)
    step(ProgramOptimizer([p], text("x0 = mul(g, lr)", "update x0"), lr=0.5), ones(p))
    assert p.item() == -0.25


# Aliasing: values that are not fresh must not change under the state that holds them.


def test_state_that_is_the_gradient_survives_zero_grad() -> None:
    p = parameter(0.0)
    optimizer = ProgramOptimizer([p], LAST_GRADIENT, lr=1.0)
    p.grad = ones(p, 3.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert p.grad.item() == 0
    optimizer.step()
    assert p.item() == -3.0


def test_state_that_is_the_parameter_keeps_its_old_value() -> None:
    program = text("slot m = 0 tensor", "x0 = sub(p, m)", "update x0", "next m = p")
    p = parameter(8.0)
    optimizer = ProgramOptimizer([p], program, lr=0.5)
    seen = []
    for _ in range(3):
        step(optimizer, ones(p))
        seen.append((p.item(), optimizer.state[p]["m"].item()))
    assert seen == [(4.0, 8.0), (6.0, 4.0), (5.0, 6.0)]


@pytest.mark.parametrize("init", ["p", "g"])
def test_slot_that_starts_as_a_copy_is_one(init: str) -> None:
    p = parameter(8.0)
    optimizer = ProgramOptimizer([p], text(f"slot m = {init} tensor", "update m", "next m = m"), lr=0.5)
    p.grad = ones(p, 2.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert optimizer.state[p]["m"].item() == {"p": 8.0, "g": 2.0}[init]
    assert p.item() == {"p": 0.0, "g": 6.0}[init]


def test_slots_may_swap() -> None:
    program = text("slot a = 1 tensor", "slot b = 2 tensor", "update a", "next a = b", "next b = a")
    p = parameter(0.0)
    optimizer = ProgramOptimizer([p], program, lr=1.0)
    seen = []
    for _ in range(4):
        step(optimizer, ones(p))
        seen.append(p.item())
    assert seen == [-1.0, -3.0, -4.0, -6.0]


def test_update_may_be_parameter_gradient_or_slot() -> None:
    p = parameter(4.0)
    step(ProgramOptimizer([p], text("update p"), lr=0.5), ones(p))
    assert p.item() == 2.0
    step(ProgramOptimizer([p], text("slot m = p tensor", "update m", "next m = p"), lr=0.5), ones(p))
    assert p.item() == 1.0


@given(st.data(), programs(fallback=False), seeds)
@settings(max_examples=40)
def test_no_state_shares_memory_with_parameter_or_gradient(data: st.DataObject, program: Program, seed: int) -> None:
    shape = (3, 4)
    start, *gradients = random_gradients(shape, 2, seed)
    p = nn.Parameter(start)
    optimizer = ProgramOptimizer([p], program, total_steps=10)
    for g in gradients:
        step(optimizer, g)
    foreign = {p.data_ptr(), p.grad.data_ptr()}  # type: ignore[union-attr]
    assert not foreign & {value.data_ptr() for value in optimizer.state[p].values()}


# Checkpoints.


def checkpointed(optimizer: ProgramOptimizer) -> dict[str, object]:
    """The optimizer's state as it comes back from a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def resume_midway(program: Program, shapes: Iterable[tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> None:
    """Train 8 steps at once, and 4 and 4 with a checkpoint between: equal to the last bit."""
    shapes = list(shapes)
    runs = [random_gradients(shape, 8, seed + i, dtype) for i, shape in enumerate(shapes)]
    whole = [nn.Parameter(run[0].clone()) for run in runs]
    first = ProgramOptimizer(whole, program, lr=0.01, total_steps=20)
    saved: dict[str, object] = {}
    for t in range(1, 9):
        step(first, *(run[t] for run in runs))
        if t == 4:
            saved = checkpointed(first)
            parts = [nn.Parameter(p.detach().clone()) for p in whole]
    second = ProgramOptimizer(parts, program, lr=0.5, total_steps=20)
    second.load_state_dict(saved)
    for t in range(5, 9):
        step(second, *(run[t] for run in runs))
    for p, q in zip(whole, parts, strict=True):
        assert_same(q.detach(), p.detach())
        assert_same(dict(second.state[q]), dict(first.state[p]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("program", [ROWS, LAST_GRADIENT])
def test_checkpoint_round_trip(program: Program, dtype: torch.dtype) -> None:
    resume_midway(program, [(), (1,), (5,), (3, 4), (2, 3, 2)], dtype)


@given(programs(), seeds, st.sampled_from([torch.float64, torch.float32]))
@settings(max_examples=40)
def test_checkpoint_round_trip_of_any_program(program: Program, seed: int, dtype: torch.dtype) -> None:
    shapes = [(3, 4), (4, 3)] if program.needs_matrix and program.fallback is None else [(3, 4), (5,), ()]
    resume_midway(program, shapes, dtype, seed)


def test_checkpoint_holds_rates_and_hyperparameters() -> None:
    p, q = parameter(1.0), parameter(1.0)
    first = ProgramOptimizer([p], LION, lr=0.25, beta1=0.5)
    second = ProgramOptimizer([q], LION)
    second.load_state_dict(checkpointed(first))
    assert (second.param_groups[0]["lr"], second.param_groups[0]["beta1"]) == (0.25, 0.5)


def test_state_loaded_without_a_file_is_not_entangled() -> None:
    p, q = parameter(1.0), parameter(1.0)
    first, second = ProgramOptimizer([p], ADAMW), ProgramOptimizer([q], ADAMW)
    step(first, ones(p))
    second.load_state_dict(first.state_dict())
    before = {name: value.clone() for name, value in first.state[p].items()}
    step(second, ones(q))
    assert_same(dict(first.state[p]), before)
    assert second.state[q]["step"].item() == 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alone(copied: Callable[[object], tuple[nn.Parameter, ProgramOptimizer]]) -> None:
    program = text("slot m = 0 tensor", "x0 = lerp(m, g, progress)", "update x0", "next m = x0")
    p = parameter(1.0, 2.0)
    optimizer = ProgramOptimizer([p], program, lr=0.5, total_steps=10)
    LambdaLR(optimizer, lambda _: 1.0)  # replaces optimizer.step by a closure
    gradients = random_gradients((2,), 4, 0)
    step(optimizer, gradients[0])
    q, twin = copied((p, optimizer))
    assert twin.param_groups[0]["params"][0] is q is not p
    for g in gradients[1:]:
        step(optimizer, g)
        before = q.detach().clone()
    assert_same(q.detach(), before)
    for g in gradients[1:]:
        step(twin, g)
    assert_same(q.detach(), p.detach())
    twin.add_param_group({"params": [parameter(0.0)]})


# Models.


def test_trains_a_model() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5], [3.0]]) + 0.3
    for program, lr in ((ADAMW, 0.05), (LION, 0.02), (ROWS, 0.01)):
        model = nn.Linear(4, 1)
        optimizer = ProgramOptimizer(model.parameters(), program, lr=lr)
        losses = []
        for _ in range(200):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < (0.5 if program is not ROWS else 1.0) * losses[0]


def test_routes_by_dimensions() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))
    optimizer = ProgramOptimizer([matrix, vector], ROWS, lr=0.5)
    assert optimizer.route(matrix) is ROWS
    assert optimizer.route(vector) is ROWS.fallback
    step(optimizer, torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.full((3,), 7.0))
    assert matrix.tolist() == [[0.5, -0.5], [1.0, 0.0]]
    assert optimizer.state[matrix]["r"].tolist() == [[2.0], [1.0]]
    assert vector.tolist() == [0.5, 0.5, 0.5]


def test_matches_the_plain_loop() -> None:
    b = Builder()
    s = b.slot("s")
    s.next = b.max(b.abs(b.g), 0.5 * s)
    program = b.build(b.g / (s.next + b.hyper("eps", 1e-8, "log")))
    start, *gradients = random_gradients((3, 4), 10, 0)
    p = nn.Parameter(start.clone())
    optimizer = ProgramOptimizer([p], program, lr=0.1)
    for g, expected in zip(gradients, train(program, start, gradients, lr=0.1).parameters, strict=True):
        step(optimizer, g)
        assert_same(p.detach(), expected)
