"""The full comparison: trials that survive everything, and the same numbers however they are trained."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sqlalchemy import create_engine

from optforge.baselines import BASELINES
from optforge.experiments.cli.compare_command import Asked, compare_command, make_plan, newest_search
from optforge.experiments.compare.contest import Contest
from optforge.experiments.compare.fingerprints import changes, fingerprint, task_named
from optforge.experiments.compare.origin import origin_sentences, random_control
from optforge.experiments.compare.plan import FACTORS, Plan, Row, check_plan
from optforge.experiments.compare.reduction import Tuned, tuning
from optforge.experiments.compare.run import conduct, open_store
from optforge.experiments.compare.verdict import MANY, contest_sentence, task_label
from optforge.experiments.errors import UserError
from optforge.experiments.report.command import write_run_report
from optforge.experiments.report.comparison_json import contest_from_json
from optforge.experiments.tasks import user_tasks
from optforge.primitives import print_program
from optforge.search.training.asking import answer
from optforge.search.training.proposals import Proposer
from optforge.search.training.store import OUTCOMES
from optforge.search.training.train import train
from optforge.search.training.trial import Outcome, Status, Trial

# a task of the user's own, so that every process finds it
TASK = """
import torch
from torch import nn
from optforge.search.training import Splits, Task, TensorSplit

g = torch.Generator().manual_seed(0)
x = torch.randn(160, 6, generator=g)
y = x @ torch.randn(6, 1, generator=g) + 0.3 * torch.randn(160, 1, generator=g)
parts = [TensorSplit(*xy) for xy in zip(x.split([96, 32, 32]), y.split([96, 32, 32]))]
TASK = Task(
    name="line", summary="noisy linear regression", model=lambda: nn.Linear(6, 1), data=lambda: Splits(*parts),
    loss=lambda o, t: (o - t).square().mean(), metric="mean squared error", steps=30, batch_size=16,
    licence="generated",
)
"""
SMALL: dict[str, Any] = {"trials": 4, "seeds": 3, "steps": 20}


@pytest.fixture
def line(tmp_path: Path) -> str:
    (tmp_path / "line.py").write_text(TASK)
    return str(tmp_path / "line.py")


def row(name: str, **defaults: float) -> Row:
    program = BASELINES[name].program
    rate = sum(BASELINES[name].lr_range) / 2
    return Row(name, print_program(program.with_defaults(**defaults) if defaults else program), rate)


def plan_of(task: str, **settings: Any) -> Plan:
    return Plan((row("adamw"), row("lion")), (task,), **(SMALL | settings))


def done(plan: Plan) -> Contest:
    """The comparison, without any store."""
    return conduct(plan, train, costs=False)


def tuned(plan: Plan, loss: Callable[[Trial], float]) -> Tuned:
    """How a plan tunes where a trial's loss is a function of it."""

    def untrained(trials: Sequence[Trial]) -> list[Outcome]:
        return [Outcome(Status.OK, loss={"valid": loss(trial)}, start=1e9) for trial in trials]

    return answer(tuning(plan, plan.protocol(task_named(plan.tasks[0]), 1.0)), untrained)


def without_times(found: Any) -> Any:
    """A result without what differs between machines and moments."""
    if isinstance(found, dict):
        return {k: without_times(x) for k, x in found.items() if k not in ("costs", "time") and "seconds" not in k}
    return [without_times(x) for x in found] if isinstance(found, list) else found


def result(run: Path) -> Any:
    """What a comparison wrote, but for times."""
    return without_times(json.loads((run / "compare.json").read_text()))


def test_trials_are_nested_equal_in_number_and_at_the_same_places(line: str) -> None:
    places = []
    for trials in (1, 4, 8):
        plan = plan_of(line, trials=trials, widenings=0)
        both = tuned(plan, lambda trial: 1.0).settings
        assert [len(settings) for settings in both] == [trials, trials]
        own, other = ([setting.at for setting in settings] for settings in both)
        assert own == other and own[0] == (0.5, 0.5, 0.5)
        places.append(own)
        by_name = both[0][0].values
        assert by_name == pytest.approx({"lr": plan.rows[0].rate, "weight_decay": 0.01, "beta1": 0.9})
    assert places[0] == places[1][:1] == places[2][:1] and places[1] == places[2][:4]


@pytest.mark.parametrize("sampler", ["qmc", "tpe"])
def test_the_first_trial_is_the_program_as_it_is(line: str, sampler: str) -> None:
    plan = replace(plan_of(line, sampler=sampler, widenings=0), rows=(row("adamw", beta1=0.3),))
    (settings,) = tuned(plan, lambda trial: trial.lr).settings
    assert settings[0].values["beta1"] == pytest.approx(0.3)
    assert len({setting.values["beta1"] for setting in settings}) == len(settings) == 4


@pytest.mark.parametrize("side", [-1, 1])
def test_a_winner_at_an_edge_widens_it_and_gives_everybody_as_many_trials(line: str, side: int) -> None:
    plan = plan_of(line, trials=16, widenings=1)
    adamw, lion = plan.rows

    def loss(trial: Trial, wanted: float) -> float:
        rate, values = (adamw if "v" in trial.program.live.names else lion).rate, trial.program.hypers
        away = math.log10(trial.lr / rate) - (wanted if rate == adamw.rate else 0.0)
        return away**2 + sum((h.default - 0.01) ** 2 for h in values if h.name == "weight_decay")

    inside = tuned(plan, lambda trial: loss(trial, 0.0))
    assert [len(settings) for settings in inside.settings] == [16, 16]
    found = tuned(plan, lambda trial: loss(trial, side * 5.0))
    assert [len(settings) for settings in found.settings] == [16 + plan.extra] * 2 == [20, 20]
    assert found.spaces[0].bounds[0] == ((-0.5, 1.0) if side < 0 else (0.0, 1.5))
    assert found.spaces[1].bounds == inside.spaces[1].bounds
    assert tuned(replace(plan, widenings=0), lambda trial: loss(trial, side * 5.0)).at_edge(0) == ("lr",)
    for new in found.settings[0][16:]:  # the new trials lie where nothing was tried before
        assert any(not low <= x <= high for x, (low, high) in zip(new.at, inside.spaces[0].bounds, strict=True))
    for new in found.settings[1][16:]:
        assert all(low <= x <= high for x, (low, high) in zip(new.at, found.spaces[1].bounds, strict=True))


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_proposals_learn_from_losses(sampler: str) -> None:
    def last(favourite: float) -> float:
        proposer = Proposer(sampler, 2)
        for _ in range(12):
            points = proposer.ask(4)
            proposer.tell(points, [sum(abs(x - favourite) for x in point) for point in points])
        return sum(sum(point) for point in points) / 8

    assert last(0.1) < 0.35 and last(0.9) > 0.65


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database; one of PostgreSQL at the address in OPTFORGE_POSTGRES, whatever trials are in it."""
    url = os.environ.get("OPTFORGE_POSTGRES")
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/two.sqlite"
    if url is None:
        pytest.skip("OPTFORGE_POSTGRES is not set to postgresql+psycopg://USER@HOST/NAME of a database for tests")
    engine = create_engine(url)
    OUTCOMES.metadata.drop_all(engine)
    engine.dispose()
    return url


def begin(*words: str) -> subprocess.Popen[bytes]:
    """`optforge compare` in a process of its own."""
    command = [sys.executable, "-m", "optforge.experiments.cli", "compare", *words]
    return subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def options(line: str, run: Path, *more: str) -> list[str]:
    return ["--task", line, "--trials", "5", "--seeds", "2", "--steps", "20", "--run-dir", str(run), *more]


@pytest.mark.timeout(600)  # it starts the command line, on a machine that may be busy
def test_processes_that_share_a_storage_agree_with_one_alone(line: str, tmp_path: Path, database: str) -> None:
    both = [begin(*options(line, tmp_path / name, "--storage", database)) for name in ("one", "two")]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    settings = SMALL | {"trials": 5, "seeds": 2}
    assert compare_command([], Asked(line, settings=settings, workers=2, run_dir=tmp_path / "alone")) == 0
    assert result(tmp_path / "one") == result(tmp_path / "two") == result(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_comparison_killed_at_any_moment_goes_on_to_the_same_end(line: str, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    before: dict[str, float] = {}
    for more in ([], ["--resume"]):
        process = begin(*options(line, run, "--sampler", "tpe", *more))
        deadline = time.monotonic() + 200
        while len(finished(run)) <= len(before) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(finished(run)) > len(before) and not (run / "compare.json").exists()
        before = finished(run)
    assert compare_command([], Asked(resume=True, run_dir=run)) == 0
    after = finished(run)
    assert all(after[key] == at for key, at in before.items()), "a finished trial was trained again"
    settings = SMALL | {"trials": 5, "seeds": 2, "sampler": "tpe"}
    assert compare_command([], Asked(line, settings=settings, run_dir=whole)) == 0
    assert result(run) == result(whole) and finished(whole).keys() == after.keys()


def finished(run: Path) -> dict[str, float]:
    """When each trial ended, straight from the database."""
    try:
        db = sqlite3.connect(f"file:{run}/store.sqlite?mode=ro", uri=True)
        found = dict(db.execute("select key, finished_at from outcomes").fetchall())
        db.close()
    except sqlite3.OperationalError:  # not there yet
        return {}
    return found


@pytest.mark.pictures
def test_command_writes_everything_and_the_report_can_be_made_again(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = Asked(line, "0.5,1", SMALL, control=True, json=tmp_path / "out.json", run_dir=tmp_path / "run")
    assert compare_command(["adamw"], asked) == 0
    written = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    out = capsys.readouterr().out
    assert out.strip().startswith("Over 1 task and 2 horizons, adamw is against lion")
    assert " ".join(out.split()).startswith(written["verdict"])
    assert [p["horizon"] for p in (c["protocol"] for c in written["comparisons"])] == [0.5, 1.0]
    assert [c["protocol"]["steps"] for c in written["comparisons"]] == [10, 20]
    for comparison in written["comparisons"]:
        assert [entry["name"] for entry in comparison["optimizers"]] == ["adamw", "lion", "random control"]
        assert len({len(entry["tuning"]["trials"]) for entry in comparison["optimizers"]}) == 1
        for entry in comparison["optimizers"]:
            assert len(entry["tuning"]["rates"]) == len(FACTORS) and len(entry["runs"]) == 3
            assert entry["tuning"]["loss" if "loss" in entry["tuning"] else "values"]
            assert entry["costs"]["step_ms"] > entry["costs"]["rule_ms"] > 0
            best = min(trial["loss"] for trial in entry["tuning"]["trials"])
            chosen = next(t for t in entry["tuning"]["trials"] if t["values"] == entry["tuning"]["values"])
            assert chosen["loss"] == best and entry["lr"] == chosen["values"]["lr"]
        assert len({json.dumps([run["start"] for run in e["runs"]]) for e in comparison["optimizers"]}) == 1
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"compare.json", "plan.json", "report.html", "report.md"}
    page = (tmp_path / "run" / "report.html").read_text()
    for title in ("Performance profile", "Best of k trials", "Learning-rate sensitivity", "Loss against memory"):
        assert title in page
    read = contest_from_json(written, tmp_path / "out.json")
    assert read.as_json() == {**written, "comparisons": read.as_json()["comparisons"]}
    assert write_run_report([tmp_path / "run"]).html.read_text() == page
    with pytest.raises(UserError, match="never overwritten"):
        compare_command(["adamw"], asked)
    known = finished(tmp_path / "run")
    assert compare_command(["adamw"], replace(asked, resume=True, json=None)) == 0  # finished already: only reports
    assert finished(tmp_path / "run") == known


def test_reported_run_equals_training_with_torch(line: str) -> None:
    """The configuration that was selected, with torch's own AdamW, cosine schedule, warm-up and clipping."""
    from optforge.experiments.tasks import get_task
    from optforge.search.training.task import batch_indices, initial_model
    from optforge.search.training.torch_schedules import cosine

    plan = plan_of(line, trials=1, widenings=0, clip=0.5, warmup=0.2, schedule="cosine")
    found = done(plan).comparisons[0]
    entry, task, steps = found.entry("adamw"), get_task(line), found.protocol.steps
    run, best = entry.runs[1], entry.tuning.values
    model = initial_model(task, run.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=best["lr"], betas=(best["beta1"], 0.999),
                                  weight_decay=best["weight_decay"])  # fmt: skip
    schedule = cosine(optimizer, steps, found.protocol.warmup)
    data = task.data()
    for indices in batch_indices(len(data.train), task.batch_size, steps, run.seed):
        inputs, targets = data.train.batch(indices)
        optimizer.zero_grad()
        task.loss(model(inputs), targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        x, y = data.test.batch(torch.arange(32))
        assert run.test == pytest.approx(float(task.loss(model(x), y)), rel=1e-4)
    assert found.protocol.warmup == 4 and run.valid_curve[-1] == pytest.approx(run.valid)


def test_a_loss_that_is_not_finite_before_training_is_a_sentence(line: str) -> None:
    odd = TASK.replace("parts = ", "y[100:110] = float('inf')\nparts = ")  # only where it validates
    Path(line).write_text(odd)
    with pytest.raises(UserError, match=r"the validation loss of .* before training is not finite"):
        done(plan_of(line))


def test_many_tasks_are_counted_and_few_are_named(line: str) -> None:
    plan = plan_of(line, trials=2, seeds=2, widenings=0)
    comparison = done(plan).comparisons[0]
    few, many = (contest_sentence([comparison] * n) for n in (MANY, MANY + 1))
    assert few.count(f"{task_label(comparison)} (") == MANY and f" of {MANY} (" not in few
    assert many.count(f"{task_label(comparison)} (") == 0 and f" on {MANY + 1} of {MANY + 1} (" in many


def test_a_baseline_in_other_words_is_a_reference(line: str, tmp_path: Path) -> None:
    lion = print_program(BASELINES["lion"].program)
    (tmp_path / "mylion.txt").write_text(re.sub(r"\bm\b", "momentum", lion))
    (tmp_path / "bad.txt").write_text(print_program(BASELINES["adamw"].program.with_defaults(beta2=0.5)))
    given = [str(tmp_path / "mylion.txt"), str(tmp_path / "bad.txt")]
    plan = make_plan(given, Asked(line, "0.5,1", SMALL | {"trials": 1}))
    assert plan.rows[0].rate == plan.rows[3].rate != plan.rows[1].rate == 1e-3, "ranges are the baseline's"
    assert plan.rows[0].program != BASELINES["lion"].program and plan.rows[0].program.key == plan.rows[3].program.key
    found = done(plan)
    assert {e.name: e.reference for e in found.comparisons[0].entries} == {
        "mylion": True, "bad": False, "adamw": True, "lion": True,
    }  # fmt: skip
    assert found.verdict.startswith("Over 1 task and 2 horizons, bad is against mylion ")
    for verdict in (found.verdict, found.comparisons[0].verdict):
        assert "best of" not in verdict and all(name in verdict for name in ("mylion", "adamw", " lion"))


def test_a_random_control_carries_no_fallback_of_what_it_is_like() -> None:
    muon = BASELINES["muon"].program
    assert muon.fallback is not None
    control = random_control(muon)
    assert not control.needs_matrix and control.fallback is None


def test_a_file_does_not_take_a_baselines_name_and_a_horizon_counts_once(line: str, tmp_path: Path) -> None:
    (tmp_path / "adamw.txt").write_text(print_program(BASELINES["sgd"].program))
    plan = make_plan([str(tmp_path / "adamw.txt")], Asked(line, "1,0.5,1", SMALL))
    found = {row.name: row.program for row in plan.rows}
    assert found["adamw"] == BASELINES["adamw"].program and found["adamw (2)"] == BASELINES["sgd"].program
    assert plan.horizons == (1.0, 0.5)


def test_a_comparison_is_resumed_as_it_began_or_not_at_all(line: str, tmp_path: Path) -> None:
    plan = plan_of(line)
    (tmp_path / "plan.json").write_text(json.dumps(plan.as_json()))
    resume = Asked(resume=True, run_dir=tmp_path)
    for programs, asked, words in (
        (["sgd"], resume, "no sgd in it"),
        (["lion"], replace(resume, control=True), "no random control in it"),
        ([], replace(resume, settings={"trials": 99, "clip": 0.5}), f"trials {plan.trials}, not 99, clip 0.0, not 0.5"),
        ([], replace(resume, horizons="0.25,1,4"), "horizons 1.0, not 0.25 1.0 4.0"),
        ([], replace(resume, tasks="digits"), f"tasks {line}, not digits"),
        ([], replace(resume, quick=True), f"trials {plan.trials}, not 8"),
        ([], replace(resume, quick=True, settings={"trials": 16}), f"trials {plan.trials}, not 16"),
    ):
        with pytest.raises(UserError, match=f"is another comparison: {words}; it goes on only as it began"):
            compare_command(programs, asked)


def test_an_edited_plan_is_refused_in_a_sentence(line: str, tmp_path: Path) -> None:
    whole = plan_of(line).as_json()
    for plan in (whole | {"seeds": "x"}, [], [1], whole | {"fingerprints": {line: [1]}}, whole | {"fingerprints": [1]}):
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        with pytest.raises(UserError, match="is not a plan of a comparison"):
            compare_command([], Asked(resume=True, run_dir=tmp_path))


def test_a_comparison_is_resumed_on_its_storage_and_its_data(line: str, tmp_path: Path) -> None:
    begun, resume = plan_of(line).as_json(), Asked(resume=True, run_dir=tmp_path)
    shared = "postgresql://me:secret@host/name"
    for storage, asked, words in (
        ("postgresql://me@host/name", None, "needs its --storage postgresql://me@host/name"),
        (None, shared, "leave --storage out"),
    ):
        (tmp_path / "plan.json").write_text(json.dumps(begun | {"storage": storage}))
        with pytest.raises(UserError, match=words):
            compare_command([], replace(resume, storage=asked))
    for storage, asked in ((None, None), ("postgresql://me@host/name", shared)):  # a password is not in the file
        other = {"storage": storage, "fingerprints": {line: {"train": "other"}}}
        (tmp_path / "plan.json").write_text(json.dumps(begun | other))
        with pytest.raises(UserError, match=f"{line} is another task than .* was begun with: its data changed"):
            compare_command([], replace(resume, storage=asked))
    with pytest.raises(UserError, match="a comparison that has not ended: optforge compare --resume"):
        write_run_report([tmp_path])


def test_quick_gives_way_to_what_is_asked_for(line: str) -> None:
    assert make_plan([], Asked(line, quick=True)).trials == 8
    plan = make_plan([], Asked(line, "0.25,4", {"trials": 64}, quick=True))
    assert plan.trials == 64 and plan.horizons == (0.25, 4.0)


def test_two_tasks_of_one_name_are_refused_before_anything_is_written(line: str, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(TASK)
    asked = Asked(f"{line},{line},{tmp_path / 'other.py'}", settings=SMALL, run_dir=tmp_path / "run")
    with pytest.raises(UserError, match=f"{line} and .*other.py are both called 'line'; give each its own name"):
        compare_command([], asked)
    assert not (tmp_path / "run").exists()


def test_results_of_another_task_are_neither_reused_nor_mixed(line: str, tmp_path: Path) -> None:
    store = open_store(tmp_path / "trials.sqlite")

    def key() -> str:
        user_tasks.from_file.cache_clear()
        task_named.cache_clear()
        return store.key(Trial(BASELINES["adamw"].program, 0.1, task_named(line), 0))

    keys = [key(), key()]
    plans = [make_plan(["adamw"], Asked(line, settings=SMALL))]
    for old, new in (("nn.Linear(6, 1)", "nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1))"), (".square()", ".abs()")):
        Path(line).write_text(Path(line).read_text().replace(old, new))
        keys.append(key())
        plans.append(make_plan(["adamw"], Asked(line, settings=SMALL)))
    store.close()
    assert keys[0] == keys[1] and len(set(keys)) == 3
    for plan, words in ((plans[0], "model and file"), (plans[1], "file")):
        (tmp_path / "plan.json").write_text(json.dumps(plan.as_json()))
        with pytest.raises(
            UserError, match=f"{line} is another task than .* was begun with: its {words} changed; undo"
        ):
            compare_command([], Asked(resume=True, run_dir=tmp_path))


def test_results_of_another_loss_are_not_reused_wherever_it_is_imported_from(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    Path(line).write_text(TASK.replace("lambda o, t: (o - t).square().mean()", "__import__('line_helper').loss"))
    prints = []
    for factor in ("1", "1", "1.0000001", "1.01"):
        helper = ModuleType("line_helper")
        exec(f"def loss(o, t): return {factor} * (o - t).square().mean()", helper.__dict__)
        monkeypatch.setitem(sys.modules, helper.__name__, helper)
        user_tasks.from_file.cache_clear()
        prints.append(fingerprint(line))
    assert prints[0] == prints[1] == prints[2], "rounding on another machine is no other task"
    assert changes(prints[0], prints[3]) == ["loss"]
    assert changes({**prints[0], "train": "other"}, prints[3]) == ["data"], "of which another loss is a consequence"


def test_plan_survives_json_also_one_from_before_fingerprints(line: str) -> None:
    plan = plan_of(line, horizons=(0.25, 4.0))
    written = json.loads(json.dumps(plan.as_json()))
    assert Plan.from_json(written) == plan
    assert [plan.protocol(task_named(line), h).steps for h in plan.horizons] == [5, 80]
    del written["fingerprints"]
    assert Plan.from_json(written) == plan


def test_a_searched_program_brings_its_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    assert newest_search() is None
    adam = print_program(BASELINES["adam"].program)
    (folder / "hall_of_fame.json").write_text(json.dumps([{"rank": 1, "lr": 0.05, "program": adam}]))
    summary = {
        "config": {"task": "digits", "ladder": [0.1, 1.0], "seeds": [0, 1], "steps": 50},
        "programs": 30,
        "seconds": 7,
    }
    (folder / "search.json").write_text(json.dumps({"search": summary}))
    assert newest_search() == "runs/first#1"
    asked = Asked("suite", "1", SMALL, quick=True)
    plan = make_plan(["runs/first#1"], asked)
    assert "digits" not in plan.tasks and plan.rows[0].rate == 0.05
    assert plan.origins[0]["steps"] == 30 * 2 * 2 * 50
    (sentence,) = origin_sentences(plan.origins, ["mnist1d"])
    assert "on digits, which is left out. The search trained 30 programs in 6,000 steps" in sentence
    assert "flatters" in origin_sentences(plan.origins, ["digits"])[0]


def test_tasks_by_which_a_funnel_chose_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "kept"
    run.mkdir()
    fame = [{"rank": 1, "number": 4, "lr": 0.05, "program": print_program(BASELINES["adam"].program)}]
    (run / "hall_of_fame.json").write_text(json.dumps(fame))
    config = {"task": "digits", "ladder": [0.1, 1.0], "seeds": [0, 1], "steps": 50}
    (run / "search.json").write_text(json.dumps({"search": {"config": config, "programs": 30, "seconds": 7}}))
    stages: list[dict[str, Any]] = [
        {"tasks": ["digits"], "scores": {"4": {}, "9": {}, "11": {}}},
        {"tasks": ["digits-autoencoder", "charlm"], "scores": {"4": {}, "9": {}}},
        {"tasks": ["mnist1d"], "scores": {"4": {}, "2": {}, "7": {}}},  # the last chooses nothing
    ]
    (run / "funnel.json").write_text(json.dumps({"stages": stages}))
    plan = make_plan(["kept#1"], Asked("suite", "1", SMALL))
    assert not {"digits", "digits-autoencoder", "charlm"} & set(plan.tasks)
    assert {"mnist1d", "digits-conv"} <= set(plan.tasks)
    said = origin_sentences(plan.origins, plan.tasks)[0]
    assert "on digits, and chosen by its funnel on digits-autoencoder, charlm; all these are left out." in said
    assert "to be compared on charlm all the same flatters it" in origin_sentences(plan.origins, ["charlm"])[0]
    (run / "funnel.json").write_text("[]")
    with pytest.raises(UserError, match="is not a search that can be read"):
        make_plan(["kept#1"], Asked("suite", "1", SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "at least 1"),
        ({"sampler": "grid"}, "unknown sampler"),
        ({"horizons": (0.0,)}, "horizons"),
        ({"warmup": 1.0}, "warm-up"),
        ({"tasks": ()}, "nothing to compare"),
        ({"trials": 10**20}, "at most 10,000"),
        ({"seeds": 10**11}, "at most 10,000"),
        ({"tune_seeds": 10**11}, "at most 10,000"),
        ({"horizons": (1.0, 1e300)}, "horizons must be at most 1,000"),
        ({"steps": 10**21}, "at most 10,000,000"),
        ({"steps": 10**5, "horizons": (1.0, 500.0)}, "at most 10,000,000"),
    ],
)
def test_unsound_plans_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_plan(replace(plan_of("digits"), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": "digitz"}, "unknown task"),
        ({"json": Path("nowhere/out.json")}, "cannot be written"),
        ({"horizons": "1,x"}, "--horizons takes numbers"),
        ({"storage": "here"}, "--storage 'here' is no address"),
        ({"storage": "sqlite://", "run_dir": Path("run")}, "--storage sqlite:// is only in memory"),
        ({"storage": "sqlite:///:memory:", "run_dir": Path("run")}, "name a file, as in: sqlite:///trials.sqlite"),
        ({"storage": "foo://bar", "run_dir": Path("run")}, "--storage foo://bar is no database that can be used"),
        ({"workers": 0}, "--workers must be at least 1"),
        ({"resume": True}, "--resume needs the --run-dir"),
        ({"settings": {"tune_seeds": 1001}}, "--tune-seeds must be at most 1000"),
        ({"settings": {"schedule": "sine"}}, "unknown schedule"),
    ],
)
def test_command_refuses_in_one_sentence_and_leaves_nothing(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        compare_command(["adamw"], replace(Asked(settings=SMALL), **changes))
    assert not any(tmp_path.iterdir())
