"""Tuning the numbers of a program with Optuna."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from support.strategies import programs
from typer.testing import CliRunner

from optforge.baselines import BASELINES
from optforge.experiments.cli import app
from optforge.experiments.compare.run import open_store
from optforge.experiments.programs import resolve_program
from optforge.experiments.searching.constants import BATCH, SEEDS, TunedConstants, places, tune_constants, with_numbers
from optforge.experiments.searching.options import SearchOptions
from optforge.experiments.searching.run import run_search
from optforge.experiments.tasks import get_task
from optforge.primitives import Program, print_program
from optforge.primitives.text import parse_program
from optforge.search.training import Task
from optforge.search.training.asking import answer
from optforge.search.training.population.members import train_members
from optforge.search.training.train import train
from optforge.search.training.trainer import Trainer
from optforge.search.training.trial import Outcome, Trial

TASK = get_task("quadratic")
SLOW = parse_program("""
optforge 1
hyper beta = 0.9995 unit
slot m = 0.0 tensor
x0 = lerp(g, m, beta)
x1 = mul(x0, -0.3)
x2 = neg(x1)
update x2
next m = x0
""")


def tuned(
    program: Program, lr: float, storage: Path | None = None, task: Task = TASK, **options: Any
) -> TunedConstants:
    """Tuned here, with trials from a storage if there is one."""
    store = None if storage is None else open_store(storage)
    try:
        return answer(tune_constants(program, task, lr, **options), Trainer(store))
    finally:
        if store is not None:
            store.close()


@given(programs())
def test_numbers_at_rest_give_the_program_back(program: Program) -> None:
    where = places(program)
    assert with_numbers(program, where, [place.moved(0.0) for place in where]) == program
    assert with_numbers(program, where, [place.value for place in where]).key == program.key


@given(programs())
def test_moved_numbers_stay_on_their_side(program: Program) -> None:
    for place in places(program):
        if abs(place.value) > 1e300:  # there, floats end
            continue
        low, high = sorted((place.moved(-1.0), place.moved(1.0)))
        assert low <= place.value <= high
        if place.scale == "unit":
            assert 0 <= low < high < 1
        elif place.scale == "log" and abs(place.value) > 1e-300:
            assert high / low == pytest.approx(16 if place.value > 0 else 1 / 16, rel=1e-2)


def test_which_numbers_are_tuned() -> None:
    found = places(SLOW)
    assert [(p.value, p.scale) for p in found] == [(-0.3, "log"), (0.9995, "unit")]
    assert [p.value for p in places(BASELINES["adamw"].program)] == [0.9, 0.999, 1e-8, 0.01]  # no 1 of 1 - beta


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_a_badly_set_program_is_improved(sampler: str) -> None:
    found = tuned(SLOW, 0.1, trials=40, steps=60, sampler=sampler)
    assert (found.trials, found.numbers, found.seeds) == (40, 3, SEEDS)
    assert found.loss < 0.9 * found.before
    members = [(SLOW, 0.1), (found.program, found.lr)]
    before, after = train_members(TASK, members, SEEDS, steps=60).losses["valid"].mean(1).tolist()
    assert (found.before, found.loss) == pytest.approx((before, after), rel=1e-5)
    assert found.program.live.names == SLOW.live.names and len(found.program.body) == len(SLOW.body)


def test_what_diverges_has_failed() -> None:
    wild = tuned(parse_program("optforge 1\nx0 = mul(g, 1e20)\nupdate x0"), 1.0, trials=4, steps=20)
    assert (wild.failed, wild.loss, wild.lr) == (4, math.inf, 1.0)


def test_tuning_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tuned(SLOW, 0.1, trials=1 + 2 * BATCH, steps=20)
    trained: list[Trial] = []

    def counted(trials: Sequence[Trial], **options: Any) -> list[Outcome]:
        trained.extend(trials)
        return train(trials, **options)

    monkeypatch.setattr("optforge.search.training.trainer.train", counted)
    file = tmp_path / "trials.sqlite"
    assert tuned(SLOW, 0.1, file, trials=1 + BATCH, steps=20).trials == 1 + BATCH
    assert tuned(SLOW, 0.1, file, trials=1 + 2 * BATCH, steps=20) == whole
    assert len(trained) == len(set(trained)) == (1 + 2 * BATCH) * len(SEEDS)


def test_a_storage_answers_for_nothing_but_what_it_was_asked(tmp_path: Path) -> None:
    """Each change in turn, against the same without a storage."""
    other = replace(TASK, loss=lambda outputs, targets: 2 * TASK.loss(outputs, targets))
    base: dict[str, Any] = {"program": SLOW, "lr": 0.1, "trials": 3, "steps": 10}
    changes: list[dict[str, Any]] = [
        {}, {"lr": 0.2}, {"steps": 12}, {"seed": 1}, {"seeds": (7, 8)}, {"sampler": "cmaes"},
        {"program": SLOW.with_defaults(beta=0.9)}, {"task": other}, {"task": replace(TASK, batch_size=3)},
        {"schedule": "cosine"}, {"warmup": 3},
    ]  # fmt: skip
    for change in changes:
        assert tuned(**base | change, storage=tmp_path / "trials.sqlite") == tuned(**base | change)


def test_two_that_tune_in_one_new_file_come_to_the_same(tmp_path: Path) -> None:
    words = ["tune", "adamw", "--task", "quadratic", "--trials", "3", "--steps", "5", "--storage", "a?b%41{c}.db"]
    command = [sys.executable, "-m", "optforge.experiments.cli", *words]
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate(timeout=150) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert [path.name for path in tmp_path.iterdir()] == ["a?b%41{c}.db"]


def test_nothing_that_trains_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "wild.txt").write_text("optforge 1\nx0 = mul(g, 1e20)\nupdate x0\n")
    words = ["tune", str(tmp_path / "wild.txt"), "--task", "quadratic", "--trials", "2", "--steps", "20", "--lr", "1"]
    result = CliRunner().invoke(app, [*words, "--json", str(tmp_path / "found.json")])
    assert result.exit_code == 1 and "none of 2 trials trained to the end" in result.output
    assert json.loads((tmp_path / "found.json").read_text())["loss"] is None


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sampler must be one of tpe, cmaes"):
        tuned(SLOW, 0.1, trials=4, sampler="random")
    (tmp_path / "x.sqlite").write_text("this is no database, and long enough to be told from one" * 20)
    words = ["tune", "adamw", "--task", "quadratic", "--trials", "2", "--storage", str(tmp_path / "x.sqlite")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "cannot be used: file is not a database" in " ".join(result.output.split())


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "slow.txt").write_text(print_program(SLOW))
    out, file = tmp_path / "tuned.txt", tmp_path / "tuned.json"
    words = ["tune", tmp_path / "slow.txt", "--task", "quadratic", "--trials", 20, "--steps", 40, "--lr", 0.1]
    result = CliRunner().invoke(app, [*map(str, words), "--output", str(out), "--json", str(file)])
    assert result.exit_code == 0, result.output
    found = json.loads(file.read_text())
    assert parse_program(out.read_text()) == parse_program(found["program"])
    assert found["trials"] == 20 and found["loss"] < found["before"]
    assert "in 20 trials of 2 seeds" in result.stdout and "→" in result.stdout
    assert CliRunner().invoke(app, ["tune", "adamw", "--sampler", "best"]).exit_code == 2


def test_finalists_and_references_get_the_same_trials(tmp_path: Path) -> None:
    tiny = {"programs": 16, "batch": 16, "steps": 4, "population": 8, "tournament": 2, "workers": 0}
    run_search(SearchOptions(run_dir=tmp_path, tasks="quadratic", tune=3, **tiny))  # type: ignore[arg-type]
    table = json.loads((tmp_path / "search.json").read_text())
    constants = table["search"]["constants"]
    assert {"adamw", "lion"} < set(constants) and {row["trials"] for row in constants.values()} == {3}
    references = {entry["name"]: entry["reference"] for entry in table["table"]["optimizers"]}
    assert references == {name: not name.startswith("found") for name in constants}, "also with tuned constants"
    for row in json.loads((tmp_path / "hall_of_fame.json").read_text()):
        better = parse_program(constants[f"found {row['number']}"]["program"])
        assert resolve_program(f"{tmp_path}#{row['rank']}")[1] == better and row["key"] == better.key
        assert row["valid"] is not None
