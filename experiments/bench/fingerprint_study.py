"""How well fingerprints tell programs apart: against exact trajectories of 50 steps, over many random programs.

``python -m experiments.bench.fingerprint_study --programs 20000`` writes docs/fingerprints.md.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from optforge.baselines import BASELINES
from optforge.experiments.bench.fingerprint_report import report
from optforge.experiments.files import write_atomic
from optforge.experiments.programs.random_programs import random_program
from optforge.primitives import Program, subset
from optforge.primitives.analysis.fingerprint import STEPS as PROBE_STEPS
from optforge.primitives.analysis.fingerprint import _digits as digits
from optforge.primitives.analysis.fingerprint import _probes as probes
from optforge.primitives.analysis.fingerprint import behave_many
from optforge.primitives.backends.op_loops import SHAPE
from optforge.primitives.backends.together import Together
from optforge.search.duplicates.cache import depends_on_gradient
from optforge.search.space.mutation import Space, mutate

STEPS = 50
SCALES = (1e-5, 1e-3, 1e-1, 1.0, 100.0)  # of gradients in each trial; the last is beyond what training shows
TRIALS = len(SCALES)
USUAL = TRIALS - 1
TOLERANCE = 1e-6
CHAIN = 20  # mutations from AdamW after which a chain begins anew


SETTING = {"steps": STEPS, "trials": USUAL, "probes": PROBE_STEPS, "elements": SHAPE[0] * SHAPE[1]}


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

    scale = SCALES[trial]
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
        together = Together(trial_inputs(trial), follow=True)
        for start in range(0, len(programs), 128):
            for i, ran in enumerate(together(programs[start : start + 128]), start):
                found[i, trial] = torch.from_numpy(ran.updates).flatten(1)
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


def divided(members: Sequence[int], runs: Tensor) -> list[list[int]]:
    """`members` by equal trajectories, the largest class first."""
    found: list[list[int]] = []
    for i in members:
        home = next((group for group in found if same(runs[group[0]], runs[i])), None)
        if home is None:
            found.append([i])
        else:
            home.append(i)
    return sorted(found, key=len, reverse=True)


def classes(runs: Tensor) -> list[list[int]]:
    """All programs by equal trajectories; only those are compared of which a positive projection nearly agrees."""
    weights = torch.rand(runs[0].shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    first = torch.nan_to_num(runs[:, :, 0], nan=3.0, posinf=5.0, neginf=7.0).abs().flatten(1)
    size = (first * weights[:, 0].flatten()).sum(1)
    order = size.argsort().tolist()
    found: list[list[int]] = []
    near: list[int] = []
    last = -1.0
    for i in order:
        if not float(size[i]) <= last * (1 + 1e-5) + 1e-300:
            found += divided(near, runs)
            near = []
        last = float(size[i])
        near.append(i)
    return found + divided(near, runs)


class Figures(NamedTuple):
    """What was counted, and the pairs of programs that collided."""

    counts: dict[str, int]
    collisions: list[tuple[Program, Program]]
    rate: float  # fingerprints per second of processor time


def study(programs: Sequence[Program]) -> Figures:
    """All figures on one set of programs."""
    begin = time.process_time()
    behaviours = behave_many(programs)
    seconds = time.process_time() - begin
    using = [(p, b) for p, b in zip(programs, behaviours, strict=True) if depends_on_gradient(p)]
    finite = [(p, b.fingerprint) for p, b in using if b.finite]
    by_key: dict[str, set[str]] = defaultdict(set)
    distinct: dict[str, tuple[Program, str]] = {}
    for program, fingerprint in finite:
        by_key[program.key].add(fingerprint)
        distinct.setdefault(program.key, (program, fingerprint))
    different = [p for p, _ in distinct.values()]
    prints = [fingerprint for _, fingerprint in distinct.values()]
    runs = trajectories(different)
    groups: dict[str, list[int]] = defaultdict(list)
    for i, fingerprint in enumerate(prints):
        groups[fingerprint].append(i)
    usual = runs[:, :USUAL]
    lost, beyond, collisions = 0, 0, []
    for group in groups.values():
        parts = divided(group, usual)
        lost += len(parts) - 1
        beyond += len(divided(group, runs)) - len(parts)
        collisions += [(different[parts[0][0]], different[part[0]]) for part in parts[1:]]
    stateless = update_prints(different)
    missed = only_state = 0
    for group in classes(usual):
        missed += len({prints[i] for i in group}) - 1
        only_state += len({prints[i] for i in group}) - len({stateless[i] for i in group})
    counts = {
        "programs drawn": len(programs),
        "of which the gradient reaches the update": len(using),
        "of which finite on the probes": len(finite),
        "of these, merged by key": len(finite) - len(distinct),
        "distinct keys": len(distinct),
        "keys with more than one fingerprint": sum(len(found) > 1 for found in by_key.values()),
        "merged by fingerprint, beyond keys": len(distinct) - len(groups),
        "collisions: other rules lost by that": lost,
        "more for gradients of size 100": beyond,
        "misses: not merged, though trajectories are equal": missed,
        "of which differ on the probes in state only": only_state,
    }
    return Figures(counts, collisions, len(programs) / seconds)


def update_prints(programs: Sequence[Program]) -> list[str]:
    """Fingerprints of updates alone, without state."""
    bare = [Program(p.state, p.hypers, p.body, p.update, p.next_state) for p in programs]
    return [hashlib.blake2b(digits(ran.updates), digest_size=16).hexdigest() for ran in Together(probes())(bare)]


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=20_000, help="how many to draw (default: 20000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("docs/fingerprints.md"), help="where to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    drawn, chains = draw_programs(arguments.programs, arguments.seed)
    halves = {"random": study(drawn), "mutations of AdamW": study(chains)}
    text = report({name: (f.counts, f.collisions, f.rate) for name, f in halves.items()}, arguments.seed, SETTING)
    write_atomic(arguments.output, text)
    print(text)


if __name__ == "__main__":
    main()
