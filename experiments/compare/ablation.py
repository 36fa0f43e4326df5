"""Which statements of a program matter: delete each, train, compare; then delete all that can go.

Simplification by rules keeps a program's meaning. Ablation goes further: it removes what training shows to have no
effect, as was done by hand with Lion's raw find.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from optforge.experiments.compare.statistics import Interval, mean_interval
from optforge.experiments.errors import FailedError, UserError
from optforge.experiments.files import check_can_write, finite_or_null, write_atomic
from optforge.experiments.programs.names import resolve_program
from optforge.primitives import Const, Instr, Kind, Program, print_program
from optforge.primitives.program import Arg, show_arg
from optforge.search.fitness.evaluator import Evaluator, Fitness, Status

Progress = Callable[[str], None]
LADDER = tuple(float(f"{10 ** (k / 2):.3g}") for k in range(-7, 0))


@dataclass(frozen=True)
class Effect:
    """What deleting one statement does.

    Attributes:
        statement: its text.
        instead: what its users read in its place: the best of its arguments.
        difference: mean validation loss without it minus with it; infinite if it no longer trains.
        interval: of that difference, paired over seeds; None if it no longer trains.
        program: what remains.
        harmless: whether the program is neither significantly worse without it nor worse by more than the tolerance
            (few seeds and an outlier make anything insignificant).
        failed: why it could not be evaluated, which says nothing of the statement; empty if it could.
    """

    statement: str
    instead: str
    difference: float
    interval: Interval | None
    program: Program
    harmless: bool
    failed: str = ""


@dataclass(frozen=True)
class Ablation:
    """Outcome of `ablate`.

    Attributes:
        effects: of each live statement of the program as given, in order.
        removed: texts of the statements removed, in order of removal.
        program: the smallest program found that is not significantly worse than the one given.
        interval: of its validation loss minus the original's, paired over seeds; None if nothing could be removed.
    """

    effects: tuple[Effect, ...]
    removed: tuple[str, ...]
    program: Program
    interval: Interval | None


def ablate_command(name: str, *, task: str, seeds: int, steps: int | None, json_file: Path | None) -> None:
    """`optforge ablate`: print the effect of each statement and what remains; write it as JSON if asked to.

    Raises:
        UserError: if something named does not exist; FailedError if the program does not train.
    """
    import torch

    from optforge.experiments.tasks import get_task
    from optforge.search.fitness.sweep import Sweep

    torch.set_num_threads(1)
    _, program = resolve_program(name)
    check_can_write("--json", json_file)
    if seeds < 2:
        raise UserError(f"--seeds must be at least 2, got {seeds}")
    protocol = Sweep(get_task(task), LADDER, tuple(range(seeds)), steps or 0)
    try:
        found = ablate(program, protocol, progress=lambda words: print(words, file=sys.stderr))
    except ValueError as error:
        raise FailedError(str(error)) from None
    rows = [(e, "no longer trains" if e.interval is None else f"{e.difference:+.4g}") for e in found.effects]
    rows = [(e, f"failed: {e.failed[:60]}" if e.failed else change) for e, change in rows]
    print(f"mean change of the {task} validation loss when a statement is left out, over {seeds} seeds:")
    for effect, change in rows:
        interval = "" if effect.interval is None else f"[{effect.interval.low:+.3g}, {effect.interval.high:+.3g}]"
        print(f"  {change:>16} {interval:24} {effect.statement}  (instead: {effect.instead})")
    print(f"removed: {'; '.join(found.removed) or 'nothing'}\n\n{print_program(found.program)}", end="")
    if json_file is not None:
        effects = [asdict(e) | {"program": print_program(e.program)} for e in found.effects]
        content = {"task": task, "seeds": seeds, "effects": effects, "removed": found.removed}
        content |= {"program": print_program(found.program), "interval": found.interval and asdict(found.interval)}
        write_atomic(json_file, json.dumps(finite_or_null(content), indent=1) + "\n")


def ablate(
    program: Program,
    evaluator: Evaluator,
    *,
    level: float = 0.95,
    tolerance: float = 0.02,
    progress: Progress | None = None,
) -> Ablation:
    """Effect of every statement, then backward elimination down to a smallest program that is not worse.

    Each round deletes the statement whose deletion leaves the lowest loss, as long as the result is not significantly
    worse than the *original* (so that small losses do not add up unseen). Greedy: a smaller program may exist.

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
    reference = evaluator([current])[0]
    if reference.status is not Status.OK:
        raise ValueError(f"the program does not train: {reference.reason}")
    if len(reference.by_seed) < 2:
        raise ValueError("ablation compares over seeds; evaluate with at least two")
    say(f"{len(current.body)} statements, one at a time")
    first = effects = _effects(current, reference, evaluator, level, tolerance)
    removed: list[str] = []
    interval = None
    while harmless := [e for e in effects if e.harmless]:
        best = min(harmless, key=lambda e: e.difference)
        removed.append(best.statement)
        current, interval = best.program, best.interval
        say(f"without {best.statement}: {len(current.body)} left")
        effects = _effects(current, reference, evaluator, level, tolerance)
    return Ablation(tuple(first), tuple(removed), current, interval)


def _effects(
    program: Program, reference: Fitness, evaluator: Evaluator, level: float, tolerance: float
) -> list[Effect]:
    variants = [(i, arg, v) for i in range(len(program.body)) for arg, v in _without(program, i)]
    fitnesses = evaluator([variant for _, _, variant in variants])
    best: dict[int, Effect] = {}
    for (index, arg, variant), fitness in zip(variants, fitnesses, strict=True):
        trains = fitness.status is Status.OK
        paired = np.subtract(fitness.by_seed, reference.by_seed) if trains else np.array([np.inf])
        interval = mean_interval(paired, level) if trains else None
        text = f"x{index} = {program.body[index]}"
        difference = float(paired.mean())
        harmless = interval is not None and interval.low <= 0 and difference <= tolerance * reference.score
        failed = fitness.reason if fitness.status is Status.FAILED else ""
        effect = Effect(text, show_arg(arg), difference, interval, variant, harmless, failed)
        if index not in best or effect.difference < best[index].difference:
            best[index] = effect
    return [best[i] for i in sorted(best)]


def _without(program: Program, index: int) -> Iterator[tuple[Arg, Program]]:
    """The program without statement `index`, for each value of the same kind that may take its place."""
    kind = program.kinds[index]
    seen: set[Arg] = set()
    choices: Sequence[Arg] = [a for a in program.body[index].args if program.kind_of(a) is kind]
    if not choices and kind is Kind.SCALAR:
        choices = [Const(1.0)]
    for choice in choices:
        if choice in seen:
            continue
        seen.add(choice)

        def moved(arg: Arg, choice: Arg = choice) -> Arg:
            arg = choice if type(arg) is int and arg == index else arg
            return arg - 1 if type(arg) is int and arg > index else arg

        body = [Instr(op, tuple(map(moved, args))) for i, (op, args) in enumerate(program.body) if i != index]
        following = tuple(map(moved, program.next_state))
        yield (
            choice,
            Program(
                program.state, program.hypers, tuple(body), moved(program.update), following, program.fallback
            ).pruned(),
        )
