"""Guarded steps equal torch's own recipes for clipping and scaling; gradients that are not finite move nothing."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import pytest
import torch
from support.strategies import assert_same
from torch import Tensor, nn
from torch.amp import GradScaler

from optforge.baselines import BASELINES, AdamW
from optforge.primitives import ProgramOptimizer
from optforge.search.training.guard import Clip, Guard


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(8, 4, generator=generator) for _ in range(2)) for _ in range(count)]  # type: ignore[misc]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def run(clip: Clip, dtype: torch.dtype | None, spoiled: tuple[int, ...] = ()) -> tuple[nn.Module, Guard]:
    """Twelve guarded steps, of which some get a gradient that is not finite."""
    model = network()
    scaler = GradScaler("cpu", init_scale=2.0**20) if dtype is torch.float16 else None
    guard = Guard(torch.optim.AdamW(model.parameters(), lr=0.01), clip, scaler)
    for number, (inputs, targets) in enumerate(batches(12)):
        guard.optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = 30 * (model(inputs).float() - targets).square().mean()
        guard.scale(loss).backward()
        if number in spoiled:
            next(model.parameters()).grad[0, 0] = math.inf if number % 2 else math.nan  # type: ignore[index]
        assert guard.step() is (number not in spoiled) or scaler is not None
    return model, guard


def by_hand(clip: Clip, dtype: torch.dtype | None, left_out: tuple[int, ...] = ()) -> nn.Module:
    """The same as torch's documentation writes it, without the batches that are left out."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler = GradScaler("cpu", init_scale=2.0**20, enabled=dtype is torch.float16)
    for number, (inputs, targets) in enumerate(batches(12)):
        if number in left_out:
            continue
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = 30 * (model(inputs).float() - targets).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if clip.norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip.norm)
        if clip.value is not None:
            nn.utils.clip_grad_value_(model.parameters(), clip.value)
        scaler.step(optimizer)
        scaler.update()
    return model


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("clip", [Clip(), Clip(norm=1.0), Clip(value=0.1), Clip(norm=1.0, value=0.1)])
def test_equals_the_recipes_of_torch_bit_for_bit(clip: Clip, dtype: torch.dtype | None) -> None:
    model, guard = run(clip, dtype)
    assert all(map(torch.equal, weights(model), weights(by_hand(clip, dtype))))
    assert guard.tally.steps == 12
    if dtype is torch.float16:
        assert 0 < guard.tally.skipped < 12, "nothing overflowed, so nothing was tried"
        assert guard.scaler is not None and guard.scaler.get_scale() == 2.0 ** (20 - guard.tally.skipped)
    else:
        assert guard.tally.skipped == 0
    assert (guard.tally.clipped > 0) == (clip != Clip())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_steps_that_are_not_finite_never_happened(dtype: torch.dtype | None, caplog: pytest.LogCaptureFixture) -> None:
    """Also the first one, in which the state is not there yet."""
    spoiled = (0, 5, 6)
    model, guard = run(Clip(norm=1.0), dtype, spoiled)
    assert all(map(torch.equal, weights(model), weights(by_hand(Clip(norm=1.0), dtype, left_out=spoiled))))
    assert (guard.tally.steps, guard.tally.skipped) == (12, 3)
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 3
    assert "step 7 skipped: gradients are not finite (3 of 7 skipped so far)" in caplog.text


@pytest.mark.parametrize("make", [AdamW, lambda ps: ProgramOptimizer(ps, BASELINES["adamw"].program)])
def test_a_skipped_first_step_leaves_no_state(make: Any) -> None:
    p = nn.Parameter(torch.ones(3))
    guard = Guard(make([p]), scaler=GradScaler("cpu"))
    p.grad = torch.tensor([1.0, math.inf, 1.0])
    guard.scale(torch.ones(()))  # a scaler scales before it unscales
    assert not guard.step()
    assert not guard.optimizer.state and p.tolist() == [1.0, 1.0, 1.0]
    p.grad = torch.ones(3)
    assert guard.step()
    assert float(guard.optimizer.state[p]["step"]) == 1


def test_counts_and_norms() -> None:
    p, q = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    guard = Guard(torch.optim.SGD([{"params": [p]}, {"params": [q], "lr": 1.0}], lr=1.0), Clip(norm=1.0))
    for p.grad, q.grad in [
        (torch.tensor([0.0, 3.0]), torch.tensor([4.0])),
        (torch.tensor([0.0, 0.6]), torch.tensor([0.8 - 1e-3])),
        (torch.tensor([0.0, math.nan]), torch.tensor([1.0])),
    ]:
        guard.step()
    assert (guard.tally.steps, guard.tally.skipped, guard.tally.clipped) == (3, 1, 1)
    torch.testing.assert_close(p.detach(), torch.tensor([0.0, -1.2]), rtol=1e-5, atol=0)  # 3/5 and 0.6


def test_clipping_by_value_is_counted_where_it_does_something() -> None:
    p = nn.Parameter(torch.zeros(2))
    guard = Guard(torch.optim.SGD([p], lr=1.0), Clip(value=0.5))
    for values in ([0.5, -0.5], [0.1, -3.0]):
        p.grad = torch.tensor(values)
        guard.step()
    assert guard.tally.clipped == 1 and guard.tally.norm == pytest.approx(math.hypot(0.1, 3))
    torch.testing.assert_close(p.detach(), torch.tensor([-0.6, 1.0]))


def test_many_skipped_steps_in_a_row_are_an_error(caplog: pytest.LogCaptureFixture) -> None:
    p = nn.Parameter(torch.ones(1))
    guard = Guard(torch.optim.SGD([p], lr=1.0), patience=3)
    for value in (math.nan, math.nan, 0.0, math.nan, math.nan):
        p.grad = torch.tensor([value])
        guard.step()
    with pytest.raises(FloatingPointError, match="gradients of 3 steps in a row were not finite; go back"):
        guard.step()
    assert guard.tally.skipped == 5 and p.item() == 1.0


def test_a_guard_that_does_nothing_changes_nothing() -> None:
    model, _ = run(Clip(), None)
    plain = network()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
    for inputs, targets in batches(12):
        optimizer.zero_grad()
        (30 * (plain(inputs).float() - targets).square().mean()).backward()
        optimizer.step()
    assert all(map(torch.equal, weights(model), weights(plain)))


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
def test_limits_must_be_positive(limit: float) -> None:
    with pytest.raises(ValueError, match="limit of a gradient's norm must be a positive number"):
        Clip(norm=limit)
    with pytest.raises(ValueError, match="limit of a gradient's value must be a positive number"):
        Clip(value=limit)


def test_accumulated_gradients_are_one_step() -> None:
    """Two halves of a batch, each counted half, are the batch."""
    models = []
    for parts in (1, 2):
        model = network().double()
        guard = Guard(torch.optim.AdamW(model.parameters(), lr=0.01), Clip(norm=0.5))
        for inputs, targets in batches(5):
            guard.optimizer.zero_grad()
            for x, y in zip(inputs.double().chunk(parts), targets.double().chunk(parts), strict=True):
                ((model(x) - y).square().mean() / parts).backward()
            guard.step()
        models.append(copy.deepcopy(model))
        assert guard.tally.steps == 5
    torch.testing.assert_close(weights(models[0]), weights(models[1]), rtol=1e-12, atol=1e-14)


def test_guards_that_share_a_scaler_update_it_once_for_both() -> None:
    """Against torch's order for several optimizers: step, step, update; with a scale that grows, and an overflow."""

    def run(guarded: bool) -> tuple[list[Tensor], float]:
        model, head = network(), nn.Linear(4, 1)
        head.load_state_dict({"weight": torch.ones(1, 4), "bias": torch.zeros(1)})
        optimizers = [torch.optim.SGD(part.parameters(), lr=0.05) for part in (model, head)]
        scaler = GradScaler("cpu", init_scale=2.0**8, growth_interval=3)
        guards = [Guard(optimizer, scaler=scaler) for optimizer in optimizers]
        for number, (inputs, _) in enumerate(batches(12)):
            for optimizer in optimizers:
                optimizer.zero_grad()
            scaler.scale(head(torch.tanh(model(inputs))).square().mean()).backward()
            if number == 5:
                next(head.parameters()).grad.fill_(math.inf)  # type: ignore[union-attr]
            if guarded:
                assert [guard.step() for guard in guards] == [True, number != 5]
            else:
                for optimizer in optimizers:
                    scaler.step(optimizer)
                scaler.update()
        return weights(model) + weights(head), scaler.get_scale()

    assert_same(run(True), run(False))


def test_a_guard_that_steps_more_often_than_another_of_its_scaler_updates_it_too() -> None:
    """As of a GAN whose critic makes two steps for one of the generator."""
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    scaler = GradScaler("cpu", init_scale=8.0, growth_interval=1)
    first, second = (Guard(torch.optim.SGD([p], lr=0.1), scaler=scaler) for p in (a, b))
    for _ in range(2):
        first.optimizer.zero_grad()
        first.scale(a.sum()).backward()
        assert first.step()
    second.scale(b.sum()).backward()
    assert second.step()
    torch.testing.assert_close((a.detach(), b.detach()), (torch.full((2,), 0.8), torch.full((2,), 0.9)))
    assert scaler.get_scale() == 32.0


@pytest.mark.parametrize("clip", [Clip(), Clip(norm=1.0), Clip(value=0.5), Clip(norm=2.0, value=0.5)])
def test_sparse_gradients_are_clipped_as_dense_ones(clip: Clip) -> None:
    ends, tallies = [], []
    for sparse in (True, False):
        table = nn.Embedding.from_pretrained(torch.ones(5, 2), freeze=False, sparse=sparse)
        guard = Guard(torch.optim.SGD(table.parameters(), lr=1.0), clip)
        for rows in ([1, 1, 3], [0, 2, 2]):  # a row that comes twice counts as the sum
            guard.optimizer.zero_grad()
            table(torch.tensor(rows)).sum().backward()
            assert guard.step()
        ends.append(weights(table))
        tallies.append((guard.tally.steps, int(guard.tally.clipped), guard.tally.norm))
    assert_same(*ends)
    assert tallies[0] == tallies[1] and tallies[0][2] == pytest.approx(math.sqrt(10))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_a_step_without_gradients_is_no_step(scaled: bool, empty: bool) -> None:
    """As after a batch that Lightning leaves out, or of a parameter without elements alone."""
    p = nn.Parameter(torch.zeros(0, 3) if empty else torch.ones(3))
    guard = Guard(AdamW([p]), Clip(norm=1.0, value=1.0), GradScaler("cpu", init_scale=8.0) if scaled else None)
    for _ in range(2):
        p.grad = torch.zeros_like(p) if empty and not scaled else None
        assert guard.step()
    guard.scale(p.sum()).backward()
    assert guard.step() and guard.tally.skipped == 0 and guard.tally.steps == 3


def test_nothing_is_logged_without_a_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        run(Clip(norm=1.0), None)
    assert not caplog.records
