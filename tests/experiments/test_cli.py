"""The command line end to end: what it prints and writes, what it refuses and how, and that help is cheap."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optforge.baselines import BASELINES
from optforge.experiments import programs, rundirs
from optforge.experiments.cli import app
from optforge.experiments.errors import UserError
from optforge.primitives import parse_program, print_program

COMMANDS = ("train", "search", "compare", "show", "tasks", "optimizers", "report", "digest")

PARTLY_DEAD = """optforge 1
hyper beta = 0.9 unit
slot m = 0.0 tensor
slot unused = 0.0 tensor
slot scale = 1.0 scalar
x0 = lerp(g, m, beta)
x1 = square(unused)
x2 = norm(x0)
x3 = mul(x0, scale)
update x3
next m = x0
next unused = x1
next scale = x2
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Call the command line in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()

    def call(*arguments):
        result = runner.invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


def refused(outcome, *parts):
    """Whether the outcome is one sentence on standard error that holds all `parts`, and exit code 2."""
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert err.startswith("optforge: ") and err.endswith("\n") and err.count("\n") == 1
    for part in parts:
        assert part in err
    return True


def write_hall_of_fame(folder, *entries):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / programs.HALL_OF_FAME).write_text(json.dumps(entries))


# help


def test_help_needs_none_of_the_heavy_packages():
    code = "import sys; from typer.testing import CliRunner; from optforge.experiments.cli import app; "
    code += "r = CliRunner().invoke(app, ['--help']); assert r.exit_code == 0, r.output; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "lightning", "sympy", "matplotlib", "optuna", "sklearn", "scipy", "numpy"}


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in COMMANDS:
        assert f"│ {command} " in out


@pytest.mark.parametrize("command", ["train", "search", "compare", "show", "report", "digest"])
def test_help_of_each_command_has_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0 and f"optforge {command} " in out.split("Usage:")[1].split("Example")[1]


def test_a_misspelt_command_is_refused(run):
    code, _, err = run("trian")
    assert code == 2 and "train" in err


# train


def test_train_writes_logs_program_and_numbers(run, tmp_path):
    code, out, _ = run(
        "train", "--optimizer", "lion", "--lr", "3e-4", "--steps", "20", "--seed", "3", "--json", "r.json"
    )
    assert code == 0
    folder = tmp_path / "runs" / "train-digits-1"
    assert "lion on digits: lr 0.0003, seed 3, 20 steps" in out and "single run" in out
    assert os.path.join("runs", "train-digits-1") in out
    assert list(folder.glob("events.out.tfevents.*"))
    assert parse_program((folder / "program.txt").read_text()) == BASELINES["lion"].program
    assert (tmp_path / "r.json").read_text() == (folder / "result.json").read_text()
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["optimizer"], result["task"], result["lr"]) == ("lion", "digits", 3e-4)
    assert (result["seed"], result["steps"], result["status"]) == (3, 20, "ok")
    assert 0 < result["train_loss"] < 3 and 0 < result["valid_loss"] < 3 and 0 < result["test_loss"] < 3
    assert len(result["curve"]) == 20 and result["learned"] == {} and result["state_bytes_per_parameter"] == 4
    assert parse_program(result["program"]) == BASELINES["lion"].program
    assert {"commit", "versions", "hardware"} <= set(result["provenance"])


def test_train_gives_full_batches_to_what_is_meant_for_them(run, tmp_path):
    """The same rule with and without, from the same start: the loss of the first step is that of the batch."""
    records = []
    for name in ("gradient-descent", "sgd"):
        code, out, _ = run("train", "--optimizer", name, "--lr", "0.3", "--steps", "3", "--json", f"{name}.json")
        assert code == 0 and ("3 steps on the whole training set in" in out) == (name == "gradient-descent")
        records.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert [r["full_batch"] for r in records] == [True, False]
    full, small = (r["curve"] for r in records)
    assert full[0] > full[1] > full[2] and abs(full[0] - small[0]) > 1e-3
    assert refused(run("train", "--optimizer", "gradient-descent", "--task", "charlm"), "charlm has", "use sgd")


def test_train_with_a_learned_rate(run, tmp_path):
    code, out, _ = run("train", "--lr", "1e-4", "--learn", "lr", "--steps", "40", "--json", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert code == 0 and "learned lr: " in out
    assert result["learn"] == ["lr"] and result["learned"]["lr"] > 1.2e-4


def test_train_tells_of_divergence(run):
    code, out, _ = run("train", "--lr", "1e15", "--json", "r.json")
    assert code == 1 and "diverged: the loss became non-finite at step" in out and "try a smaller lr" in out
    result = json.loads(Path("r.json").read_text(), parse_constant=pytest.fail)
    assert result["status"] == "diverged" and result["valid_loss"] is None


def test_run_directories_are_numbered_and_never_overwritten(run, tmp_path):
    for _ in range(2):
        assert run("train", "--steps", "1")[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["train-digits-1", "train-digits-2"]
    before = {p: p.read_bytes() for p in (tmp_path / "runs" / "train-digits-1").iterdir()}
    assert refused(run("train", "--steps", "1", "--run-dir", "runs/train-digits-1"), "already exists", "--run-dir")
    assert before == {p: p.read_bytes() for p in (tmp_path / "runs" / "train-digits-1").iterdir()}
    assert run("train", "--steps", "1", "--run-dir", "deep/down/here")[0] == 0
    (tmp_path / "empty").mkdir()
    assert run("train", "--steps", "1", "--run-dir", "empty")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--task", "digts"], ["unknown task 'digts'; did you mean digits"]),
        (["--optimizer", "adamv"], ["unknown optimizer 'adamv'; did you mean adam", "adamw", "lion", "RUN_DIR#RANK"]),
        (["--optimizer", "zzz"], ["unknown optimizer 'zzz' (optimizers: gradient-descent, sgd, "]),
        (["--optimizer", "none.txt"], ["there is no program file none.txt"]),
        (["--optimizer", "runs/none#1"], ["there is no run directory runs/none"]),
        (["--learn", "lr,gamma"], ["cannot learn 'gamma'; choose from: lr"]),
        (["--lr", "-1"], ["lr must be a finite number of at least 0, got -1.0"]),
        (["--lr", "0", "--learn", "lr"], ["lr must be positive to be learned"]),
        (["--json", "no/such/folder.json"], ["no/such/folder.json cannot be written"]),
    ],
)
def test_train_refuses_in_one_sentence_and_leaves_nothing(run, tmp_path, arguments, parts):
    assert refused(run("train", *arguments), *parts)
    assert not list(tmp_path.glob("runs/*"))


def test_ctrl_c_ends_with_a_sentence_and_130(tmp_path):
    command = [sys.executable, "-c", "from optforge.experiments.cli import main; main()"]
    process = subprocess.Popen(
        [*command, "train", "--steps", "100000", "--run-dir", "run"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("run/events.*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "interrupted; what was finished is kept\n")


# show, tasks, optimizers


def test_show_prints_what_can_be_read_back(run):
    code, out, _ = run("show", "adamw")
    assert code == 0 and parse_program(out) == BASELINES["adamw"].program
    assert "8 bytes of state" in out


def test_show_json_tells_live_from_dead(run, tmp_path):
    (tmp_path / "mine.txt").write_text(PARTLY_DEAD)
    code, out, _ = run("show", "mine.txt", "--json")
    about = json.loads(out)
    program = parse_program(PARTLY_DEAD)
    assert code == 0 and about["name"] == "mine" and about["key"] == program.key
    statements = about["statements"]
    assert (statements["live"], statements["all"]) == (3, 4)
    assert [s["live"] for s in statements["body"]] == [True, False, True, True]
    assert statements["body"][0] == {"name": "x0", "text": "lerp(g, m, beta)", "live": True}
    assert [(s["name"], s["kind"], s["live"]) for s in about["state"]] == [
        ("m", "TENSOR", True),
        ("unused", "TENSOR", False),
        ("scale", "SCALAR", True),
    ]
    assert about["cost"]["state_bytes"] == 4 + 4 / 1024**2
    assert about["hyperparameters"] == [{"name": "beta", "default": 0.9, "scale": "unit"}]


@pytest.mark.parametrize(("name", "count", "state"), [("adamw", 4, 8), ("lion", 3, 4)])
def test_show_json_of_the_baselines(run, name, count, state):
    about = json.loads(run("show", name, "--json")[1])
    assert len(about["hyperparameters"]) == count and about["cost"]["state_bytes"] == state
    assert about["statements"]["live"] == about["statements"]["all"] == len(BASELINES[name].program.body)


def test_lists_have_a_row_for_everything(run):
    _, out, _ = run("tasks")
    assert all(word in out for word in ("digits", "charlm", "[nats]", "200", "300", "PSF-2.0"))
    _, out, _ = run("optimizers")
    assert all(word in out for word in ("adamw", "lion", "arXiv:2302.06675"))


# programs


def test_programs_of_a_hall_of_fame_go_by_rank(run, tmp_path):
    rows = [{"rank": i, "program": print_program(BASELINES[n].program)} for i, n in enumerate(("lion", "adamw"), 1)]
    write_hall_of_fame(tmp_path / "runs" / "first", *rows)
    assert programs.resolve_program("runs/first#1") == ("first#1", BASELINES["lion"].program)
    assert programs.resolve_program("runs/first#2") == ("first#2", BASELINES["adamw"].program)
    assert run("show", "runs/first/#2")[1].startswith("optforge 1\n")
    for rank in ("0", "3", "-1", "x", "", "1.5", "²"):
        assert refused(run("show", f"runs/first#{rank}"), f"runs/first has programs #1 to #2, not #{rank}")
    assert refused(run("show", "runs/first"), "is a directory", "runs/first#1")
    assert refused(run("show", "runs/frist#1"), "there is no run directory runs/frist; did you mean runs/first?")


def test_a_discovered_program_trains_and_is_exported_at_its_tuned_rate(run, tmp_path):
    write_hall_of_fame(
        tmp_path / "runs" / "first", {"rank": 1, "program": print_program(BASELINES["lion"].program), "lr": 0.0625}
    )
    assert programs.usual_rate("runs/first#1") == 0.0625
    assert programs.usual_rate("runs/first#2") == programs.usual_rate("runs/none#1") == 1e-3
    code, _, _ = run("train", "--optimizer", "runs/first#1", "--steps", "2", "--run-dir", "t")
    assert code == 0 and json.loads(Path("t/result.json").read_text())["lr"] == 0.0625
    assert "lr=0.0625" in run("export", "runs/first#1", "--to", "torch")[1]
    assert "learning_rate=0.0625" in run("export", "runs/first#1", "--to", "optax")[1]
    assert "lr=0.001" in run("export", "lion", "--to", "torch")[1]


@pytest.mark.parametrize(
    "content", ["", "nonsense", "{}", "[1]", '[{"rank": 1}]', '{"rank": 1}', '[{"rank": "x"}]', "3"]
)
def test_a_broken_hall_of_fame_is_a_sentence(run, tmp_path, content):
    (tmp_path / "old").mkdir()
    assert refused(run("show", "old#1"), "old has no hall of fame yet")
    (tmp_path / "old" / programs.HALL_OF_FAME).write_text(content)
    assert refused(run("show", "old#1"), "old")


@pytest.mark.parametrize("program", ["optforge 1\nx0 = evil(g)\nupdate x0", 3, None, ["update g"]])
def test_a_broken_program_in_a_hall_of_fame_is_a_sentence(run, tmp_path, program):
    write_hall_of_fame(tmp_path / "old", {"rank": 1, "program": program})
    assert refused(run("show", "old#1"), "rank 1: ")


def test_program_files_are_data(run, tmp_path):
    file = tmp_path / "evil.txt"
    file.write_text("optforge 1\nx0 = __import__('os').system('touch hacked')\nupdate g\n")
    assert refused(run("show", "evil.txt"), "evil.txt: line 2: ")
    assert not (tmp_path / "hacked").exists()
    file.write_bytes(b"\xff\xfe\x00binary")
    assert refused(run("show", "evil.txt"), "not a text file")
    with file.open("wb") as f:
        f.truncate(10**9)
    assert refused(run("show", "evil.txt"), "too large")


def test_a_baselines_name_wins_over_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adamw").write_text("not a program")
    assert programs.resolve_program("adamw") == ("adamw", BASELINES["adamw"].program)


# run directories


def test_an_empty_run_directory_is_removed_again(tmp_path):
    folder = rundirs.new_run_dir(tmp_path / "a", "train", "digits")
    rundirs.remove_if_empty(folder)
    rundirs.remove_if_empty(folder)
    assert not folder.exists()
    folder.mkdir()
    (folder / "kept").touch()
    rundirs.remove_if_empty(folder)
    assert folder.exists()


def test_run_directories_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="already exists"):
        rundirs.new_run_dir(tmp_path / "file", "train", "digits")
    with pytest.raises(UserError, match="cannot be created"):
        rundirs.new_run_dir(tmp_path / "file" / "below", "train", "digits")
    with pytest.raises(UserError, match="is a file"):
        rundirs.existing_run_dir(tmp_path / "file")


# the wrappers of search, compare and digest


@pytest.fixture
def searched(monkeypatch):
    from optforge.experiments.searching import run as run_search

    calls = []

    def fake(options):
        calls.append(options)
        return options.seed != 13

    monkeypatch.setattr(run_search, "run_search", fake)
    return calls


def test_search_passes_on_what_was_asked_for(run, tmp_path, searched):
    words = "--task charlm --programs 9 --minutes 0.5 --population 8 --tournament 3 --start lion --seed 4 --workers 0"
    code, _, _ = run("search", *words.split(), "--run-dir", "new", "--json", "t.json", "--preset", "seconds")
    assert code == 0 and not (tmp_path / "new").exists()
    (options,) = searched
    assert (options.tasks, options.programs, options.minutes, options.population) == ("charlm", 9, 0.5, 8)
    assert (options.tournament, options.start, options.seed, options.workers) == (3, "lion", 4, 0)
    assert (options.run_dir, options.json, options.preset) == (Path("new"), Path("t.json"), "seconds")
    assert options.resume is False


def test_search_leaves_defaults_to_the_search(run, searched):
    assert run("search")[0] == 0
    (options,) = searched
    assert options.run_dir == Path("runs/search-proxies-1")
    unset = {options.tasks, options.ops, options.start, options.seed, options.programs, options.workers}
    assert {*unset, options.preset} == {None}


def test_search_resumes_only_what_exists(run, tmp_path, searched):
    assert refused(run("search", "--resume"), "--resume needs the --run-dir")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "ledger").touch()
    assert refused(run("search", "--resume", "--run-dir", "runs/frst"), "did you mean runs/first?")
    assert refused(run("search", "--run-dir", "runs/first"), "already exists")
    assert refused(run("search", "--task", "digit"), "did you mean digits")
    assert not searched
    assert run("search", "--resume", "--run-dir", "runs/first")[0] == 0
    assert searched[0].resume is True and searched[0].run_dir == Path("runs/first")


def test_an_interrupted_search_says_how_to_go_on(run, searched):
    code, _, err = run("search", "--seed", "13", "--run-dir", "r")
    assert (code, err) == (130, "interrupted; go on with: optforge search --resume --run-dir r\n")


def test_compare_passes_on_what_was_asked_for(run, monkeypatch):
    from optforge.experiments.cli import compare_command as command

    calls = []
    monkeypatch.setattr(command, "compare_command", lambda programs, asked: calls.append((programs, asked)))
    asked = ["--seeds", 4, "--tune-seeds", 1, "--steps", 7, "--json", "c.json", "--task", "charlm", "--horizons", "all"]
    assert run("compare", "lion", "runs/a#1", *asked)[0] == 0
    assert run("compare")[0] == 0
    (programs, first), (none, default) = calls
    assert programs == ["lion", "runs/a#1"] and first.json == Path("c.json") and first.run_dir is None
    assert (first.tasks, first.horizons) == ("charlm", "0.25,1,4")
    assert first.settings == {"seeds": 4, "tune_seeds": 1, "steps": 7}
    assert none == [] and default == command.Asked()


def test_digest_needs_a_run_directory(run, tmp_path):
    assert refused(run("digest", "runs/none"), "there is no run directory runs/none")
    (tmp_path / "empty").mkdir()
    assert refused(run("digest", "empty"), "empty")


def test_an_unforeseen_failure_keeps_its_traceback(run, monkeypatch):
    from optforge.experiments.report import listings

    monkeypatch.setattr(listings, "print_tasks", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("tasks")


@pytest.mark.parametrize(("name", "rate"), [("adamw", 2e-3), ("lars", 3.0), ("prodigy", 0.2), ("lion-raw", 1e-3)])
def test_train_without_a_rate_takes_the_usual_one(run, tmp_path, name, rate):
    diverges = name == "lion-raw"  # which divides by gradients that are zero
    assert run("train", "--optimizer", name, "--steps", "2", "--json", "r.json")[0] == int(diverges)
    assert json.loads((tmp_path / "r.json").read_text())["lr"] == rate
