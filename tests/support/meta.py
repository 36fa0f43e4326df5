"""Shared by tests of several files."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import torch

from optforge.learned.meta.tasks import quadratics

STEPS = 12


class HeavyBall:
    """A rule with two weights: ``m ← b m + g``, update ``a m``. Its losses are smooth in both."""

    name = "heavy-ball"
    settings = MappingProxyType({})
    shapes = MappingProxyType({"a": (1,), "b": (1,)})

    def init(self, p):
        return {"m": torch.zeros_like(p)}

    def step(self, weights, ps, gs, states, step):
        ms = [weights["b"] * s["m"] + g for s, g in zip(states, gs, strict=True)]
        return [weights["a"] * m for m in ms], [{"m": m} for m in ms]


def problem(root=False, late=0.0):
    return replace(quadratics(3, horizon=STEPS, workers=2), root=root, late=late)


def drawn(count):
    """The same two instances, in float64, in turn."""
    instance, params = problem().draw(torch.Generator().manual_seed(1), 2)
    return tuple(
        {k: v.double().repeat(count // 2, *[1] * (v.ndim - 1)) for k, v in d.items()} for d in (instance, params)
    )


THETA = torch.tensor([0.02, 0.6], dtype=torch.float64)
