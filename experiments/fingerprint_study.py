"""How well fingerprints tell programs apart: against exact trajectories of 50 steps, over many random programs.

``python -m experiments.fingerprint_study --programs 20000`` writes docs/fingerprints.md.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from baselines import BASELINES
from experiments.files import write_atomic
from experiments.provenance import provenance
from experiments.random_programs import random_program
from primitives import Program, subset
from primitives.fingerprint import behave_many
from primitives.together import SHAPE, run_together
from search.mutation import Space, mutate

STEPS = 50
TRIALS = 4
TOLERANCE = 1e-6
CHAIN = 20  # mutations from AdamW after which a chain begins anew


def draw_programs(count: int, seed: int) -> tuple[list[Program], list[Program]]:
    """Half random well-typed programs, half programs on chains of mutations that begin at AdamW."""
    rng = random.Random(seed)
    ops = subset("all")
    drawn = [random_program(rng, ops) for _ in range(count // 2)]
    chains: list[Program] = []
    space = Space(ops)
    while len(chains) < count - len(drawn):
        program = BASELINES["adamw"].program
        for _ in range(CHAIN):
            program, _ = mutate(program, space, rng)
            chains.append(program)
    return drawn, chains[: count - len(drawn)]


def trial_inputs(trial: int) -> list[dict[str, Tensor]]:
    """Signals of each step, of sizes that differ between trials: nothing here is shared with the probes."""
    generator = torch.Generator().manual_seed(1000 + trial)

    def normal() -> Tensor:
        return torch.randn(SHAPE, generator=generator, dtype=torch.float64)

    scale = 10.0 ** (-4 + 2 * trial)
    start, lr = normal(), 0.1 * torch.rand((), generator=generator, dtype=torch.float64)
    steps = []
    for step in range(1, STEPS + 1):
        g = scale * normal() * 10 ** (0.5 * normal())
        g[torch.rand(SHAPE, generator=generator) < 0.03] = 0.0
        numbers = {"step": float(step), "progress": step / STEPS, "global_norm": 2 * float(torch.linalg.vector_norm(g))}
        steps.append({"g": g, "p": start, "lr": lr} | {n: torch.tensor(x).double() for n, x in numbers.items()})
    return steps


def trajectories(programs: Sequence[Program]) -> Tensor:
    """Updates of each program, which move its parameter: ``[programs, trials, steps, elements]``."""
    found = torch.empty(len(programs), TRIALS, STEPS, SHAPE[0] * SHAPE[1], dtype=torch.float64)
    for trial in range(TRIALS):
        steps = trial_inputs(trial)
        for start in range(0, len(programs), 128):
            values, updates, _ = run_together(programs[start : start + 128], steps, follow=True)
            found[start : start + len(updates), trial] = values.flatten(1)[torch.tensor(updates)]
    return found


def same(a: Tensor, b: Tensor) -> bool:
    """Equal trajectories: each number to a millionth, or to 1e-12 of the largest of its step; alike in what is not
    finite. What comes after a step that was not finite does not count."""
    usable = (a.isfinite() & b.isfinite()).all(-1).cumprod(1).bool()
    if bool((a.isfinite() != b.isfinite()).any(-1).cumprod(1).bool().logical_and(~usable)[:, 0].any()):
        return False
    size = torch.maximum(a.abs(), b.abs())
    largest = size.amax(-1, keepdim=True)
    close = (a - b).abs() <= TOLERANCE * size + 1e-12 * largest
    return bool((close.all(-1) | ~usable).all())


def classes(runs: Tensor) -> list[list[int]]:
    """Programs of equal trajectories, found by sorting a positive projection of them."""
    weights = torch.rand(runs[0].shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    first = torch.nan_to_num(runs[:, :, 0], nan=3.0, posinf=5.0, neginf=7.0).abs().flatten(1)
    size = (first * weights[:, 0].flatten()).sum(1)
    order = size.argsort().tolist()
    found: list[list[int]] = []
    recent: list[list[int]] = []
    last = -1.0
    for i in order:
        if not float(size[i]) <= last * (1 + 1e-5) + 1e-300:
            recent = []
        last = float(size[i])
        home = next((group for group in recent if same(runs[group[0]], runs[i])), None)
        if home is None:
            home = []
            recent.append(home)
            found.append(home)
        home.append(i)
    return found


def study(programs: Sequence[Program]) -> dict[str, float]:
    """All figures on one set of programs."""
    begin = time.process_time()
    behaviours = behave_many(programs)
    seconds = time.process_time() - begin
    finite = [(p, b.fingerprint) for p, b in zip(programs, behaviours, strict=True) if b.finite]
    by_key: dict[str, set[str]] = defaultdict(set)
    distinct: dict[str, tuple[Program, str]] = {}
    for program, fingerprint in finite:
        by_key[program.key].add(fingerprint)
        distinct.setdefault(program.key, (program, fingerprint))
    different = list(distinct.values())
    runs = trajectories([p for p, _ in different])
    prints = [fingerprint for _, fingerprint in different]
    groups: dict[str, list[int]] = defaultdict(list)
    for i, fingerprint in enumerate(prints):
        groups[fingerprint].append(i)
    merged = [(group[0], other) for group in groups.values() for other in group[1:]]
    collisions = [(i, j) for i, j in merged if not same(runs[i], runs[j])]
    missed = pairs = 0
    for group in classes(runs):
        counts = Counter(prints[i] for i in group)
        missed += len(counts) - 1
        pairs += (len(group) ** 2 - sum(n * n for n in counts.values())) // 2
    study.collisions = [(different[i][0], different[j][0]) for i, j in collisions]  # type: ignore[attr-defined]
    return {
        "programs": len(programs),
        "finite": len(finite),
        "merged by key": len(finite) - len(distinct),
        "keys with two fingerprints": sum(len(found) > 1 for found in by_key.values()),
        "distinct keys": len(distinct),
        "merged by fingerprint": len(merged),
        "collisions": len(collisions),
        "missed": missed,
        "missed pairs": pairs,
        "distinct trajectories": len(different) - (len(merged) - len(collisions)) - missed,
        "fingerprints per CPU-second": len(programs) / seconds,
    }
