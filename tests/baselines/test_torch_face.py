"""`ProgramOptimizer` beyond one eager process: compiled, distributed, mixed precision, and torch's own expectations.

What torch gives to all its optimizers in its tests is given to programs in `test_torch_inputs`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.strategies import random_gradients
from torch import Tensor, nn
from torch._dynamo.utils import counters

from optforge.baselines import BASELINES
from optforge.primitives import Builder, Kind, Program, ProgramError, ProgramOptimizer, parse_program
from optforge.primitives.backends.compiled import kernel
from optforge.primitives.blocks import momentum, trust_ratio

ADAMW, LION = BASELINES["adamw"].program, BASELINES["lion"].program


def text(*lines: str) -> Program:
    return parse_program("\n".join(("optforge 1", *lines)))


def trusting() -> Program:
    """Everything an elementwise rule has not: norms, a slot that is one number, the global norm, swapping slots."""
    b = Builder()
    m, a, c, s = b.slot("m"), b.slot("a", init=1.0), b.slot("c", init="g"), b.slot("s", Kind.SCALAR)
    momentum(b, m, b.g / (b.global_norm + 1.0), b.hyper("beta", 0.6, "unit"))
    a.next, c.next = c, b.lerp(a, b.g, b.hyper("far", 0.8, "unit"))
    s.next = b.lerp(s, b.rms(b.g), 0.25)
    return b.build(m.next * trust_ratio(b, m.next) * s.next + 0.1 * a)


ROWS = text("slot r = 0 row", "slot m = 0 tensor", "slot c = 0 col", "x0 = row_mean(g)", "x1 = sub(g, r)",
            "x2 = orthogonalise(x1)", "x3 = lerp(m, x2, 0.3)", "x4 = col_mean(g)", "x5 = outer(r, c)",
            "x6 = add(x3, x5)", "update x6", "next r = x0", "next m = x3", "next c = x4",
            "fallback", "slot m = 0 tensor", "x0 = lerp(m, g, 0.1)", "update x0", "next m = x0")  # fmt: skip
PROGRAMS = {"adamw": ADAMW, "lion": LION, "trust": trusting(), "rows": ROWS}
SHAPES = ((5, 4), (4, 5), (3, 3), (2, 3, 2), (1, 6), (7,), (1,), (), (0, 3))


def odd(dtype: torch.dtype) -> list[nn.Parameter]:
    """Parameters of all `SHAPES`, and one that is a view with gaps."""
    parts = [nn.Parameter(random_gradients(s, 0, i, dtype)[0]) for i, s in enumerate(SHAPES)]
    return [*parts, nn.Parameter(random_gradients((8, 8), 0, 0, dtype)[0][::2, 1::3])]


def run(optimizers: list[ProgramOptimizer], steps: int, dtype: torch.dtype) -> None:
    """The same gradients for all, every other one in another memory layout; the rate changes with each step."""
    for t in range(steps):
        for i, same in enumerate(zip(*(o.param_groups[0]["params"] for o in optimizers), strict=True)):
            g = random_gradients(tuple(same[0].shape), 0, 100 * t + i, dtype)[0]
            for p in same:
                p.grad = g.clone() if t % 2 else g.clone().mT.contiguous().mT if g.ndim > 1 else g.clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= 0.9


# Compiled.


@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_step_equals_eager_without_recompiling(name: str) -> None:
    pair = [odd(torch.float64) for _ in range(2)]
    eager, compiled = (
        ProgramOptimizer(ps, PROGRAMS[name], 0.01, compile=c) for ps, c in zip(pair, (False, True), strict=True)
    )
    run([eager, compiled], 1, torch.float64)
    before = counters["stats"]["unique_graphs"] + kernel.cache_info().misses
    run([eager, compiled], 4, torch.float64)
    assert counters["stats"]["unique_graphs"] + kernel.cache_info().misses == before > 0
    for p, q in zip(*pair, strict=True):
        if p.numel():
            torch.testing.assert_close(q, p, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(dict(compiled.state[q]), dict(eager.state[p]), rtol=1e-12, atol=1e-14)


def test_compiled_step_survives_whatever_replaces_tensors() -> None:
    """Checkpoints, copies, `p.data = …` and state put in by hand: no stale memory is written."""
    pair = [[nn.Parameter(torch.ones(40)), nn.Parameter(torch.ones(3, 4))] for _ in range(2)]
    eager, compiled = (ProgramOptimizer(ps, ADAMW, 0.01, compile=c) for ps, c in zip(pair, (False, True), strict=True))
    run([eager, compiled], 2, torch.float32)
    for optimizer in (eager, compiled):
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run([eager, compiled], 1, torch.float32)
    for optimizer, (p, q) in zip((eager, compiled), pair, strict=True):
        p.data = p.data.clone() * 2
        q.data = q.data.t().contiguous().t()
        optimizer.state[p]["m"] = optimizer.state[p]["m"] * 3
    run([eager, compiled], 2, torch.float32)
    pair[1], compiled = copy.deepcopy((pair[1], compiled))
    run([eager, compiled], 1, torch.float32)
    for p, q in zip(*pair, strict=True):
        torch.testing.assert_close(q, p, rtol=1e-6, atol=1e-7)


def test_weights_on_either_side_of_a_half_are_interpolated_as_eagerly() -> None:
    for beta in (0.0, 0.3, 0.7):
        pair = [[nn.Parameter(torch.ones(40, dtype=torch.float64))] for _ in range(2)]
        run([ProgramOptimizer(ps, PROGRAMS["trust"], 0.1, compile=c, beta=beta, far=beta)
             for ps, c in zip(pair, (False, True), strict=True)], 3, torch.float64)  # fmt: skip
        torch.testing.assert_close(pair[1], pair[0], rtol=1e-13, atol=0)


def test_compiled_step_refuses_what_it_cannot() -> None:
    p = [nn.Parameter(torch.ones(2))]
    with pytest.raises(ProgramError, match="choose compile or differentiable, not both"):
        ProgramOptimizer(p, LION, compile=True, differentiable=True)


# Half precision.


def test_bad_state_dtype_is_refused() -> None:
    for wrong in (torch.int32, "float32", torch.complex64):
        with pytest.raises(ProgramError, match=r"floating-point dtype like torch\.float32, got"):
            ProgramOptimizer([nn.Parameter(torch.ones(2))], LION, state_dtype=wrong)  # type: ignore[arg-type]


# Differentiable.


def test_gradients_flow_through_steps() -> None:
    """Rate, gradient, starting point and state; against finite differences."""
    program = text("slot m = 0 tensor", "x0 = lerp(m, g, 0.3)", "x1 = mul(p, 0.1)", "x2 = sin(x0)",
                   "x3 = add(x1, x2)", "update x3", "next m = x0")  # fmt: skip

    def trained(start: Tensor, g: Tensor, lr: Tensor) -> Tensor:
        p = start.clone()
        optimizer = ProgramOptimizer([p], program, lr=lr, differentiable=True)
        for _ in range(2):
            p.grad = g * 1.0
            optimizer.step()
        return p

    inputs = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([0.3, -1.0], [0.5, 0.2], 0.1)]
    assert torch.autograd.gradcheck(trained, inputs)


# What torch's tests give to every optimizer.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "options",
    [{}, {"lr": 0.01}, {"lr": torch.tensor(0.001)}, {"lr": torch.tensor([0.001])}, {"weight_decay": 0.1},
     {"weight_decay": 0.1, "maximize": True}, {"eps": 1e-6}, {"lr": 0.0}],
    ids=str,
)  # fmt: skip
def test_adamw_agrees_with_torch_on_its_own_inputs(options: dict[str, Any], dtype: torch.dtype) -> None:
    models = [nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).to(dtype) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ours = ProgramOptimizer(models[0].parameters(), ADAMW, **options)
    theirs = torch.optim.AdamW(models[1].parameters(), foreach=False, **options)
    x = random_gradients((6, 4), 0, 0, dtype)[0]
    for _ in range(4):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5 if dtype is torch.float32 else 1e-10, atol=1e-7)


def test_hooks_run_around_steps_and_checkpoints() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer, seen = ProgramOptimizer([p], LION, 0.1), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    p.grad = torch.ones(2)
    optimizer.step()
    assert seen == ["before", "after"]
    saved = optimizer.state_dict()
    changed = {"state": {0: saved["state"][0] | {"m": torch.full((2,), 7.0)}}, "param_groups": saved["param_groups"]}
    optimizer.register_load_state_dict_pre_hook(lambda *_: changed)
    optimizer.load_state_dict(saved)
    assert optimizer.state[p]["m"].tolist() == [7.0, 7.0]


# Distributed: one process is enough to have a mesh.


@pytest.fixture
def mesh(tmp_path: Path) -> Any:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def losses(model: nn.Module, make: Callable[[Any], torch.optim.Optimizer]) -> list[float]:
    optimizer, x, seen = make(model.parameters()), random_gradients((8, 4), 0, 1)[0], []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize("compiled", [False, True])
def test_shards_of_fsdp2_are_trained_like_whole_parameters(mesh: Any, compiled: bool) -> None:
    from torch.distributed.fsdp import fully_shard

    b = Builder()
    program = b.build(momentum(b, b.slot("m"), b.g / b.global_norm, 0.9))
    for rule in (program, ADAMW):
        sharded = model()
        fully_shard(sharded, mesh=mesh)
        made = []

        def make(params: Any, rule: Program = rule, made: list[ProgramOptimizer] = made) -> ProgramOptimizer:
            made.append(ProgramOptimizer(params, rule, 0.1, compile=compiled))
            return made[-1]

        assert losses(sharded, make) == pytest.approx(losses(model(), make), rel=1e-12)
        p = made[0].param_groups[0]["params"][0]
        assert made[0].state[p]["m"].placements == p.placements


def test_rules_that_mix_elements_refuse_shards(mesh: Any) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    whole = torch.ones(4, 3)
    for program in (PROGRAMS["trust"], ROWS):
        with pytest.raises(ProgramError, match=r"mixes the elements of a parameter, of which a shard of \(4, 3\)"):
            ProgramOptimizer([nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))], program)
        ProgramOptimizer([nn.Parameter(distribute_tensor(whole, mesh, [Replicate()]))], program)


def test_data_parallel_models_are_trained(mesh: Any) -> None:
    wrapped = nn.parallel.DistributedDataParallel(model())
    assert losses(wrapped, lambda ps: ProgramOptimizer(ps, LION, 0.1)) == pytest.approx(
        losses(model(), lambda ps: ProgramOptimizer(ps, LION, 0.1))
    )
