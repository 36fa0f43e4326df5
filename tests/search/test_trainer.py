"""Trials, the contract of engines, the store, and that every trial is trained once whoever asks."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.evaluators import ADAMW, LION, SMALL, diverging
from torch.optim.optimizer import Optimizer

from optforge.primitives import Builder, Program
from optforge.search.training.asking import Asking, answer, together
from optforge.search.training.executors.processes import Workers
from optforge.search.training.lightning.engine import train_lightning
from optforge.search.training.loop import train_alone
from optforge.search.training.population.members import train_population
from optforge.search.training.store import CLAIMS, OUTCOMES, Store, StoreError
from optforge.search.training.task import Task
from optforge.search.training.train import Engine, batches, engine_for, train
from optforge.search.training.trainer import Trainer, training
from optforge.search.training.trial import Outcome, Rule, Status, Trial

TRIALS = [
    Trial(program, lr, SMALL, seed, schedule="linear", warmup=2, clip=1.0, splits=("valid", "test"), watch=True)
    for program in (ADAMW, LION)
    for lr in (1e-3, 1e-2)
    for seed in (3, 4)
]


def found_task(name: str) -> Task:
    assert name == SMALL.name
    return SMALL


class EngineContract:
    """What every engine promises."""

    engine: Engine

    def test_order_is_kept_and_outcomes_are_those_of_the_loop(self) -> None:
        for mine, expected in zip(self.engine(TRIALS), train_alone(TRIALS), strict=True):
            assert mine.status is expected.status is Status.OK and mine.step is None and mine.reason == ""
            for part in ("loss", "accuracy"):
                assert getattr(mine, part) == pytest.approx(getattr(expected, part), rel=1e-4)
            for part in ("start", "curve", "valid_curve"):
                assert getattr(mine, part) == pytest.approx(getattr(expected, part), rel=1e-4)
            assert mine.seconds > 0 and len(mine.curve) == len(mine.valid_curve) == 12

    def test_outcomes_are_deterministic(self) -> None:
        assert self.engine(TRIALS) == self.engine(TRIALS)

    def test_divergence_is_a_status(self) -> None:
        trials = [Trial(diverging(), 1.0, SMALL, 0), Trial(ADAMW, 1e-2, SMALL, 0)]
        lost, other = self.engine(trials)
        assert lost.status is Status.DIVERGED and f"step {lost.step}" in lost.reason and lost.valid == math.inf
        assert lost.failed and lost.counted() == lost.start
        assert other.status is Status.OK and not other.failed and other.counted() == other.loss["valid"]


class TestLoop(EngineContract):
    engine = staticmethod(train_alone)


class TestPopulation(EngineContract):
    engine = staticmethod(train_population)


class TestLightning(EngineContract):
    engine = staticmethod(train_lightning)


class TestChosen(EngineContract):
    engine = staticmethod(train)


def test_the_engine_follows_from_the_trial() -> None:
    stepped, half = (dataclasses.replace(TRIALS[0], **how) for how in ({"schedule": "step"}, {"precision": "fp16"}))
    assert engine_for([stepped]) is train_alone and engine_for([half]) is train_lightning
    for trial in (stepped, half):
        (mine,), (expected,) = train([trial]), train_lightning([trial])
        assert mine.status is Status.OK and mine.loss == pytest.approx(expected.loss, rel=1e-4)
    with pytest.raises(ValueError, match="scaled loss"):
        train_alone([half])


def test_every_engine_measures_the_same_part_of_a_large_training_split(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = dataclasses.replace(TRIALS[0], splits=("train",))
    (whole,) = train_alone([trial])
    monkeypatch.setattr("optforge.search.training.task.TRAIN_MEASURED", 50)
    (part,) = train_alone([trial])
    assert part.loss != whole.loss
    for engine in (train_population, train_lightning):
        assert engine([trial])[0].loss == pytest.approx(part.loss, rel=1e-4)


class Descent(Rule):
    """A rule that is no program."""

    text = "descent"

    def optimizer(self, params: Any, lr: float, steps: int) -> Optimizer:
        return torch.optim.SGD(params, lr)


def test_rules_that_are_no_programs_train_with_schedule_and_clipping() -> None:
    b = Builder()
    options: dict[str, Any] = {"schedule": "cosine", "warmup": 3, "clip": 0.5, "watch": True}
    rule, program = (Trial(r, 0.1, SMALL, 7, **options) for r in (Descent(), b.build(b.lr * b.g / b.lr)))
    mine, expected = train([rule, program])
    assert mine.loss["valid"] == pytest.approx(expected.loss["valid"], rel=1e-5)
    assert mine.valid_curve == pytest.approx(expected.valid_curve, rel=1e-5)


def test_equal_trials_are_trained_once_and_order_is_kept() -> None:
    asked = [TRIALS[0], TRIALS[3], TRIALS[0]]
    sizes: list[int] = []

    def engine(trials: Sequence[Trial]) -> list[Outcome]:
        sizes.append(len(trials))
        return [Outcome(Status.OK, loss={"valid": t.lr}) for t in trials]

    assert [o.loss["valid"] for o in train(asked, engine=engine)] == [1e-3, 1e-2, 1e-3]
    assert sum(sizes) == 2


def test_a_run_that_breaks_is_a_status_and_takes_nobody_with_it() -> None:
    b = Builder()
    needs_rows = b.build(b.g * b.row_mean(b.g))  # no fallback, and the model has biases
    good, bad, other = train([Trial(p, 1e-2, SMALL, 0) for p in (ADAMW, needs_rows, LION)])
    assert bad.status is Status.FAILED and "fallback" in bad.reason and bad.failed
    assert good.status is other.status is Status.OK


def test_batches_hold_one_recipe_and_keep_seeds_and_programs_together() -> None:
    longer = [dataclasses.replace(trial, steps=20) for trial in TRIALS]
    mixed = [trial for pair in zip(TRIALS, longer, strict=True) for trial in pair]
    found = batches(mixed)
    assert sorted(len(batch) for batch in found) == [8, 8]
    assert all(len({trial.steps for trial in batch}) == 1 for batch in found)
    assert [t.rule for t in found[0]] == [ADAMW] * 4 + [LION] * 4
    assert [len(batch) for batch in batches(TRIALS, most=3)] == [2] * 4
    assert sorted(map(id, (t for b in batches(TRIALS) for t in b))) == sorted(map(id, TRIALS))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"lr": math.nan}, "learning rate"), ({"lr": -1.0}, "learning rate"), ({"steps": -1}, "steps"),
     ({"schedule": "cosin"}, "unknown schedule"), ({"warmup": 12}, "warm-up")],
)  # fmt: skip
def test_trials_that_make_no_run_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TRIALS[0], **changes)


def test_trials_and_outcomes_survive_json() -> None:
    assert [Trial.from_json(t.as_json(), found_task) for t in TRIALS] == TRIALS
    lost = Outcome(Status.DIVERGED, "why", {"valid": math.inf}, start=2.0, step=3, curve=(1.0, math.nan), seconds=1.5)
    again = Outcome.from_json(lost.as_json())
    assert repr(again) == repr(lost) and again.seconds == lost.seconds


def best_rate(program: Program, rates: Sequence[float]) -> Asking[float]:
    """Two rounds: the grid, then one point between the best two."""
    first = yield [Trial(program, lr, SMALL, 0) for lr in rates]
    a, b = sorted(zip(rates, first, strict=True), key=lambda pair: pair[1].valid)[:2]
    middle = math.sqrt(a[0] * b[0])
    (between,) = yield [Trial(program, middle, SMALL, 0)]
    return min((a[1].valid, a[0]), (between.valid, middle))[1]


def test_reductions_asked_together_come_to_the_same_as_alone() -> None:
    asked: list[int] = []

    def training_once(trials: Sequence[Trial]) -> list[Outcome]:
        asked.append(len(trials))
        return train(trials)

    rates = (1e-3, 1e-2, 1e-1)
    both = answer(together([best_rate(ADAMW, rates), best_rate(LION, rates)]), training_once)
    assert asked == [6, 2]
    assert both == [answer(best_rate(p, rates), train) for p in (ADAMW, LION)]
    assert answer(together([]), train) == []  # type: ignore[var-annotated]


class Counting:
    """An engine that is counted, in place of training."""

    def __init__(self) -> None:
        self.trained: list[Trial] = []

    def __call__(self, trials: Sequence[Trial], **options: object) -> list[Outcome]:
        self.trained += trials
        return [Outcome(Status.OK, loss={"valid": t.lr, "test": t.lr}, start=1.0, seconds=2.0) for t in trials]


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    found = Counting()
    monkeypatch.setattr("optforge.search.training.trainer.train", found)
    return found


def test_a_store_answers_what_it_knows(tmp_path: Path, counting: Counting) -> None:
    store = Store(tmp_path / "s.sqlite")
    first = Trainer(store)(TRIALS)
    assert Trainer(store)(TRIALS[::-1]) == first[::-1] and len(counting.trained) == len(TRIALS)
    store.close()
    again = Store(tmp_path / "s.sqlite")
    assert Trainer(again)([TRIALS[2]]) == [first[2]] and len(counting.trained) == len(TRIALS)
    assert Trainer(again)([TRIALS[2]])[0].seconds == 2.0
    again.close()


def test_a_trial_of_another_task_of_that_name_is_another(tmp_path: Path, counting: Counting) -> None:
    for identity in ("one", "other", "one"):
        store = Store(tmp_path / "s.sqlite", lambda trial, what=identity: what)  # type: ignore[misc]
        Trainer(store)([TRIALS[0]])
        store.close()
    assert len(counting.trained) == 2


def test_what_failed_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def broken(trials: Sequence[Trial], **options: object) -> list[Outcome]:
        calls.append(len(trials))
        return [Outcome(Status.FAILED, "no memory") for _ in trials]

    monkeypatch.setattr("optforge.search.training.trainer.train", broken)
    store = Store(tmp_path / "s.sqlite")
    for _ in range(2):
        (found,) = Trainer(store)([TRIALS[0]])
        assert found.status is Status.FAILED
    assert calls == [1, 1]
    store.close()


def test_claims_keep_others_off_until_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = (Store(tmp_path / "s.sqlite") for _ in range(2))
    assert mine.claim(TRIALS[:2]) and not other.claim(TRIALS[1:3]) and other.claim(TRIALS[2:3])
    mine.put({TRIALS[1]: Outcome(Status.OK, start=1.0)})
    assert other.claim([TRIALS[1]]) and not other.claim([TRIALS[0]])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)  # its owner has died
    assert other.claim([TRIALS[0]])
    mine.close()
    other.close()


def test_what_another_finished_before_the_claim_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counting: Counting
) -> None:
    mine, other = (Store(tmp_path / "s.sqlite") for _ in range(2))
    claim = mine.claim

    def late(trials: Sequence[Trial]) -> bool:
        Trainer(other)(TRIALS[:3])
        return claim(trials)

    monkeypatch.setattr(mine, "claim", late)
    assert len(Trainer(mine)(TRIALS)) == len(counting.trained) == len(TRIALS)
    mine.close()
    other.close()


def ask(path: Path, queue: Any) -> None:
    torch.set_num_threads(1)
    store = Store(path)
    queue.put([o.as_json() | {"seconds": 0} for o in Trainer(store)(TRIALS)])
    store.close()


def test_processes_that_share_a_store_train_each_trial_once_and_agree(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=ask, args=(tmp_path / "s.sqlite", queue)) for _ in range(2)]
    for process in processes:
        process.start()
    first, second = (queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    assert first == second
    with sqlite3.connect(tmp_path / "s.sqlite") as db:
        assert db.execute(f"select count(*) from {OUTCOMES}").fetchone() == (len(TRIALS),)
        assert db.execute(f"select count(*) from {CLAIMS}").fetchone() == (0,)


def dies(path: Path) -> None:
    store = Store(path)
    store.claim(TRIALS)
    os.kill(os.getpid(), 9)


def test_what_a_killed_process_had_is_trained_by_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counting: Counting
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=dies, args=(tmp_path / "s.sqlite",))
    process.start()
    process.join()
    store = Store(tmp_path / "s.sqlite")
    assert not store.claim(TRIALS[:1])
    monkeypatch.setattr("optforge.search.training.trainer.IDLE", 0.01)
    real, begin = time.time, time.time()
    monkeypatch.setattr(time, "time", lambda: begin + 1000 * (real() - begin))  # a lease is over in 0.06 s
    assert len(Trainer(store)(TRIALS)) == len(counting.trained) == len(TRIALS)
    store.close()


@pytest.fixture
def workers() -> Iterator[Workers]:
    pool = Workers(training(found_task), 2)
    yield pool
    pool.close()


def test_processes_come_to_the_same_as_this_one(workers: Workers, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    store = Store(tmp_path / "s.sqlite")
    found = Trainer(store, workers, lambda done, total: seen.append((done, total)), most=4)(TRIALS)
    assert found == Trainer(most=4)(TRIALS)
    assert seen[0] == (0, 8) and seen[-1] == (8, 8)
    store.close()


def damaged(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def of_another_version(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute("update meta set value = '99'")


@pytest.mark.parametrize(("spoil", "words"), [(damaged, "not a database"), (of_another_version, "version 99")])
def test_stores_that_cannot_be_used_are_a_sentence(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(tmp_path / "s.sqlite")
    with pytest.raises(StoreError, match=words) as told:
        Store(tmp_path / "s.sqlite")
    assert "s.sqlite" in str(told.value) and "\n" not in str(told.value)


def test_addresses_that_are_none_and_missing_drivers_are_a_sentence() -> None:
    for address in ("nonsense", "postgresql+nodriver://user:secret@host/name"):
        with pytest.raises(StoreError) as told:
            Store(address)
        assert "secret" not in str(told.value) and "\n" not in str(told.value)
