"""Learned rules: the LSTM against torch's, the preprocessing by hand, features against the interpreter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from optforge.learned.meta.features import FIRST, Features, default_features, difference
from optforge.learned.meta.models import LSTMRule, MLPRule
from optforge.primitives import Builder, Const, Instr, Program, ProgramError, execute
from optforge.primitives.backends.interpret import initial_slot


def test_the_lstm_is_torchs_cell_by_cell():
    rule = LSTMRule()
    generator = torch.Generator().manual_seed(0)
    weights = {k: torch.randn(s, generator=generator).double() * 0.3 for k, s in rule.shapes.items()}
    lstm, out = nn.LSTM(2, 20, num_layers=2).double(), nn.Linear(20, 1).double()
    with torch.no_grad():
        for k in range(2):
            getattr(lstm, f"weight_ih_l{k}").copy_(weights[f"weight_ih_l{k}"])
            getattr(lstm, f"weight_hh_l{k}").copy_(weights[f"weight_hh_l{k}"])
            getattr(lstm, f"bias_ih_l{k}").copy_(weights[f"bias_l{k}"])
            getattr(lstm, f"bias_hh_l{k}").zero_()
        out.weight.copy_(weights["out.weight"])
        out.bias.copy_(weights["out.bias"])
    shapes = [(3, 2), (4,), ()]
    ps = [torch.zeros(s, dtype=torch.float64) for s in shapes]
    gradients = [[torch.randn(s, generator=generator).double() for s in shapes] for _ in range(5)]
    states, found = [rule.init(p) for p in ps], []
    for step, gs in enumerate(gradients, 1):
        updates, states = rule.step(weights, ps, gs, states, torch.tensor(float(step)))
        assert [u.shape for u in updates] == [p.shape for p in ps]
        found.append(torch.cat([u.flatten() for u in updates]))
    seen = torch.stack([rule.preprocess(torch.cat([g.flatten() for g in gs])) for gs in gradients])
    hidden, (h, c) = lstm(seen)
    torch.testing.assert_close(torch.stack(found), 0.1 * out(hidden).squeeze(-1))
    torch.testing.assert_close(torch.cat([s["hidden"] for s in states], 1), h)
    torch.testing.assert_close(torch.cat([s["cell"] for s in states], 1), c)


def test_preprocessing_by_hand():
    g = torch.tensor([1.0, -1.0, math.e, -math.exp(-5), 0.0, 1e-6, -1e-6, math.exp(-10) * 1.001], dtype=torch.float64)
    size, direction = LSTMRule().preprocess(g).unbind(-1)
    small = math.exp(10) * 1e-6
    torch.testing.assert_close(
        size, torch.tensor([0, 0, 0.1, -0.5, -1, -1, -1, -0.9999], dtype=g.dtype), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(direction, torch.tensor([1, -1, 1, -1, 0, small, -small, 1], dtype=g.dtype))


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2, 2), (5,), (1,), ()])
def test_features_are_values_of_the_interpreter(shape):
    """Each register as the update of a program of its own, through several steps."""
    features = default_features()
    program, registers = features.part(shape)
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(shape, generator=generator, dtype=torch.float64)
    state = {s.name: initial_slot(s, p, p) for s in program.state}
    for step in range(1, 4):
        g = torch.randn(shape, generator=generator, dtype=torch.float64)
        inputs = {"g": g, "p": p, "step": torch.tensor(float(step), dtype=torch.float64), **state}
        found, after = features(inputs)
        assert found.shape == (p.numel(), len(registers))
        assert torch.isfinite(found).all()
        for column, register in zip(found.unbind(-1), registers, strict=True):
            update = Program(program.state, (), _spread(program, register), len(program.body) + 1, program.next_state)
            expected, following = execute(update, inputs)
            torch.testing.assert_close(column.view(shape), expected)
        state = dict(zip(after, following, strict=True)) | after


def _spread(program, register):
    """Statements of `program`, and two that give the register the parameter's shape."""
    n = len(program.body)
    return (*program.body, Instr("mul", ("g", Const(0.0))), Instr("add", (register, n)))


def test_averages_have_no_bias():
    """Of a constant gradient, the average over the root of the average of squares is its sign from the first step."""
    features = default_features()
    g = torch.tensor([[2.0, -3.0], [0.5, 7.0]], dtype=torch.float64)
    program, _ = features.part(g.shape)
    state = {s.name: initial_slot(s, g, g) for s in program.state}
    ratios = slice(1 + len(FIRST), 3 * (1 + len(FIRST)))
    for step in range(1, 4):
        found, state = features({"g": g, "p": g, "step": torch.tensor(float(step), dtype=torch.float64), **state})
        torch.testing.assert_close(found[:, ratios], g.sign().reshape(-1, 1).expand(-1, 8))


def test_features_survive_their_text():
    features = default_features()
    assert Features.parse(features.text) == features
    assert len(features.registers) == len(features.fallback) == 26


def test_other_features_are_told_apart():
    features = default_features()
    b = Builder()
    vector = b.build(b.g * 2.0)
    b = Builder()
    other = Features(b.build(b.g * 2.0 + b.row_mean(b.g), vector), (0,), (0,))
    assert "where" in difference(features, other)
    assert "registers" in difference(features, features._replace(registers=features.registers[::-1]))
    assert difference(features, features) == ""


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"program": "x", "registers": [0], "fallback": [0]}'])
def test_what_is_no_feature_program_is_refused(text):
    with pytest.raises(ProgramError):
        Features.parse(text)


def test_registers_that_do_not_exist_are_refused():
    features = default_features()
    with pytest.raises(ProgramError, match="as many registers"):
        Features.parse(features._replace(registers=(10_000, *features.registers[1:])).text)


@pytest.mark.parametrize("rule", [LSTMRule(), MLPRule()])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_extreme_gradients_give_finite_updates(rule, scale):
    generator = torch.Generator().manual_seed(0)
    weights = rule.initial(generator)
    p = torch.zeros(3, 2)
    state = rule.init(p)
    for step in range(1, 4):
        (update,), (state,) = rule.step(weights, [p], [scale * torch.ones(3, 2)], [state], torch.tensor(float(step)))
        assert torch.isfinite(update).all()


def test_the_mlp_begins_as_adam():
    rule = MLPRule()
    weights = rule.initial(torch.Generator().manual_seed(0))
    weights |= {name: torch.zeros_like(w) for name, w in weights.items() if name != "skip.weight"}
    p = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    own, state = nn.Parameter(p.clone()), rule.init(p)
    adam = torch.optim.Adam([own], lr=3 * rule.scale, betas=(0.9, 0.99), eps=1e-8)
    for step in range(1, 6):
        g = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 + step))
        at = torch.tensor(float(step), dtype=torch.float64)
        (update,), (state,) = rule.step(weights, [p], [g], [state], at)
        p, own.grad = p - update, g
        adam.step()
        torch.testing.assert_close(p, own.detach(), rtol=1e-5, atol=1e-6)
