"""Rules for which no package is exact enough, against the algorithms of their papers written down in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from support.strategies import random_gradients
from support.training_runs import assert_equal, train
from torch import Tensor

from optforge.baselines import BASELINES
from optforge.primitives import ProgramOptimizer

SHAPES = ((4, 3), (5,), (), (2, 3, 2))
LR, STEPS = 0.01, 30

Rule = Callable[[Tensor, Iterator[Tensor]], Iterator[Tensor]]
"""From a starting point and the gradients of each step to the points after each."""


def laprop(p: Tensor, gradients: Iterator[Tensor]) -> Iterator[Tensor]:
    """Ziyin et al. 2020, algorithm 1, μ = 0.9, ν = 0.999, ε = 1e-15."""
    n = m = torch.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        n = 0.999 * n + 0.001 * g**2
        m = 0.9 * m + 0.1 * g / ((n / (1 - 0.999**t)).sqrt() + 1e-15)
        p = p - LR * m / (1 - 0.9**t)
        yield p


def yogi(p: Tensor, gradients: Iterator[Tensor]) -> Iterator[Tensor]:
    """Zaheer et al. 2018, algorithm 2, with the corrections and the initial 1e-6 of the authors' code."""
    m, v = torch.zeros_like(p), torch.full_like(p, 1e-6)
    for t, g in enumerate(gradients, 1):
        m = 0.9 * m + 0.1 * g
        v = torch.where(v > g**2, v - 0.001 * g**2, v + 0.001 * g**2)
        p = p - LR * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-3)
        yield p


def mars(p: Tensor, gradients: Iterator[Tensor]) -> Iterator[Tensor]:
    """Yuan et al. 2024, algorithm 2 (MARS-AdamW, the approximate version), γ = 0.025, β = (0.95, 0.99)."""
    m = v = torch.zeros_like(p)
    before = None
    for t, g in enumerate(gradients, 1):
        c = g + 0.025 * 0.95 / 0.05 * (g - (g if before is None else before))
        before = g
        c = c / c.norm() if c.norm() > 1 else c
        m, v = 0.95 * m + 0.05 * c, 0.99 * v + 0.01 * c**2
        p = p - LR * (m / (1 - 0.95**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
        yield p


def adam_mini(p: Tensor, gradients: Iterator[Tensor]) -> Iterator[Tensor]:
    """Zhang et al. 2024, algorithm 1, with a block for each row of a matrix, and one for anything else."""
    blocks = list(range(len(p))) if p.ndim >= 2 else [...]
    m, v = torch.zeros_like(p), [torch.zeros(()) for _ in blocks]
    for t, g in enumerate(gradients, 1):
        p, m = (1 - LR * 0.01) * p, 0.9 * m + 0.1 * g
        for i, block in enumerate(blocks):
            v[i] = 0.999 * v[i] + 0.001 * (g[block] ** 2).mean()
            p[block] = p[block] - LR * m[block] / (1 - 0.9**t) / ((v[i] / (1 - 0.999**t)).sqrt() + 1e-8)
        yield p.clone()


def quintic(x: Tensor) -> Tensor:
    """What five steps of Jordan et al. 2024 make of a matrix, by its singular values."""
    u, s, vt = torch.linalg.svd(x.flatten(1), full_matrices=False)
    s = s / (s.norm() + 1e-7)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return ((u * s) @ vt).view_as(x)


def muon_original(p: Tensor, gradients: Iterator[Tensor]) -> Iterator[Tensor]:
    """Jordan et al. 2024, with √max(1, rows / columns)."""
    m, size = torch.zeros_like(p), max(1.0, len(p) ** 2 / p.numel()) ** 0.5
    for g in gradients:
        m = 0.95 * m + g
        p = (1 - LR * 0.1) * p - LR * size * quintic(g + 0.95 * m)
        yield p


def normuon(p: Tensor, gradients: Iterator[Tensor]) -> Iterator[Tensor]:
    """Li et al. 2025, algorithm 1, with Nesterov's momentum."""
    m, v = torch.zeros_like(p), torch.zeros(len(p), dtype=p.dtype)
    for g in gradients:
        m = 0.95 * m + g  # a sum in place of the paper's average: the size is divided out
        o = quintic(g + 0.95 * m)
        v = 0.95 * v + 0.05 * (o**2).flatten(1).mean(1)
        o = (o.flatten(1) / (v.sqrt() + 1e-8)[:, None]).view_as(p)
        p = p - LR * 0.1 * p - LR * 0.2 * p.numel() ** 0.5 / o.norm() * o
        yield p


def adamuon(p: Tensor, gradients: Iterator[Tensor]) -> Iterator[Tensor]:
    """Si et al. 2025, version 3, algorithm 1."""
    m = v = torch.zeros_like(p)
    for g in gradients:
        m = 0.95 * m + g
        o = quintic(torch.where(m > 0, 1.0, -1.0).to(p))
        v = 0.95 * v + 0.05 * o**2
        o = o / (v.sqrt() + 1e-8)
        p = p - LR * (0.2 * p.numel() ** 0.5 / o.norm() * o + 0.1 * p)
        yield p


def hyperball(p: Tensor, updates: Iterator[Tensor]) -> Iterator[Tensor]:
    """Wen et al. 2026: ``W ← R · Normalize(W - η R · Normalize(u))``."""
    radius = p.norm()
    for u in updates:
        p = p - LR * radius * u / u.norm()
        p = radius * p / p.norm()
        yield p


def adam_h(p: Tensor, gradients: Iterator[Tensor]) -> Iterator[Tensor]:
    def updates() -> Iterator[Tensor]:
        m = v = torch.zeros_like(p)
        for t, g in enumerate(gradients, 1):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            yield m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)

    return hyperball(p, updates())


def muon_h(p: Tensor, gradients: Iterator[Tensor]) -> Iterator[Tensor]:
    def updates() -> Iterator[Tensor]:
        m = torch.zeros_like(p)
        for g in gradients:
            m = 0.95 * m + g
            yield quintic(g + 0.95 * m)

    return hyperball(p, updates())


ANY: dict[str, Rule] = {"laprop": laprop, "yogi": yogi, "mars": mars, "adam-mini": adam_mini}
MATRICES: dict[str, Rule] = {
    "muon-original": muon_original, "normuon": normuon, "adamuon": adamuon, "adam-h": adam_h, "muon-h": muon_h
}  # fmt: skip


@pytest.mark.parametrize("form", ["hand", "program"])
@pytest.mark.parametrize("name", [*ANY, *MATRICES])
def test_rule_follows_its_paper(name: str, form: str) -> None:
    row, dims = BASELINES[name], (0, 1, 2, 3) if name in ANY else (2, 3)
    expected = []
    for seed, shape in enumerate(SHAPES):
        if len(shape) in dims:
            start, *gradients = random_gradients(shape, STEPS, seed)
            sized = (10 ** float(t % 5 - 3) * g for t, g in enumerate(gradients, 1))  # as `train` has them
            expected.append(list((ANY | MATRICES)[name](start, sized)))
    make = row.optimizer if form == "hand" else lambda ps, lr: ProgramOptimizer(ps, row.program, lr)
    found = train(lambda ps: make(ps, lr=LR), STEPS, dims=dims)
    assert_equal(found, [list(points) for points in zip(*expected, strict=True)])


def test_hyperball_keeps_every_norm_and_turns_by_the_rate() -> None:
    """The angle between two steps has the tangent `lr`, if the direction is at right angles to the matrix."""
    for name in ("adam-h", "muon-h"):
        start = torch.eye(4, dtype=torch.float64)
        p = torch.nn.Parameter(start.clone())
        optimizer = ProgramOptimizer([p], BASELINES[name].program, lr=0.1)
        p.grad = torch.ones(4, 4, dtype=torch.float64).tril(-1)  # elements where the identity has zeros
        optimizer.step()
        moved = p.detach()
        assert float(moved.norm()) == pytest.approx(2, rel=1e-14)
        cosine = float((moved * start).sum()) / 4
        assert (1 / cosine**2 - 1) ** 0.5 == pytest.approx(0.1, rel=1e-6 if name == "adam-h" else 0.1)
