"""Tasks whose models a population cannot, or can only carefully, train as one: they train as `optforge train` does."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import train
from torch import Tensor, nn

from optforge.baselines import BASELINES
from optforge.experiments.compare.costs import measure_costs
from optforge.experiments.compare.fingerprints import task_fingerprint
from optforge.experiments.errors import UserError
from optforge.experiments.tasks import get_task
from optforge.search.fitness.evaluator import Status
from optforge.search.fitness.sweep import Sweep
from optforge.search.training import Splits, Task, TensorSplit
from optforge.search.training.loop import train_alone
from optforge.search.training.population.gradients import Like, cannot_be_stacked, graph, unrecorded
from optforge.search.training.task import initial_model
from optforge.search.training.train import train as train_trials
from optforge.search.training.trial import Trial

ADAMW, LION, MUON = (BASELINES[name].program for name in ("adamw", "lion", "muon"))


def task_of(build: Callable[[], nn.Module], sequence: bool = False, **changes: object) -> Task:
    @cache
    def data() -> Splits:
        x = torch.randn(60, 5, 4, generator=torch.Generator().manual_seed(0))
        x = x if sequence else x[:, 0]
        y = x.flatten(1).sum(1, keepdim=True)
        return Splits(*(TensorSplit(a, b) for a, b in zip(x.split(20), y.split(20), strict=True)))

    options = {"summary": "s", "metric": "mse", "steps": 12, "batch_size": 8, "licence": "none"} | changes
    return Task(name="odd", model=build, data=data, loss=nn.functional.mse_loss, **options)  # type: ignore[arg-type]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.GRU) -> None:
        super().__init__()
        self.body, self.head = kind(4, 3, batch_first=True), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])  # type: ignore[no-any-return]


class Parts(nn.Module):
    """Two layers, and what a case adds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).tanh())  # type: ignore[no-any-return]


class Branching(Parts):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x)
        return self.b(hidden.tanh() if hidden.norm() > 3 else hidden)  # type: ignore[no-any-return]


class Counting(Parts):
    """Of inputs alone, which are not stacked; recorded on zeros it would always count none."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + len(x[x > 0])) / 9


class Frozen(Parts):
    def __init__(self, seeded: bool = True) -> None:
        super().__init__()
        self.a.requires_grad_(False)
        if not seeded:
            self.a.load_state_dict({"weight": torch.ones(3, 4), "bias": torch.zeros(3)})


class Buffered(Parts):
    def __init__(self, seeded: bool = True) -> None:
        super().__init__()
        self.register_buffer("mix", torch.randn(4, 4) if seeded else torch.ones(4, 4).tril())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x @ self.mix)


class Unused(Parts):
    def __init__(self, shape: tuple[int, ...] = (3, 3)) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.ones(shape))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(1))


def quiet_transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(20, 1))


STACKED = {
    "plain": task_of(Parts), "frozen, the same": task_of(lambda: Frozen(False)),
    "buffer, the same": task_of(lambda: Buffered(False)), "unused": task_of(Unused), "lazy": task_of(lazy),
    "counting": task_of(Counting),
}  # fmt: skip
ALONE = {
    "gru": (task_of(Recurrent, True), "RuntimeError"),
    "lstm": (task_of(lambda: Recurrent(nn.LSTM), True), "RuntimeError"),
    "branching": (task_of(Branching), "RuntimeError"),
    "frozen": (task_of(Frozen), "what its model does not train differs between seeds"),
    "buffer": (task_of(Buffered), "what its model does not train differs between seeds"),
}
EMPTY = task_of(lambda: Unused((0, 3)))
TASKS = STACKED | {name: task for name, (task, _) in ALONE.items()} | {"no elements": EMPTY}
TASKS["quiet transformer"] = task_of(quiet_transformer, True)


def test_what_can_be_stacked_is_told_with_a_reason() -> None:
    assert {name: cannot_be_stacked(task) for name, task in STACKED.items()} == dict.fromkeys(STACKED, "")
    for name, (task, words) in ALONE.items():
        assert words in cannot_be_stacked(task), name
    for name in ("digits", "digits-conv", "charlm", "quadratic", "copy"):
        assert cannot_be_stacked(get_task(name)) == ""


@pytest.mark.parametrize("name", TASKS)
def test_trials_train_every_model_as_train_does(name: str) -> None:
    task = TASKS[name]
    rules = [(ADAMW, 0.02), (LION, 0.005), (MUON, 0.02)]
    trials = [Trial(p, lr, task, seed, splits=("valid", "test")) for p, lr in rules for seed in (3, 4)]
    for trial, outcome in zip(trials, train_trials(trials), strict=True):
        alone = train(task, trial.program, trial.lr, seed=trial.seed)
        assert outcome.loss["valid"] == pytest.approx(alone.loss("valid"), rel=2e-4)
        assert outcome.loss["test"] == pytest.approx(alone.loss("test"), rel=2e-4)


@pytest.mark.parametrize("name", TASKS)
def test_what_is_frozen_is_no_part_of_costs_and_fingerprints(name: str) -> None:
    assert measure_costs(TASKS[name], ADAMW, 0.01, compiling=False).step_ms > 0
    assert len(task_fingerprint(TASKS[name])) >= 4


@pytest.mark.parametrize("name", [*ALONE, "unused", "no elements"])
def test_no_program_fails_for_the_model(name: str) -> None:
    task = TASKS[name]
    wild = BASELINES["sgd"].program
    found = Sweep(task, (1e-3, 1e-2), (0, 1), 6)([ADAMW, wild])
    assert [f.status for f in found] == [Status.OK, Status.OK], found
    (lost,) = Sweep(task, (1e30,), (0, 1), 6)([wild])
    assert lost.status is Status.DIVERGED and "non-finite" in lost.reason


def test_the_cost_of_training_one_at_a_time_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    task = task_of(Recurrent, True, steps=3)
    with caplog.at_level(logging.WARNING, "optforge"):
        for _ in range(2):
            train_trials([Trial(ADAMW, 0.01, task_of(Recurrent, True, steps=3), 0)])
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith(f"task {task.name}")]
    assert len(told) <= 1 and all("one at a time, which takes many times as long" in text for text in told)


def test_both_engines_tell_the_same() -> None:
    """All that an outcome holds, of a task that can be trained either way."""
    members = [(ADAMW, 0.01), (ADAMW, 0.03), (LION, 0.003)]
    how: dict[str, Any] = {"steps": 40, "splits": ("train", "valid"), "watch": True}
    trials = [Trial(p, lr, get_task("digits"), seed, **how) for p, lr in members for seed in (5, 6)]
    for mine, other in zip(train_trials(trials), train_trials(trials, engine=train_alone), strict=True):
        assert mine.status is other.status is Status.OK and mine.reason == other.reason == "" and mine.step is None
        for part in ("loss", "accuracy"):
            assert getattr(mine, part) == pytest.approx(getattr(other, part), rel=1e-3)
        for part in ("start", "curve", "valid_curve"):
            assert getattr(mine, part) == pytest.approx(getattr(other, part), rel=1e-3, abs=1e-4)


def test_a_run_that_diverges_alone_ends_there() -> None:
    task = task_of(Parts)
    trials = [Trial(BASELINES["sgd"].program, 1e30, task, 0, watch=True), Trial(ADAMW, 0.01, task, 0, watch=True)]
    lost, other = train_trials(trials, engine=train_alone)
    assert lost.status is Status.DIVERGED and lost.step is not None and lost.step > 1 and lost.valid == math.inf
    assert other.status is Status.OK and math.isfinite(other.valid)


def test_graphs_of_what_depends_on_the_inputs_are_not_recorded() -> None:
    """One that was recorded on zeros would be silently wrong on everything else."""
    task = STACKED["counting"]
    x, y = task.data().train.batch(torch.arange(8))
    cpu = torch.device("cpu")
    arena = torch.randn(2, sum(p.numel() for p in initial_model(task, 0).parameters()))
    function = graph(task, 2, Like.of(x), Like.of(y), torch.float32, cpu, "float32")
    torch.testing.assert_close(function(arena, x, y), unrecorded(task, 2, torch.float32, cpu)(arena, x, y))


FILE = """
import torch
from optforge.search.training import Splits, Task, TensorSplit
def data():
    x = torch.randn(60, 3, 4, generator=torch.Generator().manual_seed(0))
    return Splits(*(TensorSplit(a, a.sum((1, 2))[:, None]) for a in x.split(20)))
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        {begin}
        self.head = torch.nn.{head}
    def forward(self, x):
        return self.head(({body}).flatten(1))
TASK = Task(name="odd", summary="s", model=Model, data=data, loss=torch.nn.functional.mse_loss, metric="mse", steps=9,
            batch_size=8, licence="none")
"""
HEAD = "Linear(12, 1)"
GOOD = {
    "dropout of nothing": ("self.d = torch.nn.Dropout(0.0)", "self.d(x)", HEAD),
    "dropout that is off": ("self.d = torch.nn.Dropout(0.5).eval()", "self.d(x)", HEAD),
    "functional dropout that is off": ("pass", "torch.nn.functional.dropout(x, 0.5, training=False)", HEAD),
    "lazy": ("pass", "x", "LazyLinear(1)"),
    "recurrent": ("self.d = torch.nn.GRU(4, 4, batch_first=True)", "self.d(x)[0]", HEAD),
}
BAD = {
    "dropout": ("self.d = torch.nn.Dropout(0.1)", "self.d(x)", HEAD, "has Dropout"),
    "functional dropout": ("pass", "torch.nn.functional.dropout(x, 0.5, self.training)", HEAD, "draws random numbers"),
    "recurrent dropout": (
        "self.d = torch.nn.GRU(4, 4, 2, batch_first=True, dropout=0.5)", "self.d(x)[0]", HEAD, "draws random numbers",
    ),
    "batch statistics": ("self.d = torch.nn.BatchNorm1d(3)", "self.d(x)", HEAD, "has BatchNorm1d"),
    "a memory": (
        "self.register_buffer('seen', torch.zeros(3, 4))", "x + self.seen.add_(x.mean(0).detach())", HEAD,
        "changes its buffers",
    ),
    "nothing to train": ("pass", "x", f"{HEAD}.requires_grad_(False)", "no parameter that requires a gradient"),
}  # fmt: skip


def written(folder: Path, begin: str, body: str, head: str) -> str:
    file = folder / "odd.py"
    file.write_text(FILE.format(begin=begin, body=body, head=head))
    return str(file)


@pytest.mark.parametrize("name", GOOD)
def test_files_with_models_that_are_pure_functions_are_taken(tmp_path: Path, name: str) -> None:
    task = get_task(written(tmp_path, *GOOD[name]))
    (found,) = train_trials([Trial(ADAMW, 0.01, task, 0, steps=4)])
    assert found.valid == pytest.approx(train(task, ADAMW, 0.01, steps=4).loss(), rel=1e-4)
    assert sum(p.numel() for p in task.model().parameters()) > 0


@pytest.mark.parametrize("name", BAD)
def test_files_with_models_that_are_none_are_refused(tmp_path: Path, name: str) -> None:
    *parts, words = BAD[name]
    with pytest.raises(UserError, match=words):
        get_task(written(tmp_path, *parts))
