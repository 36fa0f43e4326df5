"""`optforge search` from end to end: what it writes, how it resumes, and what it says to bad requests."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from optforge.baselines import BASELINES
from optforge.experiments.errors import UserError
from optforge.experiments.programs import resolve_program
from optforge.experiments.searching import hall_of_fame
from optforge.experiments.searching.hall_of_fame import Ending, distinct
from optforge.experiments.searching.options import SearchOptions, evolution
from optforge.experiments.searching.presets import DEFAULTS, PRESETS
from optforge.experiments.searching.run import cautions, digest, run_search
from optforge.primitives import print_program
from optforge.search.engine import Search
from optforge.search.fitness.evaluator import Fitness, Status
from optforge.search.ledger import Ledger, Record
from optforge.search.training.store import StoreError

TINY = {"tasks": "digits", "programs": 40, "batch": 16, "steps": 4, "population": 8, "tournament": 2, "workers": 0}


NAMES = {"ops": ["lion45"], "signals": ["g"], "blocks": []}


def options(run_dir: Path, **changes: object) -> SearchOptions:
    run_dir.mkdir(exist_ok=True)
    return SearchOptions(run_dir=run_dir, **{**TINY, **changes})  # type: ignore[arg-type]


def search(options: SearchOptions) -> None:
    """A search without its end, for what can be seen in the ledger; `finished` has a whole one."""
    whole = hall_of_fame.conclude

    def conclude(run_dir: Path, json_file: Path | None, config: Any, found: Search, ending: Ending, *rest: Any) -> None:
        whole(run_dir, json_file, config, found, ending._replace(fast=True), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hall_of_fame, "conclude", conclude)
        assert run_search(options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "run"
    assert run_search(options(folder, json=folder.parent / "table.json"))
    return folder


def test_everything_promised_is_there(finished: Path) -> None:
    rows = json.loads((finished / "hall_of_fame.json").read_text())
    assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        _, program = resolve_program(f"{finished}#{row['rank']}")
        assert program.key == row["key"]
        assert program == program.pruned()
    table = json.loads((finished.parent / "table.json").read_text())
    assert table["search"]["programs"] == 40
    assert table["search"]["digest"] == digest(finished)
    names = {entry["name"] for entry in table["table"]["optimizers"]}
    assert {"adamw", "lion", "muon"} < names and len(names) == len(rows) + 3
    assert all(set(row["unseen tasks"]["by_task"]) == {"mnist1d", "digits-autoencoder"} for row in rows)
    for name in ("report.md", "report.html", "store.sqlite"):
        assert (finished / name).stat().st_size > 1000
    assert "adamw" in (finished / "report.md").read_text()
    assert any((finished / "tensorboard").iterdir())


def test_curves_over_programs_are_logged(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    summary = json.loads((finished / "search.json").read_text())["search"]
    last = {tag: events.Scalars(tag)[-1] for tag in events.Tags()["scalars"]}
    for tag, value in (
        ("cache hits/by key", summary["cache hits"]["by key"]),
        ("cache hits/by key and behaviour", summary["cache hits"]["by key and behaviour"]),
        ("search/redundant statements", summary["redundant statements"]),
        ("generated/not_finite", summary["counters"]["not finite"] / summary["counters"]["generated"]),
    ):
        assert last[tag].value == pytest.approx(value, rel=1e-5) and last[tag].step == 40
    records = _records(finished)
    live = sum(len(r.program.live.instructions) for r in records)
    assert summary["redundant statements"] == pytest.approx(1 - live / sum(len(r.program.body) for r in records))


def test_finalists_are_ranked_by_their_scores_on_fresh_seeds(finished: Path) -> None:
    rows = json.loads((finished / "hall_of_fame.json").read_text())
    means = [row["own tasks"]["mean"] for row in rows]
    assert means == sorted(means) and len(set(means)) > 1
    for row in rows:
        (by_seed,) = row["own tasks"]["by_task"].values()
        assert row["own tasks"]["mean"] == pytest.approx(sum(by_seed) / 3)
        assert row["score"] not in by_seed  # a seed of the search is no fresh one


def test_a_search_in_parts_and_with_processes_equals_one_in_a_piece(finished: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    search(options(parts, programs=16))
    search(SearchOptions(run_dir=parts, programs=40, resume=True, workers=1))
    assert digest(parts) == digest(finished)


def test_another_seed_gives_another_ledger(finished: Path, tmp_path: Path) -> None:
    search(options(tmp_path / "other", seed=1, programs=16))
    assert digest(tmp_path / "other") != digest(finished)


def test_resuming_goes_on_to_the_same_budget_and_needs_the_same_settings(finished: Path) -> None:
    before = digest(finished)
    run_search(SearchOptions(run_dir=finished, resume=True, workers=0))
    assert digest(finished) == before
    with pytest.raises(UserError, match="begun with seed 0 and cannot go on with 5"):
        run_search(SearchOptions(run_dir=finished, resume=True, seed=5))
    with pytest.raises(UserError, match="already exists; resume that run"):
        run_search(options(finished))


def test_bad_requests_get_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown preset 'minute'; did you mean minutes"):
        run_search(options(tmp_path, preset="minute"))
    with pytest.raises(UserError, match="holds no search run"):
        run_search(SearchOptions(run_dir=tmp_path, resume=True))
    with pytest.raises(UserError, match="holds no search run"):
        digest(tmp_path)
    with pytest.raises(UserError, match="unknown optimizer 'adamx'"):
        run_search(options(tmp_path, start="adamx"))
    with pytest.raises(UserError, match="unknown task 'digit'; did you mean digits"):
        run_search(options(tmp_path, tasks="digit"))


def test_ctrl_c_keeps_what_was_evaluated_and_resume_goes_on(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "optforge.experiments.cli",
        "search",
        "--run-dir",
        str(folder),
        "--steps",
        "4",
    ]
    command += ["--tasks", "digits", "--programs", "100000", "--population", "8", "--tournament", "2", "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(StoreError):  # which is being created
            if len(list(_records(folder))) >= 32:
                break
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output and "--resume" in output
    kept = len(list(_records(folder)))
    assert kept >= 32 and kept % 16 == 0
    assert resolve_program(f"{folder}#1")
    ledger = Ledger.open(folder)  # nobody holds the run any more
    ledger.close()


def _records(folder: Path) -> list[Record]:
    ledger = Ledger.open(folder, read_only=True)
    try:
        return list(ledger)
    finally:
        ledger.close()


def test_programs_that_train_alike_are_one_find(finished: Path) -> None:
    record = next(r for r in _records(finished) if r.fitness.status is Status.OK)
    (part,) = record.fitness.parts

    def like(number: int, factor: float) -> Record:
        parts = (part._replace(by_rate=tuple(x * factor for x in part.by_rate)),)
        return record._replace(number=number, fitness=Fitness(0.5, Status.OK, parts=parts))

    twin, other = like(900, 1 + 1e-6), like(901, 1.01)
    assert [r.number for r in distinct([record, twin, other])] == [record.number, 901]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_bounded_in_number_and_time_and_make_sense(name: str) -> None:
    preset = PRESETS[name]
    settings = {**DEFAULTS, **preset}
    assert preset["programs"] % settings["batch"] == 0 and math.isfinite(preset["minutes"])
    assert set(preset) - {"programs", "minutes", "funnel", "tune", "ablate"} <= set(DEFAULTS)
    program = print_program(BASELINES["adamw"].program)
    assert evolution({**settings, "programs": [program], **NAMES}).population == settings["population"]


def test_several_start_programs_all_options_and_a_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    chosen = {"start": "adamw, lion,adamw", "islands": 2, "migrate_every": 4, "restart_every": 32, "descent": True}
    search(options(folder, **chosen, programs=32))
    run_search(SearchOptions(run_dir=folder, programs=48, resume=True, workers=1))
    search(options(tmp_path / "whole", **chosen, programs=48))
    assert digest(folder) == digest(tmp_path / "whole")
    records = _records(folder)
    assert [r.program for r in records[:2]] == [BASELINES[n].program for n in ("adamw", "lion")]
    assert records[2].parent in (0, 1)
    table = json.loads((folder / "search.json").read_text())["search"]
    assert table["restarts"] == [{"number": 32, "from": "start"}]
    assert 0 <= table["cache hits"]["by key"] <= table["cache hits"]["by key and behaviour"] < 1
    assert 0 < table["redundant statements"] < 1
    assert {"ignores gradient", "same up to rate", "unbounded state"} <= set(table["counters"])
    with pytest.raises(UserError, match="begun with islands 2 and cannot go on with 3; leave --islands out"):
        run_search(SearchOptions(run_dir=folder, resume=True, islands=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"population": 5, "tournament": 10}, "the population holds 5"),
        ({"islands": 7}, "each of 7 islands holds 1"),
        ({"strategy": "evolve"}, "unknown strategy 'evolve'"),
        ({"workers": 100_000}, "100000 workers on .* would only get in each other's way"),
        ({"workers": 2, "lag": 1}, "only 1 batches are in flight at once"),
        ({"start": "adamw,lyon"}, "unknown optimizer 'lyon'"),
        ({"start": "adamw,"}, "a PROGRAM is missing"),
        ({"start": "muon", "ops": "lion45"}, "the start program muon uses cols, orthogonalise, rows, which --ops"),
        ({"ops": "lion54"}, "unknown op subset 'lion54'"),
        ({"signals": "g,momentum"}, "unknown signal 'momentum'; choose from"),
        ({"blocks": "sine"}, "unknown block 'sine'; choose from"),
        ({"max_statements": 0}, "room for at least 1 statement"),
        ({"tasks": " , "}, "no task is named"),
        ({"start": "adamw,lion,lamb", "batch": 2}, "3 programs to start from do not fit into one batch of 2"),
    ],
)
def test_settings_that_make_no_sense_leave_nothing_behind(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_search(options(tmp_path / "run", **changes))
    assert not (tmp_path / "run" / Ledger.FILE).exists()


def test_a_resumed_search_ends_as_it_was_asked_to(tmp_path: Path) -> None:
    run_search(options(tmp_path, tasks="quadratic", programs=16, tune=2))
    (tmp_path / "search.json").unlink()
    run_search(SearchOptions(run_dir=tmp_path, resume=True, programs=32, workers=0))  # another budget, the same end
    summary = json.loads((tmp_path / "search.json").read_text())["search"]
    assert summary["programs"] == 32 and {row["trials"] for row in summary["constants"].values()} == {2}
    (tmp_path / "budget.json").write_text("[1")
    with pytest.raises(UserError, match=r"budget.json is damaged; say how far to go"):
        run_search(SearchOptions(run_dir=tmp_path, resume=True))
    assert run_search(SearchOptions(run_dir=tmp_path, resume=True, programs=32, workers=0))


def test_several_tasks_are_scored_with_new_seeds_in_each_batch(tmp_path: Path) -> None:
    chosen = {"tasks": "proxy-teacher,proxy-curves", "ops": "lion45,matrix", "blocks": "momentum,orthogonalise"}
    search(options(tmp_path / "run", **chosen, batch=8, programs=24, max_slots=3))
    records = _records(tmp_path / "run")
    assert all([part.task for part in r.fitness.parts] == ["proxy-teacher", "proxy-curves"] for r in records)
    assert records[0].fitness.score == 0  # AdamW beside itself
    assert max(len(r.program.state) for r in records) <= 3
    with pytest.raises(UserError, match="begun with ops lion45,matrix and cannot go on with lion45"):
        run_search(SearchOptions(run_dir=tmp_path / "run", ops="lion45", resume=True))


def test_search_on_a_task_that_has_changed_is_not_resumed(tmp_path: Path) -> None:
    task = tmp_path / "mine.py"
    text = """
import torch
from optforge.search.training import Splits, Task, TensorSplit
def data():
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    return Splits(*(TensorSplit(part, FACTOR * part.sum(1, keepdim=True)) for part in x.split(40)))
TASK = Task(name="mine", summary="s", model=lambda: torch.nn.Linear(4, 1), data=data,
            loss=torch.nn.functional.mse_loss, metric="mse", steps=5, batch_size=8, licence="none")
"""
    task.write_text(text.replace("FACTOR", "1.0"))
    search(options(tmp_path / "run", tasks=str(task), programs=16))
    task.write_text(text.replace("FACTOR", "3.0"))
    with pytest.raises(UserError, match=r"mine\.py is another task than .* was begun with: its .*file changed"):
        run_search(SearchOptions(run_dir=tmp_path / "run", tasks=str(task), resume=True, programs=32))
    task.write_text(text.replace("FACTOR", "1.0"))
    search(SearchOptions(run_dir=tmp_path / "run", tasks=str(task), resume=True, programs=32, workers=0))


def test_single_or_repeated_tasks_get_a_caution() -> None:
    (one,) = cautions(["proxy-teacher"])
    assert "proxy-teacher is the only task" in one
    assert cautions(["proxy-teacher", "proxy-curves"]) == []
    (repeats,) = cautions(["digits", "proxy-curves"])
    assert "digits repeats its data: a run makes 11.9 passes" in repeats


def test_precision_is_part_of_a_search(tmp_path: Path) -> None:
    short = {"programs": 8, "batch": 8, "population": 8, "tournament": 2, "steps": 20, "workers": 0}
    search(options(tmp_path / "plain", **short))
    search(options(tmp_path / "rounded", precision="bf16", **short))
    ledgers = [Ledger.open(tmp_path / name, read_only=True) for name in ("plain", "rounded")]
    plain, rounded = ([record.fitness.score for record in ledger] for ledger in ledgers)
    assert plain != rounded and plain[0] == rounded[0] == 0
    with pytest.raises(UserError, match="was begun with precision bf16"):
        run_search(options(tmp_path / "rounded", precision="float32", resume=True, programs=16))
    with pytest.raises(UserError, match="bf16, float32, tf32"):
        run_search(options(tmp_path / "none", precision="fp8", **short))


def test_the_best_program_is_ablated_where_asked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_search(options(folder, ablate=True, programs=16, steps=10, tasks="proxy-teacher", workers=0))
    best, *others = json.loads((folder / "hall_of_fame.json").read_text())
    assert {"statement", "instead", "difference", "interval", "harmless", "failed"} == set(best["ablation"][0])
    assert not any("ablation" in row for row in others)
    assert "what each statement is worth" in (folder / "report.html").read_text()
