"""Members that are behind are dropped for reasons of their own, and those that stay do not notice."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from support.evaluators import ADAMW, LION, SMALL, diverging, factored, normalised

from optforge.baselines import BASELINES
from optforge.primitives import Builder, Program
from optforge.search.fitness.evaluator import Fitness, Status
from optforge.search.fitness.sweep import Sweep
from optforge.search.training.loop import train_alone
from optforge.search.training.population import members as members_module
from optforge.search.training.race import Look, Race
from optforge.search.training.train import batches, train

PROTOCOL = Sweep(SMALL, rates=(1e-6, 1e-3, 1e-2, 1e-1), seeds=(0, 1), steps=40, precision="float64")
RACE = Race((Look(0.25, 0.3, 0.3), Look(0.5, 0.2, 0.2)))
PATIENT = Race((Look(0.25, math.inf, math.inf), Look(0.5, math.inf, math.inf)))
START = torch.tensor([2.0, 4.0])


def scaled(factor: float) -> Program:
    """Gradient descent with updates that much larger."""
    b = Builder()
    return b.build(b.g * factor)


def check_same(mine: Fitness, other: Fitness) -> None:
    assert mine.status is other.status
    assert mine.lr == pytest.approx(other.lr, nan_ok=True)
    assert mine.rungs == pytest.approx(other.rungs, rel=1e-9)


def window(*losses: float, noise: float = 0.0, steps: int = 8) -> torch.Tensor:
    """Losses of members, ``[steps, 2, members]``; seeds differ by 2, and steps by a noise that all share."""
    generator = torch.Generator().manual_seed(0)
    shared = noise * torch.randn(steps, 2, 1, generator=generator)
    return torch.tensor(losses) + shared + torch.tensor([[0.0], [2.0]])


def test_margins_are_shares_of_the_way_that_the_best_has_come() -> None:
    race = Race((Look(0.5, 0.1, 0.5),))
    # the best came from 2 to 1 (and from 4 to 3): 0.1 of that is 0.1
    found = race.behind(7, race.looks[0], window(1.0, 1.05, 1.15, 1.4, noise=3.0), START, [4])
    assert sorted(found) == [2, 3]
    assert found[2].loss == pytest.approx(found[2].standard + 0.15)
    assert str(found[3]).startswith("behind at step 7: ") and "best of its rates" in str(found[3])


def test_differences_within_chance_do_not_count() -> None:
    race = Race((Look(0.5, 0.1, 0.5),))
    generator = torch.Generator().manual_seed(0)
    losses = window(1.0, 1.15).repeat(4, 1, 1)
    losses[..., 1] += 0.5 * torch.randn(losses.shape[:2], generator=generator)  # of its own, not shared
    assert not race.behind(7, race.looks[0], losses, START, [2])
    losses[..., 1] += 1
    assert race.behind(7, race.looks[0], losses, START, [2])


def test_programs_are_compared_with_themselves_and_the_reference_alone() -> None:
    look, losses = Look(0.5, 0.1, 0.4), window(0.5, 1.0, 1.05, 1.5, 1.55)
    race = Race((look,))
    assert not race.behind(7, look, losses, START, [1, 2, 2])
    reference = window(0.9)[..., 0]  # 1.1 of the way; 0.44 of it may be missing, so that 1.34 is the limit
    found = race.behind(7, look, losses, START, [1, 2, 2], reference)
    assert sorted(found) == [3, 4] and "reference" in str(found[3])


def test_who_moves_away_from_the_start_is_no_standard_to_be_missed() -> None:
    race = Race((Look(0.5, 0.1, 0.5),))
    assert sorted(race.behind(7, race.looks[0], window(5.0, 6.0), START, [2])) == [1]


def test_members_out_of_the_race_are_neither_standard_nor_dropped_again() -> None:
    race = Race((Look(0.5, 0.1, 0.5),))
    losses = window(0.1, 1.0, 1.05)
    losses[..., 0] = math.inf
    assert not race.behind(7, race.looks[0], losses, START, [3])
    losses[:] = math.inf
    assert not race.behind(7, race.looks[0], losses, START, [3])


@pytest.mark.parametrize("compiler", [True, False])
def test_a_race_that_nobody_loses_changes_nothing(compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Diverged members give up their places, so that the others' state is moved, in every kind of rules."""
    if not compiler:
        monkeypatch.setattr(members_module, "library", lambda dtype: None)
    programs = (diverging(), ADAMW, normalised(), scaled(-1e300), factored(), LION, diverging(), diverging())
    protocol = dataclasses.replace(PROTOCOL, rates=PROTOCOL.rates[1:], steps=16)
    found = dataclasses.replace(protocol, race=PATIENT)(programs)
    for mine, reference in zip(found, dataclasses.replace(protocol, engine=train_alone)(programs), strict=True):
        check_same(mine, reference)
        assert mine.reason == reference.reason


def test_slow_rates_are_dropped_and_the_best_is_what_it_was() -> None:
    full, raced = (dataclasses.replace(PROTOCOL, race=race)([ADAMW])[0] for race in (PATIENT, RACE))
    assert raced.rungs[0] == math.inf and math.isfinite(full.rungs[0])
    assert (raced.score, raced.lr) == (pytest.approx(full.score, rel=1e-9), full.lr)
    assert raced.status is Status.OK


def test_a_program_behind_the_reference_has_a_status_that_says_so() -> None:
    slow, good = dataclasses.replace(PROTOCOL, race=RACE, reference=ADAMW)([scaled(1e-3), ADAMW])
    assert slow.status is Status.DROPPED and slow.score == math.inf
    assert slow.reason.startswith("behind at step ") and "the reference had" in slow.reason
    assert good.status is Status.OK
    assert dataclasses.replace(PROTOCOL, race=RACE)([scaled(1e-3)])[0].status is Status.OK


def test_what_becomes_of_a_program_does_not_depend_on_its_company() -> None:
    programs = [scaled(1e-3), ADAMW, diverging(), scaled(3.0), normalised(), LION, factored(), scaled(0.1)]
    evaluate = dataclasses.replace(PROTOCOL, race=RACE, reference=ADAMW)
    for program, together in zip(programs, evaluate(programs), strict=True):
        (alone,) = evaluate([program])
        check_same(together, alone)
        assert together.reason.split(":")[0] == alone.reason.split(":")[0]
    assert evaluate(programs) == evaluate(programs)


def test_a_reference_that_diverges_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        dataclasses.replace(PROTOCOL, race=RACE, reference=diverging())([ADAMW])


def test_batches_are_cut_to_memory() -> None:
    protocol = dataclasses.replace(PROTOCOL, steps=3)
    elements, slots = 64 * 6 + 6 + 6 * 10 + 10, 2
    member = elements * 8 * 2 * (2 + 2 * slots)  # two seeds
    programs = [ADAMW.with_defaults(eps=10.0**-k) for k in range(5)]
    trials = [trial for program in programs for trial in protocol.trials(program)]
    room, rates = 2 * 4 * member + 1, len(protocol.rates) * len(protocol.seeds)
    assert [len(batch) / rates for batch in batches(trials, room=room)] == [2, 2, 1]
    assert [len(batch) for batch in batches(trials, room=1)] == [2] * 20  # a rate with its seeds is the least
    assert [len(batch) / rates for batch in batches(trials, room=1, whole=True)] == [1] * 5  # a race needs all rates
    tight, whole = (train(trials, room=r) for r in (room, None))
    if torch.cuda.is_available():  # where sums of other batches are other sums
        assert [o.valid for o in tight] == pytest.approx([o.valid for o in whole], rel=1e-9)
    else:
        assert tight == whole


def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = dataclasses.replace(PROTOCOL, steps=3)
    programs = [ADAMW, LION, BASELINES["sgd"].program, normalised(), factored()]
    wanted = protocol(programs)
    original, sizes = members_module.train_members, list[int]()

    def small(task: object, members: list[object], *args: object, **options: object) -> object:
        sizes.append(len(members) // 4)
        if len(members) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory") if len(members) > 8 else MemoryError()
        return original(task, members, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(members_module, "train_members", small)
    found = protocol(programs)
    assert sizes == [5, 2, 1, 1, 3, 1, 2, 1, 1]
    for mine, reference in zip(found, wanted, strict=True):
        check_same(mine, reference)


@pytest.mark.parametrize("looks", [((0.5, 1, 1), (0.2, 1, 1)), ((0.0, 1, 1),), ((0.5, 0, 1),), ((1.5, 1, 1),)])
def test_unsound_races_are_refused(looks: tuple[tuple[float, float, float], ...]) -> None:
    with pytest.raises(ValueError, match="look"):
        Race(tuple(Look(*look) for look in looks))
