"""Where optimizer packages go wrong: odd memory layouts, late starts, half precision, skipped steps. Every row, in all
forms that train in place."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from support.forms import SHAPES, draw, every_form, make, play, through_a_file
from support.strategies import assert_same
from torch import Tensor, nn
from torch.optim import Optimizer

from optforge.baselines import BASELINES, AdamW, Lion
from optforge.primitives import ProgramOptimizer
from optforge.primitives.parameters import REST

STEPS = 6


def close(got: list[Tensor], expected: list[Tensor]) -> None:
    """Equal but for the order of sums, which may follow the memory."""
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


# Memory.

# A parameter that is a view, of its storage: shape of the storage, and the view in it.
VIEWS: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "columns": ((4, 8), lambda x: x[:, 2:5]),
    "every other": ((8, 7), lambda x: x[::2, 1::3]),
    "transposed": ((3, 4), lambda x: x.mT),
    "channels last": ((2, 5, 4, 3), lambda x: x.permute(0, 3, 1, 2)[:, :, 1:3]),
    "vector": ((13,), lambda x: x[1::3]),
    "number": ((3,), lambda x: x[1]),
}


@every_form
def test_parameters_may_be_strided_views(name: str, form: str) -> None:
    """All elements move as those of a contiguous parameter; their neighbours in memory do not."""
    marked = 1234.5
    stores = [torch.full(shape, marked, dtype=torch.float64) for shape, _ in VIEWS.values()]
    views = [view(store) for (_, view), store in zip(VIEWS.values(), stores, strict=True)]
    plain, gradients = draw([tuple(v.shape) for v in views], STEPS)
    for view, p in zip(views, plain, strict=True):
        view.copy_(p.detach())
    params = [nn.Parameter(view) for view in views]
    expected = play(make(name, form, plain), plain, gradients)[-1]
    play(make(name, form, params), params, gradients)
    close(views, expected)
    for store, view in zip(stores, views, strict=True):
        assert int((store == marked).sum()) == store.numel() - view.numel()


@every_form
def test_parameters_may_be_turned_where_they_are(name: str, form: str) -> None:
    """Same memory, another meaning: nothing may remember the old one."""
    ends = []
    for turn in (lambda x: x.mT, lambda x: x.mT.clone()):
        params, gradients = draw(((3, 3),), STEPS)
        optimizer = make(name, form, params)
        play(optimizer, params, gradients[:2])
        params[0].grad = None
        params[0].data = turn(params[0].data)
        ends += play(optimizer, params, gradients[2:])[-1]
    close(ends[:1], ends[1:])


def expanded(g: Tensor) -> Tensor:
    return g.ravel()[0].expand(g.shape)


def sliced(g: Tensor) -> Tensor:
    return g.new_full((*g.shape, 3), math.nan).copy_(g[..., None])[..., 1]


def turned(g: Tensor) -> Tensor:
    return g.movedim(0, -1).contiguous().movedim(-1, 0) if g.ndim else g


@every_form
@pytest.mark.parametrize("layout", [expanded, sliced, turned], ids=lambda f: f.__name__)
def test_gradients_may_have_strides_of_their_own(name: str, form: str, layout: Callable[[Tensor], Tensor]) -> None:
    ends = []
    for keep in (False, True):
        params, gradients = draw(SHAPES["mixed"], STEPS)
        optimizer = make(name, form, params)
        for t, step in enumerate(gradients):
            for p, g in zip(params, step, strict=True):
                odd = layout(g)
                p.grad = odd if keep and t % 2 else odd.clone(memory_format=torch.contiguous_format)
            optimizer.step()
        ends.append([p.detach() for p in params])
    close(ends[1], ends[0])


# Time.


@every_form
def test_parameter_that_is_unfrozen_late_begins_at_step_one(name: str, form: str) -> None:
    """Bias corrections and warm-ups count its own steps: as in an optimizer made for it at that time."""
    params, gradients = draw(((4, 3), (4, 3), (5,), ()), 2 * STEPS)
    late = params[1:]
    together, alone = make(name, form, params), draw(((4, 3), (4, 3), (5,), ()), 2 * STEPS)[0][1:]
    for step in gradients[:STEPS]:
        params[0].grad = step[0].clone()
        together.step()
    assert not any(p in together.state for p in late)
    play(together, params, gradients[STEPS:])
    play(make(name, form, alone), alone, [step[1:] for step in gradients[STEPS:]])
    close([p.detach() for p in late], [p.detach() for p in alone])
    assert [together.state[p]["step"].item() for p in params] == [2 * STEPS, STEPS, STEPS, STEPS]


@every_form
def test_grad_scaler_skips_steps_and_a_skipped_first_one_leaves_no_state(name: str, form: str) -> None:
    params, twins = ([nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(5))] for _ in range(2))
    optimizer, plain = make(name, form, params), make(name, form, twins)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for t, factor in enumerate((math.inf, 1.0, math.nan, 0.5)):
        optimizer.zero_grad(), plain.zero_grad()
        before = [p.detach().clone() for p in params]
        scaler.scale(sum((p.square() * factor).sum() for p in params)).backward()
        scaler.step(optimizer)
        scaler.update()
        if math.isfinite(factor):
            sum((p.square() * factor).sum() for p in twins).backward()  # type: ignore[union-attr]
            plain.step()
        else:
            assert_same([p.detach() for p in params], before)
            assert optimizer.state or t == 0
        assert all(optimizer.state.get(p) for p in params) == (t > 0)
    for p, q in zip(params, twins, strict=True):
        assert_same(p.detach(), q.detach())
        assert_same(dict(optimizer.state[p]), dict(plain.state[q]))


# Half precision.


@every_form
def test_small_updates_of_bfloat16_add_up_in_wide_state(name: str, form: str) -> None:
    """50 steps of a thousandth of the usual rate: weights and what rounding left are those of float32, whose rounding
    is all that they may differ by; also from a checkpoint in the middle, to the last bit."""
    options = {"lr": BASELINES[name].visible.get("lr", 0.1) * 1e-3, "state_dtype": torch.float32}
    params, gradients = draw(SHAPES["mixed"], 50, torch.bfloat16, noise=0.5)
    exact = [nn.Parameter(p.detach().float()) for p in params]
    optimizer = make(name, form, params, **options)

    def train(optimizer: Optimizer, params: list[nn.Parameter], steps: list[list[Tensor]]) -> None:
        for step in steps:
            for p, g in zip(params, step, strict=True):
                p.grad = g.to(p.dtype)
            optimizer.step()

    train(optimizer, params, gradients[:25])
    resumed = [nn.Parameter(p.detach().clone()) for p in params]
    second = make(name, form, resumed, **options)
    second.load_state_dict(through_a_file(optimizer.state_dict()))
    train(optimizer, params, gradients[25:])
    train(second, resumed, gradients[25:])
    train(make(name, form, exact, **options), exact, gradients)
    start = draw(SHAPES["mixed"], 50, torch.bfloat16)[0]
    for p, q, whole, first in zip(params, resumed, exact, start, strict=True):
        assert_same(q.detach(), p.detach())
        assert_same(dict(second.state[q]), dict(optimizer.state[p]))
        kept, moved = p.detach().float() + optimizer.state[p][REST], (whole - first).abs().max()
        tolerance = 50 * 2**-24 * max(1.0, float(whole.detach().abs().max()))
        assert moved > 30 * tolerance
        torch.testing.assert_close(kept, whole.detach(), rtol=0, atol=tolerance)
        assert_same(p.detach(), kept.bfloat16())


# Tensors that others touch.


@pytest.mark.parametrize("move", [Tensor.share_memory_, lambda x: setattr(x, "data", x.data.clone())])
def test_compiled_steps_follow_state_that_moves_in_memory(move: Callable[[Tensor], object]) -> None:
    pair = [nn.Parameter(torch.linspace(-1, 1, 3000, dtype=torch.float64).view(60, 50)) for _ in range(2)]
    optimizers = [ProgramOptimizer([p], BASELINES["adamw"].program, 0.1, compile=c)
                  for p, c in zip(pair, (False, True), strict=True)]  # fmt: skip
    for t in range(8):
        for p, optimizer in zip(pair, optimizers, strict=True):
            p.grad = torch.full_like(p, float(t - 3)) * p.detach()
            optimizer.step()
        if t == 3:
            for x in optimizers[1].state[pair[1]].values():
                move(x)
    close([pair[1]], [pair[0]])
    assert optimizers[1].state_dict()["state"][0]["step"] == 8


def test_backward_through_a_parameter_that_a_compiled_step_changed_is_noticed() -> None:
    p = nn.Parameter(torch.ones(5))
    optimizer = ProgramOptimizer([p], BASELINES["lion"].program, 0.1, compile=True)
    loss = p.square().sum()
    p.grad = torch.ones(5)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("make", [AdamW, lambda ps, **o: ProgramOptimizer(ps, BASELINES["lion"].program, **o)])
def test_state_too_narrow_for_its_parameter_is_refused(make: Callable[..., Optimizer]) -> None:
    for held, narrow in ((torch.float32, torch.bfloat16), (torch.float64, torch.float32),
                         (torch.bfloat16, torch.float16)):  # fmt: skip
        with pytest.raises(ValueError, match="which every step would round"):
            make([nn.Parameter(torch.ones(2, dtype=held))], state_dtype=narrow)


@pytest.mark.parametrize("name", ["lamb", "lars", "adafactor", "adamw"])
def test_derivatives_go_through_a_step(name: str) -> None:
    """Against central differences of the loss after the step, in the parameter before it."""

    def after(start: Tensor) -> Tensor:
        p = start * 1.0
        p.grad = torch.linspace(0.5, 2, 6, dtype=torch.float64).view(2, 3)
        optimizer = ProgramOptimizer([p], BASELINES[name].program, 0.1, differentiable=True, weight_decay=0.1)
        optimizer.step()
        return p.square().sum()

    start = torch.linspace(-1, 2, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    (found,) = torch.autograd.grad(after(start), start)
    for at in ((0, 0), (1, 2)):
        e = torch.zeros(2, 3, dtype=torch.float64)
        e[at] = 1e-5
        numeric = (after(start.detach() + e) - after(start.detach() - e)) / 2e-5
        assert found[at].item() == pytest.approx(numeric.item(), rel=1e-6)


def test_a_checkpoint_of_another_optimizer_is_refused_before_anything_changes() -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    p.grad = q.grad = torch.ones(2)
    adamw, lion = AdamW([p]), Lion([q])
    adamw.step(), lion.step()
    before = copy.deepcopy(lion.state_dict())
    with pytest.raises(ValueError, match=r"holds m, step, v for a parameter of shape \(2,\), where Lion has m, step"):
        lion.load_state_dict(adamw.state_dict())
    assert_same(lion.state_dict()["state"][0], before["state"][0])


def test_parameters_without_elements_do_no_harm() -> None:
    for row in BASELINES.values():
        p = nn.Parameter(torch.ones(0, 3))
        p.grad = torch.ones(0, 3)
        row.optimizer([p, nn.Parameter(torch.ones(1))]).step()
