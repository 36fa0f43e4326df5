"""What the monitor says equals what one computes by hand from the parameters before and after; it changes nothing."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from optforge.baselines import BASELINES, LAMB, AdaFactor, AdaGrad, AdamW, Adan, Lion
from optforge.learned import learn
from optforge.primitives import ProgramOptimizer, parse_program
from optforge.search.training.groups import parameter_groups
from optforge.search.training.guard import Clip, Guard, Tally
from optforge.search.training.monitor import Monitor

Make = Callable[[Any], Optimizer]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3, bias=False)).double()


def backward(model: nn.Module, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    model.zero_grad()
    loss: Tensor = model(inputs).square().sum()
    loss.backward()
    return loss


def flat(tensors: Any) -> Tensor:
    return torch.cat([x.detach().reshape(-1) for x in tensors])


def expected(old: list[Tensor], new: list[Tensor], grads: list[Tensor]) -> dict[str, float]:
    """By definition, over all elements as one vector."""
    before, after, g = flat(old), flat(new), flat(grads)
    delta = after - before
    both = (delta != 0) & (g != 0)
    return {
        "grad_norm": g.norm().item(),
        "update_norm": delta.norm().item(),
        "update_to_weight": (delta.norm() / before.norm()).item(),
        "sign_agreement": ((delta > 0) == (g < 0))[both].double().mean().item(),
    }


def observed(make: Make, steps: int = 3) -> tuple[dict[str, float], nn.Module, list[Tensor], Optimizer]:
    """Scalars of the last step, the model, its parameters before that step, and the optimizer."""
    model = network()
    optimizer = make(model.parameters())
    monitor = Monitor(optimizer, every=steps, names=model.named_parameters())
    for step in range(steps):
        backward(model, step)
        old = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        if step + 1 < steps:
            monitor.take()
    return monitor.take(), model, old, optimizer


def peer(path: str, **options: Any) -> Make:
    def make(params: Any) -> Optimizer:
        module, name = path.rsplit(".", 1)
        package = pytest.importorskip(module, reason=f"{module} is not installed (extra: peers)")
        optimizer: Optimizer = getattr(package, name)(params, **options)
        if hasattr(optimizer, "train"):
            optimizer.train()
        return optimizer

    return make


ADAMW = BASELINES["adamw"].program
OPTIMIZERS: dict[str, tuple[Make, str | None, tuple[str, ...]]] = {
    "torch SGD": (lambda ps: torch.optim.SGD(ps, lr=0.1), None, ()),
    "torch momentum": (lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9), "momentum_buffer", ()),
    "torch AdamW": (lambda ps: torch.optim.AdamW(ps, lr=0.1), "exp_avg", ("exp_avg_sq",)),
    "torch RMSprop": (lambda ps: torch.optim.RMSprop(ps, lr=0.1), None, ("square_avg",)),
    "torch Adagrad": (lambda ps: torch.optim.Adagrad(ps, lr=0.1), None, ("sum",)),
    "AdamW": (lambda ps: AdamW(ps, lr=0.1), "m", ("v",)),
    "AdaGrad": (lambda ps: AdaGrad(ps, lr=0.1), None, ("total",)),
    "Adan": (lambda ps: Adan(ps, lr=0.1), "m", ("n",)),
    "Lion": (lambda ps: Lion(ps, lr=0.1), "m", ()),
    "program": (lambda ps: ProgramOptimizer(ps, ADAMW, lr=0.1), "m", ("v",)),
    "learned": (lambda ps: learn(ps, ADAMW, lr=0.1), "m", ("v",)),
    "lion_pytorch": (peer("lion_pytorch.Lion", lr=0.1), "exp_avg", ()),
    "schedulefree": (peer("schedulefree.AdamWScheduleFree", lr=0.1), None, ("exp_avg_sq",)),
    "prodigyopt": (peer("prodigyopt.Prodigy"), "exp_avg", ("exp_avg_sq",)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scalars_by_definition(name: str) -> None:
    make, moment, seconds = OPTIMIZERS[name]
    scalars, model, old, optimizer = observed(make)
    params = list(model.parameters())
    wanted = expected(old, params, [p.grad for p in params])  # type: ignore[misc]
    if moment is not None:
        wanted["momentum_norm"] = flat(optimizer.state[p][moment] for p in params).norm().item()
    if seconds:
        values = flat(optimizer.state[p][key] for p in params for key in seconds)
        wanted |= {"second_moment_min": values.min().item(), "second_moment_max": values.max().item()}
    layers = {key: value for key, value in scalars.items() if "/trust_ratio/" in key}
    assert {k.removeprefix("optimizer/"): v for k, v in scalars.items() if k not in layers} == pytest.approx(wanted)
    assert list(layers) == [f"optimizer/trust_ratio/{name}" for name, _ in model.named_parameters()]
    assert 0 < wanted["sign_agreement"] <= 1 and wanted["update_norm"] > 0, "nothing happened, so nothing was compared"


def test_factored_second_moments_are_seen() -> None:
    scalars, model, _, optimizer = observed(lambda ps: AdaFactor(ps, lr=0.1))
    values = flat(optimizer.state[p][key] for p in model.parameters() for key in ("row", "col", "v")
                  if key in optimizer.state[p])  # fmt: skip
    assert scalars["optimizer/second_moment_min"] == pytest.approx(values.min().item())
    assert scalars["optimizer/second_moment_max"] == pytest.approx(values.max().item())


def test_trust_ratio_is_weight_over_update() -> None:
    """Of plain gradient descent, whose update is the gradient; whatever the rate, and also if it is learned."""
    for rate in (0.1, 1e-4):
        scalars, model, old, _ = observed(lambda ps, rate=rate: torch.optim.SGD(ps, lr=rate))
        for (name, p), before in zip(model.named_parameters(), old, strict=True):
            assert p.grad is not None
            expected = (before.norm() / p.grad.norm()).item()
            assert scalars[f"optimizer/trust_ratio/{name}"] == pytest.approx(expected, rel=1e-9)
    sgd = parse_program("optforge 1\nupdate g\n")
    scalars, model, old, optimizer = observed(lambda ps: learn(ps, sgd, lr=1e-3, hyper_lr=0.5))
    assert abs(optimizer.learned_values()["lr"] / 1e-3 - 1) > 0.1  # type: ignore[attr-defined]
    p = next(model.parameters())
    assert p.grad is not None
    assert scalars["optimizer/trust_ratio/0.weight"] == pytest.approx((old[0].norm() / p.grad.norm()).item(), rel=1e-9)


def test_trust_ratio_of_adamw_is_what_lamb_multiplies_with() -> None:
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
    scalars, adamw, old, _ = observed(lambda ps: AdamW(ps, **options), steps=1)
    _, lamb, _, _ = observed(lambda ps: LAMB(ps, **options), steps=1)
    for (name, p), q, before in zip(adamw.named_parameters(), lamb.parameters(), old, strict=True):
        torch.testing.assert_close(
            q - before, scalars[f"optimizer/trust_ratio/{name}"] * (p - before), rtol=1e-8, atol=0
        )


def test_trust_ratio_is_one_where_a_norm_is_zero() -> None:
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p, q], lr=0.1)
    monitor = Monitor(optimizer)
    p.grad, q.grad = torch.ones(2), torch.zeros(2)
    optimizer.step()
    scalars = monitor.take()
    assert (scalars["optimizer/trust_ratio/0.0"], scalars["optimizer/trust_ratio/0.1"]) == (1.0, 1.0)


@pytest.mark.parametrize(("program", "agreement"), [("update g", 1.0), ("x0 = neg(g)\nupdate x0", 0.0)])
@pytest.mark.parametrize("maximize", [False, True])
def test_sign_agreement(program: str, agreement: float, maximize: bool) -> None:
    rule = parse_program(f"optforge 1\n{program}\n")
    scalars, *_ = observed(lambda ps: ProgramOptimizer(ps, rule, lr=0.1, maximize=maximize))
    assert scalars["optimizer/sign_agreement"] == agreement


def test_groups_have_scalars_of_their_own() -> None:
    model = network()
    groups = parameter_groups(model, weight_decay=0.5)
    optimizer = AdamW(groups, lr=0.1)
    monitor = Monitor(optimizer)
    backward(model, 0)
    old = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.param_groups[1]["lr"] = 0.01
    optimizer.step()
    scalars = monitor.take()
    named = dict(model.named_parameters())
    for label, names in {"decay": ["0.weight", "2.weight"], "no_decay": ["0.bias"]}.items():
        wanted = expected([old[n] for n in names], [named[n] for n in names], [named[n].grad for n in names])  # type: ignore[misc]
        assert {k: scalars[f"optimizer/{k}/{label}"] for k in wanted} == pytest.approx(wanted)
    everything = expected(list(old.values()), list(named.values()), [p.grad for p in named.values()])  # type: ignore[misc]
    assert {k: scalars[f"optimizer/{k}"] for k in everything} == pytest.approx(everything)
    assert monitor.rates() == {"optimizer/lr/decay": 0.1, "optimizer/lr/no_decay": 0.01}
    assert "optimizer/trust_ratio/2.weight" in scalars  # named by the groups themselves


def test_rates_are_those_of_the_latest_step() -> None:
    """Learned factor and schedule included: of gradient descent, what a step has moved over the gradient."""
    model = network()
    optimizer = learn(model.parameters(), BASELINES["sgd"].program, lr=1e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    monitor = Monitor(optimizer, every=0)
    for step in range(3):
        backward(model, step)
        before = flat(model.parameters())
        optimizer.step()
        moved = (before - flat(model.parameters())).norm() / flat(p.grad for p in model.parameters()).norm()
        assert monitor.rates() == {
            "optimizer/lr": pytest.approx(moved.item(), rel=1e-6),
            "optimizer/learned/lr": optimizer.learned_values()["lr"],
        }
        schedule.step()
    assert monitor.take() == {} and monitor.steps == 3 and optimizer.learned_values()["lr"] != 1e-3


def test_a_rate_in_a_tensor_is_that_of_the_step() -> None:
    p, rate = nn.Parameter(torch.ones(1)), torch.tensor(0.25)
    optimizer = torch.optim.SGD([p], lr=rate)
    monitor = Monitor(optimizer)
    p.grad = torch.ones(1)
    optimizer.step()
    rate.fill_(7.0)
    assert monitor.rates() == {"optimizer/lr": 0.25}


@pytest.mark.parametrize("name", ["torch AdamW", "AdamW", "program", "learned"])
def test_training_is_the_same_bit_for_bit(name: str) -> None:
    models = []
    for every in (0, 1, None):
        model = network()
        optimizer = OPTIMIZERS[name][0](model.parameters())
        monitor = None if every is None else Monitor(optimizer, every)
        for step in range(5):
            backward(model, step)
            optimizer.step()
            assert monitor is None or bool(monitor.take()) == bool(every)
        models.append(flat(model.parameters()))
    assert torch.equal(models[0], models[1]) and torch.equal(models[1], models[2])


def test_every_n_steps_and_each_observation_once() -> None:
    model = network()
    optimizer = AdamW(model.parameters())
    monitor = Monitor(optimizer, every=4)
    seen = []
    for step in range(1, 13):
        backward(model, step)
        assert monitor.due == (step in (1, 4, 8, 12))
        optimizer.step()
        if monitor.take():
            seen.append(step)
        assert monitor.take() == {}
    assert seen == [1, 4, 8, 12]


def test_no_copy_is_kept_between_steps() -> None:
    size = 104_729

    def alive() -> int:
        gc.collect()
        return sum(type(x) in (Tensor, nn.Parameter) and x.numel() == size for x in gc.get_objects())

    p = nn.Parameter(torch.ones(size))
    optimizer = AdamW([p])
    p.grad = torch.ones(size)
    optimizer.step()
    before = alive()
    monitor = Monitor(optimizer, every=1)
    for _ in range(3):
        optimizer.step()
        assert alive() == before
    assert monitor.steps == 3 and monitor.take()


def test_removed_it_observes_no_more() -> None:
    model = network()
    optimizer = AdamW(model.parameters())
    monitor = Monitor(optimizer, every=1)
    monitor.remove()
    backward(model, 0)
    optimizer.step()
    assert monitor.take() == {} and monitor.steps == 0
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", [AdamW, lambda ps, lr: ProgramOptimizer(ps, ADAMW, lr=lr)])
def test_closures(make: Any) -> None:
    """Gradients come to be inside the step."""
    results = []
    for use in (True, False):
        model = network()
        optimizer = make(model.parameters(), lr=0.1)
        monitor = Monitor(optimizer, every=1)
        if use:
            optimizer.step(lambda model=model: backward(model, 3))
        else:
            backward(model, 3)
            optimizer.step()
        results.append(monitor.take())
    assert results[0] == results[1] and results[0]["optimizer/grad_norm"] > 0


def test_parameters_without_gradient_and_empty_ones_do_not_count() -> None:
    p, q, empty = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(0))
    optimizer = torch.optim.SGD([{"params": [q]}, {"params": [p, empty]}], lr=0.5)
    monitor = Monitor(optimizer)
    p.grad, empty.grad = torch.tensor([3.0, 4.0]), torch.ones(0)
    optimizer.step()
    scalars = monitor.take()
    assert scalars["optimizer/grad_norm"] == scalars["optimizer/grad_norm/1"] == 5.0
    assert "optimizer/grad_norm/0" not in scalars
    assert [k for k in scalars if "trust" in k] == ["optimizer/trust_ratio/1.0"]
    nothing = Monitor(torch.optim.SGD([q], lr=0.5))
    nothing.optimizer.step()
    assert nothing.take() == {}


def test_gradients_that_are_not_finite_are_shown() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([p], lr=0.5)
    monitor = Monitor(optimizer)
    p.grad = torch.tensor([math.nan, 1.0])
    optimizer.step()
    scalars = monitor.take()
    assert math.isnan(scalars["optimizer/grad_norm"]) and math.isnan(scalars["optimizer/trust_ratio/0.0"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64])
def test_any_dtype(dtype: torch.dtype) -> None:
    p, q = (nn.Parameter(torch.full((300,), 300.0, dtype=dtype)) for _ in range(2))
    r = nn.Parameter(torch.ones(3))  # of another dtype, in the same group
    optimizer = torch.optim.SGD([p, q, r], lr=1.0, momentum=0.5)
    monitor = Monitor(optimizer)
    for x in (p, q, r):
        x.grad = torch.full_like(x, 60.0)
    optimizer.step()
    scalars = monitor.take()
    norm = math.sqrt(603) * 60  # in float16, its square would overflow
    assert scalars["optimizer/grad_norm"] == pytest.approx(norm, rel=1e-6)
    assert scalars["optimizer/update_norm"] == pytest.approx(norm, rel=1e-6)
    assert scalars["optimizer/momentum_norm"] == pytest.approx(norm, rel=1e-6)
    assert scalars["optimizer/sign_agreement"] == 1.0


def test_sparse_gradients() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(list(table.parameters()), lr=0.1)
    monitor = Monitor(optimizer)
    table(torch.tensor([1, 1, 3])).sum().backward()
    optimizer.step()
    scalars = monitor.take()
    assert scalars["optimizer/grad_norm"] == pytest.approx(math.sqrt(2 * 4 + 2 * 1))
    assert scalars["optimizer/sign_agreement"] == 1.0


def test_shares_since_the_last_observation() -> None:
    p = nn.Parameter(torch.zeros(1))
    guard = Guard(torch.optim.SGD([p], lr=1.0), Clip(norm=1.0))
    monitor = Monitor(guard.optimizer, every=4, tally=guard.tally)
    shares = []
    for value in (0.5, 2.0, math.nan, 0.5, 3.0, 0.5, 0.5, 0.5, 4.0):
        p.grad = torch.tensor([value])
        guard.step()
        if scalars := monitor.take():
            names = ("skipped_share", "clipped_share", "grad_norm_before_clip", "grad_norm")
            shares.append([scalars[f"optimizer/{name}"] for name in names])
    # observed are the steps with 0.5, 3.0 and 4.0, the first, fourth and eighth that were made
    assert shares == [[0, 0, 0.5, 0.5], [1 / 4, 2 / 4, 3.0, pytest.approx(1.0)], [0, 1 / 4, 4.0, pytest.approx(1.0)]]


def test_a_tally_may_be_counted_on_the_device() -> None:
    p = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([p], lr=1.0)
    tally = Tally()
    monitor = Monitor(optimizer, every=1, tally=tally)
    p.grad = torch.ones(1)
    for hit in (True, False):
        tally.steps += 1
        tally.clipped = tally.clipped + torch.tensor(hit)
        tally.norm = torch.tensor(2.0)
        optimizer.step()
        scalars = monitor.take()
        assert scalars["optimizer/clipped_share"] == float(hit) and scalars["optimizer/grad_norm_before_clip"] == 2.0


def test_copies_of_an_optimizer_are_not_observed() -> None:
    model = network()
    optimizer = AdamW(model.parameters())
    monitor = Monitor(optimizer, every=1)
    twin = copy.deepcopy(optimizer)
    twin.step()
    assert monitor.steps == 0


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="every must be a number of steps, or 0 for none, got -1"):
        Monitor(AdamW([nn.Parameter(torch.zeros(1))]), every=-1)


def test_shards_are_seen_as_whole_parameters(tmp_path: Path) -> None:
    """One process is enough to have a mesh."""
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        results = []
        for sharded in (False, True):
            model = network()
            if sharded:
                fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
            guard = Guard(torch.optim.AdamW(model.parameters(), lr=0.1), Clip(norm=0.1, value=0.01))
            monitor = Monitor(guard.optimizer, names=model.named_parameters(), tally=guard.tally)
            backward(model, 0)
            guard.step()
            results.append(monitor.take())
        assert results[0] == pytest.approx(results[1], rel=1e-12) and results[0]["optimizer/clipped_share"] == 1.0
    finally:
        torch.distributed.destroy_process_group()
