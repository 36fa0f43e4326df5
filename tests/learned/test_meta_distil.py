"""Distillation: what is a sum of terms is found again, and what it prints is what it measured."""

from __future__ import annotations

import pytest
import torch

from optforge.baselines import BASELINES
from optforge.learned.meta_distil import ProgramRule, candidates, distil, samples
from optforge.learned.meta_models import MLPRule
from optforge.learned.meta_tasks import classifier, quadratics
from optforge.learned.meta_trainer import evaluate
from optforge.primitives import ProgramOptimizer, execute
from optforge.primitives.backends.interpret import initial_slot

RATE = {"lr": torch.tensor([0.01])}


def both(rule, problem, weights):
    return [samples(rule, problem, weights, seed, 8, candidates()) for seed in (0, 1)]


def test_a_rule_that_is_a_term_is_found():
    """Momentum with bias correction, of which the dictionary has the direction, but not the decoupled rest."""
    rule = ProgramRule(BASELINES["adam"].program.with_defaults(beta1=0.9, beta2=0.99, eps=1e-8))
    found = distil(*both(rule, quadratics(4, 30), RATE), candidates(), 1)
    assert found.held_out == pytest.approx(1, abs=1e-5)
    assert "0.01" in str(found.program)
    assert found.program.defaults() == {}


def test_r2_is_that_of_the_printed_program():
    """The program through the interpreter, beside the rule, step by step."""
    rule = MLPRule(hidden=8)
    weights = {k: 3 * w for k, w in rule.initial(torch.Generator().manual_seed(0)).items()}
    problem = quadratics(5, 20)
    fitted, held_out = both(rule, problem, weights)
    found = distil(fitted, held_out, candidates(), 3)
    generator = torch.Generator().manual_seed(1)
    instances, params = problem.draw(generator, 8)
    left = total = 0.0
    for k in range(8):
        p, state = params["x"][k], rule.init(params["x"][k])
        slots = {s.name: initial_slot(s, p, p) for s in found.program.state}
        for step in range(1, 21):
            g = 2 * instances["w"][k].T @ (instances["w"][k] @ p - instances["y"][k])
            at = torch.tensor(float(step), dtype=torch.float64)
            (update,), (state,) = rule.step(weights, [p], [g], [state], at)
            guess, following = execute(found.program, {"g": g, "p": p, "step": at, **slots})
            slots = dict(zip(slots, following, strict=True))
            left += (update - guess).square().sum().item()
            total += update.square().sum().item()
            p = p - update
    assert found.held_out == pytest.approx(1 - left / total, abs=2e-3)


def test_more_terms_explain_more():
    rule = MLPRule(hidden=8)
    weights = {k: 3 * w for k, w in rule.initial(torch.Generator().manual_seed(0)).items()}
    x = torch.rand(40, 6, generator=torch.Generator().manual_seed(3))
    problem = classifier("toy", x, torch.arange(40) % 3, (4,), horizon=20, batch_size=8)
    pair = both(rule, problem, weights)
    fits = [distil(*pair, candidates(), n).fitted for n in (1, 2, 4, 8)]
    assert fits == sorted(fits)
    assert fits[-1] > fits[0]


def test_a_program_as_a_rule_trains_as_its_optimizer_does():
    program, problem = BASELINES["adamw"].program, quadratics(4, 15)
    losses = evaluate(ProgramRule(program), problem, torch.tensor([0.05]), 5, 1)[0]
    generator = torch.Generator().manual_seed(5)
    instances, params = problem.draw(generator, 1)
    x = params["x"][0].requires_grad_()
    optimizer = ProgramOptimizer([x], program, lr=0.05)
    for expected in losses:
        optimizer.zero_grad()
        loss = (instances["w"][0] @ x - instances["y"][0]).square().sum()
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-6)
        loss.backward()
        optimizer.step()
