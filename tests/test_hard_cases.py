"""Where optimizer packages go wrong: odd memory layouts, late starts, half precision, skipped steps. Every row, in all
forms that train in place."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from forms import SETTINGS, SHAPES, draw, every_form, play, through_a_file, twin
from strategies import assert_same
from torch import Tensor, nn
from torch.optim import Optimizer

from primitives.parameters import REST

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
    expected = play(twin(name, form, plain), plain, gradients)[-1]
    play(twin(name, form, params), params, gradients)
    close(views, expected)
    for store, view in zip(stores, views, strict=True):
        assert int((store == marked).sum()) == store.numel() - view.numel()


@every_form
def test_parameters_may_be_turned_where_they_are(name: str, form: str) -> None:
    """Same memory, another meaning: nothing may remember the old one."""
    ends = []
    for turn in (lambda x: x.mT, lambda x: x.mT.clone()):
        params, gradients = draw(((3, 3),), STEPS)
        optimizer = twin(name, form, params)
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
        optimizer = twin(name, form, params)
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
    together, alone = twin(name, form, params), draw(((4, 3), (4, 3), (5,), ()), 2 * STEPS)[0][1:]
    for step in gradients[:STEPS]:
        params[0].grad = step[0].clone()
        together.step()
    assert not any(p in together.state for p in late)
    play(together, params, gradients[STEPS:])
    play(twin(name, form, alone), alone, [step[1:] for step in gradients[STEPS:]])
    close([p.detach() for p in late], [p.detach() for p in alone])
    assert [together.state[p]["step"].item() for p in params] == [2 * STEPS, STEPS, STEPS, STEPS]


@every_form
def test_grad_scaler_skips_steps_and_a_skipped_first_one_leaves_no_state(name: str, form: str) -> None:
    params, twins = ([nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(5))] for _ in range(2))
    optimizer, plain = twin(name, form, params), twin(name, form, twins)
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
    """200 steps of a thousandth of the usual rate: weights and what rounding left are those of float32, whose rounding
    is all that they may differ by; also from a checkpoint in the middle, to the last bit."""
    options = {"lr": SETTINGS.get(name, {}).get("lr", 0.1) * 1e-3, "state_dtype": torch.float32}
    params, gradients = draw(SHAPES["mixed"], 200, torch.bfloat16, noise=0.5)
    exact = [nn.Parameter(p.detach().float()) for p in params]
    optimizer = twin(name, form, params, **options)

    def train(optimizer: Optimizer, params: list[nn.Parameter], steps: list[list[Tensor]]) -> None:
        for step in steps:
            for p, g in zip(params, step, strict=True):
                p.grad = g.to(p.dtype)
            optimizer.step()

    train(optimizer, params, gradients[:100])
    resumed = [nn.Parameter(p.detach().clone()) for p in params]
    second = twin(name, form, resumed, **options)
    second.load_state_dict(through_a_file(optimizer.state_dict()))
    train(optimizer, params, gradients[100:])
    train(second, resumed, gradients[100:])
    train(twin(name, form, exact, **options), exact, gradients)
    start = draw(SHAPES["mixed"], 200, torch.bfloat16)[0]
    for p, q, whole, first in zip(params, resumed, exact, start, strict=True):
        assert_same(q.detach(), p.detach())
        assert_same(dict(second.state[q]), dict(optimizer.state[p]))
        kept, moved = p.detach().float() + optimizer.state[p][REST], (whole - first).abs().max()
        tolerance = 200 * 2**-24 * max(1.0, float(whole.detach().abs().max()))
        assert moved > 30 * tolerance
        torch.testing.assert_close(kept, whole.detach(), rtol=0, atol=tolerance)
        assert_same(p.detach(), kept.bfloat16())
