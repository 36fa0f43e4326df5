"""One contract for everything that evaluates programs, and agreement with the evaluator that defines fitness."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from support.evaluators import ADAMW, LION, SMALL, diverging, factored, normalised

from optforge.primitives import Builder, Program
from optforge.search.duplicates.cache import Cached
from optforge.search.fitness.evaluator import Evaluator, Fitness, Status, evaluating
from optforge.search.fitness.sweep import Sweep
from optforge.search.training.executors.processes import Workers
from optforge.search.training.loop import train_alone
from optforge.search.training.population import members as members_module
from optforge.search.training.population.members import train_members

PROTOCOL = Sweep(SMALL, rates=(1e-3, 1e-2, 1e-1), seeds=(0, 1), precision="float64")


PROGRAMS = (ADAMW, LION, normalised(), factored())


class EvaluatorContract:
    """What every evaluator promises. Subclasses say how to make one."""

    def make(self, protocol: Sweep) -> Evaluator:
        raise NotImplementedError

    def test_keeps_order_and_agrees_with_the_definition(self) -> None:
        found = self.make(PROTOCOL)(PROGRAMS)
        for mine, reference in zip(found, dataclasses.replace(PROTOCOL, engine=train_alone)(PROGRAMS), strict=True):
            assert mine.status is reference.status is Status.OK
            assert mine.lr == reference.lr
            assert mine.edge == reference.edge
            assert mine.by_rate == pytest.approx(reference.by_rate, rel=1e-9)
            assert mine.score == pytest.approx(reference.score, rel=1e-9)

    def test_is_deterministic(self) -> None:
        assert self.make(PROTOCOL)(PROGRAMS) == self.make(PROTOCOL)(PROGRAMS)

    def test_equal_programs_get_equal_fitness(self) -> None:
        first, middle, last = self.make(PROTOCOL)((ADAMW, LION, ADAMW))
        assert first == last
        assert first != middle

    def test_divergence_is_a_status_and_harms_no_neighbour(self) -> None:
        alone = self.make(PROTOCOL)((ADAMW,))[0]
        bad, good = self.make(PROTOCOL)((diverging(), ADAMW))
        assert bad.status is Status.DIVERGED
        assert bad.score == math.inf
        assert len(bad.reason) > 20
        assert good.score == pytest.approx(alone.score, rel=1e-9)

    def test_no_programs_no_fitness(self) -> None:
        assert self.make(PROTOCOL)(()) == []


class TestSequential(EvaluatorContract):
    def make(self, protocol: Sweep) -> Evaluator:
        return dataclasses.replace(protocol, engine=train_alone)


class TestPopulation(EvaluatorContract):
    def make(self, protocol: Sweep) -> Evaluator:
        return protocol


class TestPopulationWithoutCompiler(EvaluatorContract):
    @pytest.fixture(autouse=True)
    def no_compiler(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(members_module, "library", lambda dtype: None)

    def make(self, protocol: Sweep) -> Evaluator:
        return protocol


class TestCached(EvaluatorContract):
    def make(self, protocol: Sweep) -> Evaluator:
        return Cached(protocol)


class TestWorkers(EvaluatorContract):
    """In this process; `test_search.py` uses real ones."""

    def make(self, protocol: Sweep) -> Evaluator:
        workers = Workers(evaluating(lambda: protocol), 0)
        return lambda programs, generation=0: workers.result(workers.submit(programs, generation))


def test_cache_trains_each_behaviour_once() -> None:
    seen: list[int] = []

    def counting(programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        seen.append(len(programs))
        return [Fitness(float(len(p.body)), Status.OK) for p in programs]

    b = Builder()
    m = b.slot("m")
    m.next = b.lerp(m, b.g, 0.1)
    dead = b.slot("dead")
    dead.next = b.cosh(b.g)
    same_as_lion_without_decay = b.build(b.sign(b.g - (b.g - b.lerp(m, b.g, 0.1))))
    b2 = Builder()
    slot = b2.slot("average")
    slot.next = b2.lerp(slot, b2.g, 0.1)
    other = b2.build(b2.sign(b2.lerp(slot, b2.g, 0.1)))
    evaluate = Cached(counting)
    first = evaluate([other, same_as_lion_without_decay, ADAMW])
    assert seen == [2]  # the two sign programs behave alike although their structures differ
    assert first[0] == first[1]
    assert evaluate([ADAMW, other]) == [first[2], first[0]]
    assert seen == [2]


@pytest.mark.parametrize("make", [lambda b: b.p, lambda b: b.log(b.g) + b.g, lambda b: b.g / (b.g - b.g)])
def test_cache_rejects_what_cannot_work(make: Callable[[Builder], object]) -> None:
    def never(programs: Sequence[Program], generation: int = 0) -> list[Fitness]:
        raise AssertionError("trained a program that cannot work")

    b = Builder()
    (fitness,) = Cached(never)([b.build(make(b))])  # type: ignore[arg-type]
    assert fitness.score == math.inf
    assert fitness.reason


def test_a_breaking_program_is_isolated() -> None:
    """A program that makes the evaluation itself raise fails alone; its neighbours are evaluated."""
    b = Builder()
    needs_rows = b.build(b.g * b.row_mean(b.g))  # no fallback, and the model has biases
    alone = PROTOCOL((ADAMW,))[0]
    good, bad, other = PROTOCOL((ADAMW, needs_rows, LION))
    assert bad.status is Status.FAILED
    assert "fallback" in bad.reason
    assert good.score == pytest.approx(alone.score, rel=1e-9)
    assert other.status is Status.OK


def test_the_edge_of_the_ladder_is_flagged() -> None:
    low = Sweep(SMALL, rates=(1e-6, 1e-5), seeds=(0,), precision="float64")
    assert low((ADAMW,))[0].edge
    wide = Sweep(SMALL, rates=(1e-3, 1e-1, 10.0), seeds=(0,), precision="float64")
    assert wide((ADAMW,))[0].lr == 1e-1
    assert not wide((ADAMW,))[0].edge


def test_members_of_different_seeds_and_splits_are_kept_apart() -> None:
    together = train_members(
        SMALL, [(ADAMW, 1e-2), (LION, 1e-3)], (3, 4), dtype=torch.float64, splits=("valid", "test")
    )
    assert together.losses["valid"].shape == (2, 2)
    assert together.curve.shape[1:] == (2, 2)
    for row, member in enumerate([(ADAMW, 1e-2), (LION, 1e-3)]):
        for column, seed in enumerate((3, 4)):
            alone = train_members(SMALL, [member], (seed,), dtype=torch.float64, splits=("valid", "test"))
            for split in ("valid", "test"):
                assert alone.losses[split].item() == pytest.approx(together.losses[split][row, column].item(), rel=1e-9)
                assert alone.accuracy[split].item() == together.accuracy[split][row, column].item()
            assert alone.start[0] == together.start[column]


def test_divergence_is_dated() -> None:
    b = Builder()
    jump = b.build(b.g + 1e30 * b.less(4.5, b.step) * b.g * b.exp(b.step * 20))
    found = train_members(SMALL, [(jump, 1.0)], (0,))
    assert 5 <= int(found.diverged_at) <= 7
    assert not found.losses["valid"].isfinite().all()


@pytest.mark.parametrize("ladder", [(), (0.0, 1.0), (1.0, 0.1), (math.nan,), (0.1, 0.1)])
def test_unsound_ladders_are_refused(ladder: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="grid"):
        Sweep(SMALL, rates=ladder)
