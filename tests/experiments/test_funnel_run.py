"""The funnel over a search: what it trains, keeps, finds and draws. Tasks are regressions that take milliseconds."""

from __future__ import annotations

import dataclasses
import json
import math
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from optforge.baselines import BASELINES
from optforge.experiments.compare.run import open_store
from optforge.experiments.errors import UserError
from optforge.experiments.report.drawing import svg
from optforge.experiments.report.search_figures import unseen_tasks_figure
from optforge.experiments.searching import funnel_run
from optforge.experiments.searching.funnel_report import write_archive
from optforge.experiments.searching.funnel_run import Funnel, correlation, run_funnel, stage_sweep, stages_for
from optforge.experiments.searching.funnel_watch import Watch
from optforge.experiments.searching.options import SearchOptions
from optforge.experiments.searching.run import run_search
from optforge.experiments.tasks import TASKS
from optforge.primitives import parse_program
from optforge.search.evolution.standing import Individual
from optforge.search.fitness.evaluator import FLOOR
from optforge.search.funnel import Stage, check_unseen
from optforge.search.training import Task
from optforge.search.training.loop import train_alone
from optforge.search.training.store import StoreError
from optforge.search.training.task import Splits, TensorSplit
from optforge.search.training.train import train
from optforge.search.training.trainer import Trainer
from optforge.search.training.trial import Outcome, Trial, failed

GRID = (1e-3, 1e-2, 1e-1, 1.0)
STAGES = (
    Stage("small", ("line", "steep"), 0, (1, 2), keep=2, ladder=GRID),
    Stage("meta", ("unseen",), 6, (3, 4, 5), keep=0, ladder=GRID),
)
ADAMW, LION, SGD, MOMENTUM = (BASELINES[n].program for n in ("adamw", "lion", "sgd", "momentum"))
BACKWARDS = parse_program("optforge 1\nx0 = neg(g)\nupdate x0\n")
ENTRANTS = {0: ADAMW, 4: LION, 7: SGD, 9: BACKWARDS}
HISTORY = [Individual(n, 0, program, 1.0 - n / 100) for n, program in
           enumerate([ADAMW, MOMENTUM, MOMENTUM, SGD, LION, LION, LION, SGD, ADAMW, BACKWARDS])]  # fmt: skip


def regression(name: str, scale: float) -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(24, 3, generator=generator) * torch.tensor([1.0, 1.0, scale])
    y = x @ torch.randn(3, 1, generator=generator) + 0.1 * torch.randn(24, 1, generator=generator)
    split = TensorSplit(x, y)
    return Task(
        name, "a line", lambda: nn.Linear(3, 1), lambda: Splits(split, split, split),
        lambda outputs, targets: (outputs - targets).square().mean(), "squared error", 8, 6, "none",
    )  # fmt: skip


@pytest.fixture(autouse=True)
def tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, scale in (("line", 1.0), ("steep", 5.0), ("unseen", 2.0)):
        monkeypatch.setitem(TASKS, name, regression(name, scale))


def funnel(run_dir: Path, **changes: object) -> Funnel:
    arguments: dict[str, object] = {"stages": STAGES, "every": 4, **changes}
    store = open_store(run_dir / "store.sqlite")
    try:
        return run_funnel(run_dir, Trainer(store, most=8), ["digits"], ENTRANTS, HISTORY, **arguments)  # type: ignore[arg-type]
    finally:
        store.close()


def test_scores_are_those_of_the_plain_loop_beside_adamw(tmp_path: Path) -> None:
    found = funnel(tmp_path).selecting[0]
    for task in STAGES[0].tasks:
        sweep = dataclasses.replace(stage_sweep(STAGES[0], task), engine=train_alone)
        adamw, lion = sweep([ADAMW, LION])
        start = [outcome.start for outcome in train_alone(sweep.trials(SGD))]
        floor = FLOOR * float(np.mean(start))
        ratios = (np.array(lion.by_seed) + floor) / (np.array(adamw.by_seed) + floor)
        expected = np.log(ratios).clip(-1, 1).mean()
        assert found.by_task[4][task] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found.mean(4) == pytest.approx(np.mean(list(found.by_task[4].values())))


def test_adamw_scores_nothing_what_goes_uphill_goes_out_and_the_best_stay(tmp_path: Path) -> None:
    found = funnel(tmp_path)
    small = found.selecting[0]
    assert small.scores[0] == (0.0, 0.0)
    assert small.mean(9) == max(small.mean(n) for n in ENTRANTS) > 0
    assert found.survivors == tuple(sorted(ENTRANTS, key=small.mean)[:2])
    assert 9 not in found.survivors


def test_meta_validation_looks_at_survivors_and_checkpoints_and_selects_nothing(tmp_path: Path) -> None:
    found = funnel(tmp_path)
    assert found.meta is not None
    assert [(c.trained, c.best.number) for c in found.looks] == [(4, 3), (8, 7), (10, 9)]
    assert set(found.meta.scores) == {*found.survivors, 3, 7, 9}
    written = json.loads((tmp_path / "funnel.json").read_text())
    assert written == json.loads(json.dumps(found.as_json()))
    assert written["survivors"] == list(found.survivors) == written["stages"][0]["passed"]
    assert [row["trained"] for row in written["curve"]] == [4, 8, 10]
    assert all(row["low"] <= row["meta"] <= row["high"] for row in written["curve"])
    assert written["curve"][1]["meta"] == found.meta.mean(7)


def test_nothing_is_trained_twice_and_a_resumed_funnel_equals_the_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    trained: list[Trial] = []
    allowed = 40

    def counted(trials: Sequence[Trial], **options: object) -> list[Outcome]:
        if len(trained) >= allowed:
            raise KeyboardInterrupt
        trained.extend(trials)
        return train(trials)

    monkeypatch.setattr("optforge.search.training.trainer.train", counted)
    with pytest.raises(KeyboardInterrupt):
        funnel(parts)
    allowed = 10_000
    found = funnel(parts).as_json()
    assert funnel(parts).as_json() == found
    assert len(trained) == len(set(trained)), "a trial was trained twice"
    assert funnel(whole).as_json() == found
    assert len(trained) == 2 * len(set(trained))
    assert (whole / "funnel.json").read_bytes() == (parts / "funnel.json").read_bytes()


def test_a_failure_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(trials: Sequence[Trial], **options: object) -> list[Outcome]:
        return [failed("out of memory") for _ in trials]

    with monkeypatch.context() as patched:
        patched.setattr("optforge.search.training.trainer.train", broken)
        with pytest.raises(ValueError, match="AdamW cannot be trained on line"):
            funnel(tmp_path)
    assert funnel(tmp_path).survivors


def test_a_damaged_store_is_a_sentence(tmp_path: Path) -> None:
    funnel(tmp_path)
    db = sqlite3.connect(tmp_path / "store.sqlite")
    with db:
        db.execute("update outcomes set outcome = '{}'")
    db.close()
    with pytest.raises(StoreError, match=r"store\.sqlite cannot be read"):
        funnel(tmp_path)


def test_correlations_are_of_ranks_and_undefined_where_there_are_none() -> None:
    assert correlation([(1.0, 5.0), (2.0, 50.0), (3.0, 500.0), (9.0, 501.0)]).rho == pytest.approx(1.0)
    assert correlation([(1.0, 3.0), (2.0, 1.0), (3.0, 2.0)]).rho == pytest.approx(-0.5)
    for pairs in ([], [(1.0, 2.0), (2.0, 3.0)], [(1.0, 2.0)] * 5, [(float(n), 0.0) for n in range(5)]):
        assert math.isnan(correlation(pairs).rho)


def test_stages_leave_out_the_search_s_own_tasks_and_those_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (task for stage in stages_for(["digits"]) for task in stage.tasks):
        stages = stages_for([name])
        assert stages and all(name not in stage.tasks and stage.tasks for stage in stages)
        assert all(task in TASKS for stage in stages for task in stage.tasks)
        check_unseen(stages, [name])
    for name in list(TASKS):
        monkeypatch.delitem(TASKS, name)
    assert stages_for(["digits"]) == ()


def test_without_stages_there_is_a_funnel_that_says_so(tmp_path: Path) -> None:
    found = funnel(tmp_path, stages=())
    assert found.survivors == () and found.meta is None
    assert json.loads((tmp_path / "funnel.json").read_text())["curve"] == []


@pytest.mark.pictures
def test_picture_and_archive(tmp_path: Path) -> None:
    funnel(tmp_path)
    content = json.loads((tmp_path / "funnel.json").read_text()) | {"overfitting": 8}
    picture = svg(unseen_tasks_figure(content), "f1")
    assert "meta-overfitting from here" in picture and "unseen tasks" in picture
    write_archive(tmp_path, HISTORY[:9])
    rows = json.loads((tmp_path / "archive.json").read_text())
    # AdamW has the best score, SGD is next with less state and fewer statements than anything else
    assert [row["number"] for row in rows] == [8, 7]
    assert [parse_program(row["program"]).key for row in rows] == [ADAMW.key, SGD.key]


def test_a_watch_says_when_only_the_proxy_improves_and_says_it_again_after_a_resume() -> None:
    # on the search's own task each is better than the one before; elsewhere the first is as good as it gets
    programs = [ADAMW, *[parse_program(f"optforge 1\nx0 = mul(g, -{n}.0)\nupdate x0\n") for n in range(1, 6)]]
    history = [Individual(n, 0, program, 1.0 - n / 10) for n, program in enumerate(programs)]
    watch = Watch(train, ["digits"], 16, stage=STAGES[1])
    assert watch.every == 1
    said = [watch(history[:n]) for n in range(1, len(history) + 1)]
    assert said == [None, None, None, 1, 1, 1]
    assert Watch(train, ["digits"], 16, stage=STAGES[1])(history) == 1
    assert Watch(train, ["digits"], None, stage=STAGES[1])(history) is None  # too early for a checkpoint


def test_a_watch_without_tasks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(funnel_run, "STAGES", STAGES)
    with pytest.raises(UserError, match="leave --stop-overfitting out"):
        Watch(train, ["unseen"], 100)


def test_a_search_with_a_funnel_and_the_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(funnel_run, "STAGES", STAGES)
    settings = {
        "tasks": "digits",
        "programs": 64,
        "batch": 16,
        "steps": 4,
        "population": 8,
        "tournament": 2,
        "workers": 0,
    }
    options = SearchOptions(run_dir=tmp_path, funnel=True, stop_overfitting=True, **settings)  # type: ignore[arg-type]
    assert run_search(options)
    shown = capsys.readouterr().out
    assert "Rank correlation of the search's score and meta" in shown and "Meta-overfitting" in shown
    assert "tasks × seeds" in shown
    content = json.loads((tmp_path / "funnel.json").read_text())
    assert [row["trained"] for row in content["curve"]][:2] == [4, 8]
    fame = json.loads((tmp_path / "hall_of_fame.json").read_text())
    assert [row["number"] for row in fame] == content["survivors"]
    for row in fame:
        assert row["seeds"] == list(range(2000, 2010))
        assert row["valid_interval"]["low"] <= row["valid"] <= row["valid_interval"]["high"]
        assert row["test_interval"]["low"] <= row["test"] <= row["test_interval"]["high"]
    logs = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    entered = [stage["entered"] for stage in content["stages"][:-1]]
    assert [e.value for e in logs.Scalars("funnel/entered")] == [*entered, len(content["survivors"])]
    assert [e.step for e in logs.Scalars("funnel/meta-validation")] == [row["trained"] for row in content["curve"]]
    front = json.loads((tmp_path / "archive.json").read_text())
    assert front[0]["fitness"] <= min(row["score"] for row in fame)
    # what a resumed run goes on with
    assert json.loads((tmp_path / "budget.json").read_text())["funnel"] is True
