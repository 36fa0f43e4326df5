"""Shampoo and SOAP against the algorithms of their papers, written out in numpy with exact roots; and their routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.linalg import eigh, norm, qr
from support.strategies import random_gradients
from torch import nn
from torch.optim import Optimizer

from optforge.baselines import BASELINES, SOAP, Shampoo
from optforge.primitives import ProgramOptimizer
from optforge.primitives.routing import LARGEST_SIDE

Array = np.ndarray[Any, Any]
STEPS = 23
LR, B1, B2, EPS, DECAY, EVERY = 0.05, 0.8, 0.9, 1e-6, 0.1, 4


def root(a: Array, damping: float) -> Array:
    """``(a + damping ‖a‖)^(-1/4)`` by its eigenvalues."""
    values, vectors = eigh(a + damping * max(float(norm(a)), 1e-10) * np.eye(len(a)))
    return (vectors * values**-0.25) @ vectors.T


def shampoo(w: Array, gradients: list[Array]) -> Array:
    """Shi et al. 2023: L, R, their roots to the power -1/4, and Adam's norm; weight decay decoupled."""
    n, m = w.shape
    left, right, first, second = np.zeros((n, n)), np.zeros((m, m)), np.zeros((n, m)), np.zeros((n, m))
    for t, g in enumerate(gradients, 1):
        left, right = B2 * left + (1 - B2) * g @ g.T, B2 * right + (1 - B2) * g.T @ g
        first, second = B1 * first + (1 - B1) * g, B2 * second + (1 - B2) * g**2
        if (t - 1) % EVERY == 0:
            roots = root(left / (1 - B2**t), 1e-6), root(right / (1 - B2**t), 1e-6)
        corrected = first / (1 - B1**t)
        direction = roots[0] @ corrected @ roots[1]
        adam = corrected / (np.sqrt(second / (1 - B2**t)) + EPS)
        w = w - LR * (norm(adam) / norm(direction) * direction + DECAY * w)
    return w


def soap(w: Array, gradients: list[Array]) -> Array:
    """Vyas et al. 2024, algorithms 3 and 4, with the bias correction of Adam; bases by numpy's QR, of any signs."""
    n, m = w.shape
    left, right, first, second = np.zeros((n, n)), np.zeros((m, m)), np.zeros((n, m)), np.zeros((n, m))
    q_left, q_right = np.eye(n), np.eye(m)
    for t, g in enumerate(gradients, 1):
        first = B1 * first + (1 - B1) * g
        second = B2 * second + (1 - B2) * (q_left.T @ g @ q_right) ** 2
        rotated = q_left.T @ first @ q_right / (1 - B1**t)
        w = w - LR * (q_left @ (rotated / (np.sqrt(second / (1 - B2**t)) + EPS)) @ q_right.T + DECAY * w)
        left, right = B2 * left + (1 - B2) * g @ g.T, B2 * right + (1 - B2) * g.T @ g
        if (t - 1) % EVERY == 0:
            q_left = qr((left + 1e-6 * np.trace(left) / n * np.eye(n)) @ q_left)[0]
            q_right = qr((right + 1e-6 * np.trace(right) / m * np.eye(m)) @ q_right)[0]
    return w


HYPERS = {"beta1": B1, "beta2": B2, "eps": EPS, "weight_decay": DECAY, "every": float(EVERY)}


@pytest.mark.parametrize("shape", [(4, 3), (3, 5), (1, 4), (4, 1), (3, 2, 2)])
@pytest.mark.parametrize(("name", "reference"), [("shampoo", shampoo), ("soap", soap)])
@pytest.mark.parametrize("form", ["hand", "program"])
def test_parameters_follow_the_paper(
    name: str, reference: Callable[[Array, list[Array]], Array], shape: tuple[int, ...], form: str
) -> None:
    start, *gradients = random_gradients(shape, STEPS, seed=7)
    row = BASELINES[name]
    p = nn.Parameter(start.clone())
    if form == "hand":
        optimizer: Optimizer = row.optimizer([p], lr=LR, **row.by_hand(**HYPERS))  # type: ignore[call-arg]
    else:
        optimizer = ProgramOptimizer([p], row.program, lr=LR, **HYPERS)
    for p.grad in gradients:
        optimizer.step()
    expected = reference(start.flatten(1).numpy(), [g.flatten(1).numpy() for g in gradients])
    torch.testing.assert_close(p.detach().flatten(1), torch.from_numpy(expected), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", [Shampoo, SOAP])
def test_vectors_and_long_sides_are_trained_by_adamw(kind: type[Shampoo] | type[SOAP]) -> None:
    shapes = ((2, LARGEST_SIDE + 1), (5,), (), (2, 3))
    hand = [nn.Parameter(torch.ones(s, dtype=torch.float64)) for s in shapes]
    options = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.2}
    optimizer = kind(hand, **options)  # type: ignore[arg-type]
    other = [nn.Parameter(p.detach().clone()) for p in hand[:3]]
    adamw = torch.optim.AdamW(other, **options)  # type: ignore[arg-type]
    for seed in range(3):
        for p, q in zip(hand, [*other, None], strict=True):
            p.grad = random_gradients(tuple(p.shape), 0, seed)[0]
            if q is not None:
                q.grad = p.grad.clone()
        optimizer.step()
        adamw.step()
    torch.testing.assert_close(hand[:3], other, rtol=1e-12, atol=1e-12)
    assert ["l" in optimizer.state[p] for p in hand] == [False, False, False, True]


@pytest.mark.parametrize("name", ["shampoo", "soap"])
def test_zero_gradients_move_nothing_but_by_decay(name: str) -> None:
    """Before any gradient and after: singular matrices have finite roots, and there is no 0 / 0."""
    row = BASELINES[name]
    for make in (row.optimizer, lambda ps, **o: ProgramOptimizer(ps, row.program, **o)):
        p = nn.Parameter(torch.ones(3, 4))
        optimizer = make([p], lr=0.1, weight_decay=0.0)
        for scale in (0.0, 0.0, 1.0, 0.0, 1e-20, 1e15):
            p.grad = scale * torch.ones(3, 4)
            optimizer.step()
            assert p.isfinite().all()
            assert torch.equal(p, torch.ones(3, 4)) == (not optimizer.state[p]["m"].any())


@pytest.mark.parametrize("name", ["shampoo", "soap"])
def test_preconditioned_steps_are_the_same_in_rotated_coordinates_of_one_side(name: str) -> None:
    """What sets them apart from AdamW: once bases have settled, a rotation of rows commutes with a step."""
    start, *gradients = random_gradients((3, 3), 1, seed=11)
    q, _ = torch.linalg.qr(random_gradients((3, 3), 0, seed=12)[0])
    ends = []
    for rotation in (torch.eye(3).double(), q):
        p = nn.Parameter(rotation @ start)
        optimizer = ProgramOptimizer([p], BASELINES[name].program, lr=0.01, weight_decay=0.0, every=1.0, eps=1e-12)
        for _ in range(400):
            p.grad = rotation @ gradients[0]
            optimizer.step()
        before = p.detach().clone()
        optimizer.step()
        ends.append(rotation.T @ (p.detach() - before))
    torch.testing.assert_close(ends[0] / ends[0].norm(), ends[1] / ends[1].norm(), rtol=0, atol=1e-6)
