"""The full comparison: a plan of jobs that survives everything, and gives the same numbers however it is done."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import optuna
import pytest
import torch

from optforge.baselines import BASELINES
from optforge.experiments.compare import tuning as storage_of_jobs
from optforge.experiments.compare import work
from optforge.experiments.compare.batches import ROOM_OF_GPU
from optforge.experiments.compare.command import Asked, compare_command, make_plan, newest_search
from optforge.experiments.compare.contest import contest
from optforge.experiments.compare.fingerprints import changes, fingerprint
from optforge.experiments.compare.origin import count_seen, origin_sentences, random_control
from optforge.experiments.compare.plan import FACTORS, Plan, Row, block_size, check_plan, pending, tuning
from optforge.experiments.compare.tuning import Jobs, proposals
from optforge.experiments.compare.verdict import MANY, contest_sentence, task_label
from optforge.experiments.compare.work import run_job, study_name, work_together
from optforge.experiments.errors import UserError
from optforge.experiments.report.command import write_run_report
from optforge.experiments.report.comparison_json import contest_from_json
from optforge.experiments.tasks import user_tasks
from optforge.primitives import print_program

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


def done(plan: Plan) -> dict[str, Any]:
    """All results of a plan, without any storage."""
    results: dict[str, Any] = {}
    while jobs := pending(plan, results, dict.fromkeys(plan.tasks, 8)):
        results |= {job.name: run_job(plan, job) for job in jobs}
    return results


def without_times(results: dict[str, Any]) -> str:
    return json.dumps({name: r for name, r in results.items() if "costs" not in name}, sort_keys=True)


def test_trials_are_nested_equal_in_number_and_at_the_same_places(line: str) -> None:
    places = []
    for trials in (1, 4, 8):
        plan = plan_of(line, trials=trials, widenings=0)
        tuned = tuning(plan, line, 1.0, {}, 32)
        assert [len(job.points) for job in tuned.jobs] == [trials, trials]
        assert tuned.jobs[0].points == tuned.jobs[1].points
        assert tuned.jobs[0].points[0] == (0.5, 0.5, 0.5)
        places.append(tuned.jobs[0].points)
        by_name = tuned.jobs[0].configurations[0]
        assert by_name == pytest.approx({"lr": plan.rows[0].rate, "weight_decay": 0.01, "beta1": 0.9})
    assert places[0] == places[1][:1] == places[2][:1] and places[1] == places[2][:4]


@pytest.mark.parametrize("sampler", ["qmc", "tpe"])
def test_the_first_trial_is_the_program_as_it_is(line: str, sampler: str) -> None:
    plan = replace(plan_of(line, sampler=sampler), rows=(row("adamw", beta1=0.3),))
    (job, *_) = tuning(plan, line, 1.0, {}, 4).jobs
    assert job.configurations[0]["beta1"] == pytest.approx(0.3)
    assert len({c["beta1"] for c in job.configurations}) == 4


def test_blocks_do_not_change_what_is_tried(line: str) -> None:
    plan = plan_of(line, trials=7)
    whole = tuning(plan, line, 1.0, {}, 32).jobs
    parts = tuning(plan, line, 1.0, {}, 2).jobs
    assert [c for job in parts if job.row == 1 for c in job.configurations] == list(whole[1].configurations)


def test_more_trials_train_at_once_where_there_is_room(line: str) -> None:
    small, large = plan_of(line), plan_of(line, room=ROOM_OF_GPU)
    assert [block_size(small, n) for n in (60_000, 70_000, 1_300_000)] == [8, 1, 1]
    assert [block_size(large, n) for n in (60_000, 1_300_000, 124_000_000)] == [8, 8, 1]
    assert block_size(plan_of(line, sampler="tpe"), 7) == 1  # each trial learns from all before it


def test_a_winner_at_an_edge_widens_it_and_gives_everybody_as_many_trials(line: str) -> None:
    plan = plan_of(line, trials=8)
    (adamw, lion) = tuning(plan, line, 1.0, {}, 8).jobs

    def outcome(job: Any, winner: int) -> dict[str, Any]:
        seeds = {"losses": [1.0, 1.0], "counted": [1.0, 1.0], "failed": [False, False]}
        return {"trials": [{"values": c, "loss": float(k != winner), "at": at, **seeds}
                           for k, (c, at) in enumerate(zip(job.configurations, job.points, strict=True))]}  # fmt: skip

    inside = next(k for k, at in enumerate(adamw.points) if all(0.1 <= x <= 0.9 for x in at))
    assert not tuning(plan, line, 1.0, {adamw.name: outcome(adamw, inside), lion.name: outcome(lion, inside)}, 8).jobs
    edge = next(k for k, at in enumerate(adamw.points) if any(x < 0.1 or x > 0.9 for x in at))
    found = tuning(plan, line, 1.0, {adamw.name: outcome(adamw, edge), lion.name: outcome(lion, inside)}, 8)
    assert [len(job.points) for job in found.jobs] == [plan.extra, plan.extra] == [2, 2]
    (index, side), *_ = found.spaces[1].edges(adamw.points[edge])
    first = tuning(replace(plan, widenings=0), line, 1.0, {job.name: outcome(job, edge) for job in (adamw, lion)}, 8)
    assert found.spaces[1].dimensions[index].name in first.at_edge(0)
    low, high = found.spaces[0].bounds[index]
    assert (low, high) == ((-0.5, 1.0) if side < 0 else (0.0, 1.5))
    for at in found.jobs[0].points:  # the new trials lie where nothing was tried before
        assert any(not 0 <= x <= 1 for x in at)
    assert found.spaces[1].bounds == ((0.0, 1.0),) * 3
    assert all(0 <= x <= 1 for at in found.jobs[1].points for x in at)


def test_tpe_learns_from_the_trials_before(line: str) -> None:
    def tried(favourite: float) -> list[tuple[tuple[float, ...], float]]:
        return [(p, abs(p[0] - favourite)) for p in proposals("qmc", 2, 16, 0)]

    left, right = (proposals("tpe", 2, 8, 0, tried(x)) for x in (0.1, 0.9))
    assert sum(p[0] for p in left) < sum(p[0] for p in right)
    plan = plan_of(line, sampler="tpe", trials=6)
    first = tuning(plan, line, 1.0, {}, 2).jobs
    assert [job.name.split()[-1] for job in first] == ["0", "0"]  # one block of each at a time
    results = {job.name: run_job(plan, job) for job in first}
    for block in (1, 2):  # a comparison that was begun in larger blocks goes on
        assert [job.name.split()[-1] for job in tuning(plan, line, 1.0, results, block).jobs] == ["2", "2"]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database; one of PostgreSQL at the address in OPTFORGE_POSTGRES, whatever studies are in it."""
    url = os.environ.get("OPTFORGE_POSTGRES")
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/two.sqlite"
    if url is None:
        pytest.skip("OPTFORGE_POSTGRES is not set to postgresql+psycopg://USER@HOST/NAME of a database for tests")
    storage = optuna.storages.RDBStorage(url)
    for study in storage.get_all_studies():
        storage.delete_study(study._study_id)
    storage.remove_session()
    storage.engine.dispose()
    return url


def test_processes_agree_and_repeat_exactly(line: str, database: str) -> None:
    plan = plan_of(line, trials=2, seeds=2, widenings=1)
    alone = done(plan)
    shared = work_together(database, plan, 2, lambda *_: None, alone=True)
    assert without_times(shared) == without_times(json.loads(json.dumps(alone)))


def test_a_worker_that_dies_costs_nothing(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dead = SimpleNamespace(start=lambda: None, join=lambda: None, terminate=lambda: None, exitcode=-9)
    context = SimpleNamespace(Process=lambda **_: dead)
    monkeypatch.setattr(work.multiprocessing, "get_context", lambda kind: context)
    plan = plan_of(line, trials=1, seeds=2, widenings=0)
    results = work_together(f"sqlite:///{tmp_path}/jobs.sqlite", plan, 2, lambda *_: None, alone=True)
    assert not pending(plan, results, {line: 8})
    assert "1 of 2 processes died (exit code -9); the others did all jobs" in capsys.readouterr().err


def test_only_one_gets_a_job_and_the_dead_lose_theirs(database: str) -> None:
    first, second = (Jobs(database, "s") for _ in range(2))
    name, claim = first.claim(["a", "b"]) or pytest.fail("nothing to claim")
    assert name == "a" and (second.claim(["a", "b"]) or ("",))[0] == "b" and first.claim(["a", "b"]) is None
    first.finish(claim, {"x": 1.5}, 2.0)
    assert second.results() == {"a": {"x": 1.5}} and second.seconds() == 2.0
    assert second.release() == 1 and (first.claim(["a", "b"]) or ("",))[0] == "b"


def test_a_claim_counts_as_dead_a_while_after_it_was_made(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_of_jobs, "HEARTBEAT", 1)
    first, second = (Jobs(database, "s") for _ in range(2))
    assert first.claim(["a"]) and second.claim(["a"]) is None  # and then its process was killed
    deadline = time.monotonic() + 30
    while (claimed := second.claim(["a"])) is None and time.monotonic() < deadline:
        time.sleep(0.2)
        second.release_dead()
    assert claimed is not None


@pytest.mark.slow
@pytest.mark.timeout(600)  # it starts the command line, on a machine that may be busy
def test_kill_loses_at_most_the_job_in_flight_and_nothing_is_computed_twice(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    options = ["--task", line, "--trials", "4", "--seeds", "2", "--steps", "20", "--run-dir", str(run)]
    script = "from optforge.experiments.compare import plan; plan.BLOCK = 1; "
    script += "from optforge.experiments.cli import main; main()"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script, "compare", *options], env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    finished: dict[str, Any] = {}
    deadline = time.monotonic() + 120
    while len(finished) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
        finished = finished_jobs(run)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = finished_jobs(run)
    assert len(finished) >= 3 and not (run / "compare.json").exists()

    monkeypatch.setattr("optforge.experiments.compare.plan.BLOCK", 1)
    assert compare_command([], Asked(resume=True, run_dir=run)) == 0
    states = (
        sqlite3.connect(run / "compare.sqlite").execute("select state, count(*) from trials group by state").fetchall()
    )
    assert dict(states).get("FAIL", 0) <= 1 and "RUNNING" not in dict(states)
    after = finished_jobs(run)
    assert len(after) == len(set(after)) and all(after[n] == at for n, at in finished.items())
    begun = json.loads((run / "plan.json").read_text())
    assert begun.pop("storage") is None
    assert set(begun["fingerprints"][line]) == {"train", "valid", "test", "model", "loss", "file"}
    plan = Plan.from_json(begun)
    results = Jobs(f"sqlite:///{run}/compare.sqlite", study_name(plan)).results()
    uninterrupted: dict[str, Any] = {}
    while jobs := pending(plan, uninterrupted, {line: 1}):
        uninterrupted |= {job.name: run_job(plan, job) for job in jobs}
    assert without_times(results) == without_times(json.loads(json.dumps(uninterrupted)))


def finished_jobs(run: Path) -> dict[str, str]:
    """When each finished job ended, straight from the database."""
    query = (
        "select a.value_json, t.datetime_complete from trials t join trial_user_attributes a on a.trial_id = t.trial_id"
        " where t.state = 'COMPLETE' and a.key = 'job'"
    )
    try:
        return dict(sqlite3.connect(f"file:{run}/compare.sqlite?mode=ro", uri=True).execute(query).fetchall())
    except sqlite3.OperationalError:  # not there yet
        return {}


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
    assert compare_command(["adamw"], replace(asked, resume=True, json=None)) == 0  # finished already: only reports


def test_reported_run_equals_training_with_torch(line: str) -> None:
    """The configuration that was selected, with torch's own AdamW, cosine schedule, warm-up and clipping."""
    from optforge.experiments.tasks import get_task
    from optforge.search.training.task import batch_indices, initial_model
    from optforge.search.training.torch_schedules import cosine

    plan = plan_of(line, trials=1, widenings=0, clip=0.5, warmup=0.2, schedule="cosine")
    found = contest(plan, done(plan), 0.0).comparisons[0]
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
    plan = plan_of(line)
    job = pending(plan, {}, {line: 8})[0]
    with pytest.raises(UserError, match=r"the validation loss of .*line\.py before training is not finite"):
        run_job(plan, job)


def test_many_tasks_are_counted_and_few_are_named(line: str) -> None:
    plan = plan_of(line, trials=2, seeds=2, widenings=0)
    comparison = contest(plan, done(plan), 0.0).comparisons[0]
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
    found = contest(plan, done(plan), 0.0)
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
        (tmp_path / "plan.json").write_text(json.dumps(begun | {"storage": storage, "data": {}}))
        with pytest.raises(UserError, match=words):
            compare_command([], replace(resume, storage=asked))
    for storage, asked in ((None, None), ("postgresql://me@host/name", shared)):  # a password is not in the file
        (tmp_path / "plan.json").write_text(
            json.dumps(begun | {"storage": storage, "data": {line: {"train": "other"}}})
        )
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
    plans = [make_plan(["adamw"], Asked(line, settings=SMALL))]
    for old, new in (("nn.Linear(6, 1)", "nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 1))"), (".square()", ".abs()")):
        Path(line).write_text(Path(line).read_text().replace(old, new))
        user_tasks.from_file.cache_clear()
        plans.append(make_plan(["adamw"], Asked(line, settings=SMALL)))
    assert len({study_name(plan) for plan in plans}) == 3
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


def test_a_comparison_from_before_fingerprints_goes_on(line: str) -> None:
    before = plan_of(line).as_json()
    del before["fingerprints"]
    name = hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()[:16]
    assert study_name(Plan.from_json(before)) == f"optforge-{name}"


def test_plan_survives_json_and_equal_plans_have_one_study(line: str) -> None:
    plan = plan_of(line, horizons=(0.25, 4.0))
    again = Plan.from_json(json.loads(json.dumps(plan.as_json())))
    assert again == plan and study_name(again) == study_name(plan) != study_name(replace(plan, trials=5))
    assert [plan.protocol(work.get_task(line), h).steps for h in plan.horizons] == [5, 80]


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
    programs = {r.name: r.program for r in plan.rows}
    assert count_seen(plan.origins, programs, ["mnist1d"]) == {"mnist1d": 1}
    other = dict.fromkeys(programs, BASELINES["lion"].program)
    assert count_seen(plan.origins, other, ["mnist1d", "copy"]) == {"mnist1d": 2, "copy": 1}
    sentence, counted = origin_sentences(plan.origins, ["mnist1d"], {"mnist1d": 2})
    assert "on digits, which is left out. The search trained 30 programs in 6,000 steps" in sentence
    assert "mnist1d 2" in counted
    assert "flatters" in origin_sentences(plan.origins, ["digits"], {})[0]


def test_tasks_by_which_a_funnel_chose_are_left_out_and_its_candidates_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    programs = {r.name: r.program for r in plan.rows}
    for _ in range(2):  # the program itself counts once, however often it is compared
        counts = count_seen(plan.origins, programs, ["charlm", "mnist1d", "copy"])
        assert counts == {"charlm": 2, "mnist1d": 3, "copy": 1}
    said = origin_sentences(plan.origins, plan.tasks, counts)[0]
    assert "on digits, and chosen by its funnel on digits-autoencoder, charlm; all these are left out." in said
    assert "to be compared on charlm all the same flatters it" in origin_sentences(plan.origins, ["charlm"], counts)[0]
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
        ({"storage": "sqlite:///:memory:", "run_dir": Path("run")}, "name a file, as in: sqlite:///jobs.sqlite"),
        ({"storage": "foo://bar", "run_dir": Path("run")}, "--storage foo://bar cannot be used"),
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
