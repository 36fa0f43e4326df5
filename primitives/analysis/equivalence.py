"""Whether two programs are the same rule: proved, refuted by a counter-example, or not decided."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from optforge.primitives.analysis.simplify import simplify
from optforge.primitives.backends.interpret import Simulation
from optforge.primitives.program import Const, Program

SHAPE = (3, 5)
STEPS = 20
TRIALS = 8
TOLERANCE = 1e-6  # relative; the rules and the order of sums change rounding only


class Answer(enum.StrEnum):
    """What is known about the equality of two programs."""

    PROVED = "proved"
    REFUTED = "refuted"
    UNDECIDED = "not decided"


@dataclass(frozen=True)
class Equivalence:
    """Outcome of `equivalent`.

    Attributes:
        answer: proved, refuted or not decided.
        reason: a sentence; for a refutation the counter-example.
        factor: q's update divided by p's, if they are equal up to a learning-rate factor; 1 if they are equal.
        seed, step: where the counter-example is: seed of the probe and step, from 1; -1 otherwise.
        updates: the two differing numbers of a counter-example.
    """

    answer: Answer
    reason: str
    factor: float = 1.0
    seed: int = -1
    step: int = -1
    updates: tuple[float, float] | None = None


def equivalent(p: Program, q: Program, *, up_to_rate: bool = False) -> Equivalence:
    """Whether `p` and `q`, at their default hyperparameters, give the same updates for all gradients.

    Proved means that simplification makes them structurally the same, by rules that hold in exact arithmetic wherever
    both programs are defined, and that no probe was found where only one of them is (as √g² and g for negative g).
    Refuted means that an input was found on which they differ by more than a millionth, or of which one makes NaN.
    Undefined points of measure zero (0/0) do not count.

    Args:
        p, q: the programs.
        up_to_rate: also accept updates that differ by one constant positive factor, which a learning rate absorbs.
    """
    first, second = simplify(p), simplify(q)
    if first.key == second.key or (up_to_rate and _without_factor(first)[0].key == _without_factor(second)[0].key):
        partial = _search_difference(p, q, up_to_rate, only_undefined=True)
        if partial.answer is Answer.REFUTED:
            return partial
    if first.key == second.key:
        return Equivalence(Answer.PROVED, "they simplify to the same program")
    if up_to_rate:
        (first, a), (second, b) = _without_factor(first), _without_factor(second)
        if first.key == second.key:
            reason = f"they simplify to the same program, with updates in the ratio 1 : {b / a:.6g}"
            return Equivalence(Answer.PROVED, reason, factor=b / a)
    return _search_difference(p, q, up_to_rate)


def _without_factor(program: Program) -> tuple[Program, float]:
    """A simplified program without a constant positive factor of its update, and that factor."""
    factor, update = 1.0, program.update
    while type(update) is int:
        op, args = program.body[update]
        literal = args[-1]
        if op not in ("mul", "div") or type(literal) is not Const or literal.value <= 0:
            break
        factor *= literal.value if op == "mul" else 1 / literal.value
        update = args[0]
    if update == program.update or program.kind_of(update) is not program.kind_of(program.update):
        return program, 1.0
    stripped = Program(program.state, program.hypers, program.body, update, program.next_state, program.fallback)
    return stripped.pruned(), factor


def _search_difference(p: Program, q: Program, up_to_rate: bool, *, only_undefined: bool = False) -> Equivalence:
    ratio = None
    for seed in range(TRIALS):
        for step, (u, v) in enumerate(zip(random_run(p, seed), random_run(q, seed), strict=True), 1):
            if up_to_rate and ratio is None:
                ratio = _common_ratio(u, v)
            scaled = u * ratio if ratio is not None else u
            size = torch.maximum(scaled.abs(), v.abs())
            differs = scaled.isnan() != v.isnan()
            if not only_undefined:
                differs |= (scaled - v).abs() > TOLERANCE * size + 1e-12
            if bool(differs.any()):
                at = tuple(int(i) for i in differs.nonzero()[0])
                pair = (float(u[at]), float(v[at]))
                factor = "" if ratio is None else f" (after scaling the first by {float(ratio):.6g})"
                reason = f"on probe {seed} the updates at step {step} differ: {pair[0]:.9g} and {pair[1]:.9g}{factor}"
                return Equivalence(Answer.REFUTED, reason, seed=seed, step=step, updates=pair)
    tried = f"no difference in {TRIALS} random probes of {STEPS} steps, but no proof by the rules either"
    return Equivalence(Answer.UNDECIDED, tried, factor=1.0 if ratio is None else float(ratio))


def _common_ratio(u: Tensor, v: Tensor) -> Tensor | None:
    usable = (u != 0) & u.isfinite() & v.isfinite()
    if not bool(usable.any()):
        return None
    ratio = (v[usable] / u[usable]).median()
    return ratio if bool(ratio > 0) else None


def random_run(program: Program, seed: int) -> Iterator[Tensor]:
    """Updates on random inputs that do not depend on the program; gradients of very different sizes."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(SHAPE, generator=generator, dtype=torch.float64)

    scale = 10.0 ** torch.randint(-6, 2, (), generator=generator).double()
    simulation = Simulation(program)
    for step in range(1, STEPS + 1):
        g = normal() * scale * 10 ** (0.5 * normal())
        signals = {
            "g": g,
            "p": normal(),
            "lr": 0.1 * torch.rand((), generator=generator, dtype=torch.float64),
            "step": torch.tensor(float(step), dtype=torch.float64),
            "progress": torch.tensor(step / STEPS, dtype=torch.float64),
            "global_norm": 2 * torch.linalg.vector_norm(g),
        }
        yield simulation.step(signals).update
