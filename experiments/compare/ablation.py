"""Which statements of a program matter: delete each, train, compare; then delete all that can go.

Simplification by rules keeps a program's meaning. Ablation goes further: it removes what training shows to have no
effect, as was done by hand with Lion's raw find.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from optforge.experiments.compare.statistics import Interval, mean_interval
from optforge.primitives import Const, Instr, Kind, Program
from optforge.primitives.program import Arg, show_arg
from optforge.search.fitness.evaluator import Evaluator, Fitness, Status

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Effect:
    """What deleting one statement does.

    Attributes:
        statement: its text.
        instead: what its users read in its place: the best of its arguments.
        difference: mean validation loss without it minus with it; infinite if it no longer trains.
        interval: of that difference, paired over seeds; None if it no longer trains.
        harmless: whether the program is neither significantly worse without it nor worse by more than the tolerance
            (few seeds and an outlier make anything insignificant).
        failed: why it could not be evaluated, which says nothing of the statement; empty if it could.
        index, choice: position of the statement in the program, and the argument that is read in its place.
    """

    statement: str
    instead: str
    difference: float
    interval: Interval | None
    harmless: bool
    failed: str
    index: int
    choice: Arg

    def as_json(self) -> dict[str, Any]:
        """The effect in JSON's own types, but for numbers that are not finite."""
        interval = None if self.interval is None else asdict(self.interval)
        return {"statement": self.statement, "instead": self.instead, "difference": self.difference,
                "interval": interval, "harmless": self.harmless, "failed": self.failed}  # fmt: skip


@dataclass(frozen=True)
class Ablation:
    """Outcome of `ablate`.

    Attributes:
        effects: of each live statement of the program as given, in order.
        removed: texts of the statements removed.
        program: the smallest program found that is not significantly worse than the one given.
        interval: of its validation loss minus the original's, paired over seeds; None if nothing could be removed.
    """

    effects: tuple[Effect, ...]
    removed: tuple[str, ...]
    program: Program
    interval: Interval | None


def ablate(
    program: Program,
    evaluator: Evaluator,
    *,
    level: float = 0.95,
    tolerance: float = 0.02,
    progress: Progress | None = None,
) -> Ablation:
    """Effect of every statement, then the longest deletion that leaves the program not worse.

    Harmless statements are deleted together, the least missed first, as many as leave the result not significantly
    worse than the *original*. The next one, with which it is, stays; the rest is tried again. So two statements of
    which one is needed do not both go. A smaller program may exist.

    Args:
        program: what to ablate; must train under `evaluator`.
        evaluator: gives the loss of each seed at the best learning rate; three seeds are the least for an interval.
        level: of the paired intervals, each for itself.
        tolerance: share of the original's loss by which the result may be worse at most.
        progress: told in a few words what is being done.

    Raises:
        ValueError: if the program itself does not train, or the evaluator has fewer than two seeds.
    """
    say = progress or (lambda words: None)
    current = program.pruned()
    say(f"{len(current.body)} statements, one at a time")
    variants = [(i, choice) for i in range(len(current.body)) for choice in _choices(current, i)]
    reference, *fitnesses = evaluator([current, *(_without(current, {i: choice}) for i, choice in variants)])
    if reference.status is not Status.OK:
        raise ValueError(f"the program does not train: {reference.reason}")
    if len(reference.by_seed) < 2:
        raise ValueError("ablation compares over seeds; evaluate with at least two")
    effects = _effects(current, variants, [_difference(f, reference, level, tolerance) for f in fitnesses])
    removed: dict[int, Arg] = {}
    interval = None
    left = sorted((e for e in effects if e.harmless), key=lambda e: e.difference)
    while left:
        say(f"without {len(removed)} to {len(removed) + len(left)} statements")
        more = [removed | {e.index: e.choice for e in left[: n + 1]} for n in range(len(left))]
        fitnesses = evaluator([_without(current, each) for each in more])
        tested = [_difference(fitness, reference, level, tolerance) for fitness in fitnesses]
        kept = next((n for n in reversed(range(len(left))) if tested[n].harmless), -1)
        if kept >= 0:
            removed, interval = more[kept], tested[kept].interval
        left = left[kept + 2 :]
    texts = tuple(e.statement for e in effects if e.index in removed)
    return Ablation(tuple(effects), texts, _without(current, removed), interval)


class _Tested(NamedTuple):
    difference: float
    interval: Interval | None
    harmless: bool
    failed: str = ""


def _difference(fitness: Fitness, reference: Fitness, level: float, tolerance: float) -> _Tested:
    """Of a variant to the original, paired over seeds."""
    if fitness.status is not Status.OK:
        return _Tested(math.inf, None, False, fitness.reason if fitness.status is Status.FAILED else "")
    paired = np.subtract(fitness.by_seed, reference.by_seed)
    interval, difference = mean_interval(paired, level), float(paired.mean())
    return _Tested(difference, interval, interval.low <= 0 and difference <= tolerance * reference.score)


def _effects(program: Program, variants: Sequence[tuple[int, Arg]], tests: Sequence[_Tested]) -> list[Effect]:
    """What the best deletion of each statement does."""
    best: dict[int, Effect] = {}
    for (index, choice), tested in zip(variants, tests, strict=True):
        text = f"x{index} = {program.body[index]}"
        effect = Effect(text, show_arg(choice), *tested, index, choice)
        if index not in best or effect.difference < best[index].difference:
            best[index] = effect
    return [best[i] for i in sorted(best)]


def _choices(program: Program, index: int) -> list[Arg]:
    """What may take the place of statement `index`: those of its arguments that have its kind."""
    kind = program.kinds[index]
    found = dict.fromkeys(a for a in program.body[index].args if program.kind_of(a) is kind)
    return list(found) or ([Const(1.0)] if kind is Kind.SCALAR else [])


def _without(program: Program, removed: Mapping[int, Arg]) -> Program:
    """The program without these statements; others read in their place what is given for each."""
    kept = [i for i in range(len(program.body)) if i not in removed]
    number = {i: n for n, i in enumerate(kept)}

    def moved(arg: Arg) -> Arg:
        while type(arg) is int and arg in removed:  # what takes its place comes before it
            arg = removed[arg]
        return number[arg] if type(arg) is int else arg

    body = [Instr(program.body[i].op, tuple(map(moved, program.body[i].args))) for i in kept]
    following = tuple(map(moved, program.next_state))
    return Program(
        program.state, program.hypers, tuple(body), moved(program.update), following, program.fallback
    ).pruned()
