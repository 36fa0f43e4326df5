"""A run with checkpoints that is killed goes on to what the uninterrupted one comes to, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import train
from typer.testing import CliRunner

from optforge.baselines import BASELINES, AdamW
from optforge.experiments.cli import app
from optforge.experiments.errors import UserError
from optforge.experiments.tasks import TASKS
from optforge.experiments.training.train import CHECKPOINT
from optforge.primitives import ProgramError
from optforge.search.training.lightning.module import TrainingRun

DIGITS = TASKS["digits"]
ADAMW = BASELINES["adamw"].program
CASES: dict[str, tuple[Any, list[str] | None, dict[str, Any]]] = {
    "plain": (ADAMW, None, {}),
    "everything": (BASELINES["lion"].program, None,
                   {"schedule": "cosine", "warmup": 3, "clip_norm": 0.1, "accumulate": 2, "hypers": {"beta1": 0.8}}),
    "scaled": (ADAMW, None, {"precision": "fp16"}),
    "averages": (BASELINES["schedule-free-adamw"].program, None, {}),
    "learned": (ADAMW, ["lr"], {"schedule": "wsd"}),
    "by hand": (AdamW, None, {"schedule": "step"}),
}  # fmt: skip


class PowerCut(Exception):
    pass


@pytest.fixture
def power_cut(monkeypatch):
    """Makes runs break off in the step with this number."""

    def at(number):
        step = TrainingRun.training_step

        def breaks(run, batch, count):
            if len(run.losses) == number:
                raise PowerCut
            return step(run, batch, count)

        monkeypatch.setattr(TrainingRun, "training_step", breaks)

    return at


@pytest.mark.parametrize("name", CASES)
def test_goes_on_to_the_same_result(name, power_cut, monkeypatch, tmp_path):
    optimizer, learn, options = CASES[name]
    how = {"lr": 3e-3, "steps": 25, "learn": learn, "seed": 3}
    whole = train(DIGITS, optimizer, **how, **options)
    how |= {**options, "checkpoint_every": 6, "folder": tmp_path}
    for number in (14, 20):  # twice: after checkpoints of a run and of a run that went on
        with monkeypatch.context(), pytest.raises(PowerCut):
            power_cut(number)
            train(DIGITS, optimizer, **how, resume=True)
        monkeypatch.undo()
        assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["global_step"] == number // 6 * 6
    again = train(DIGITS, optimizer, **how, resume=True)
    assert again == whole
    assert again.steps == 25 and again.outcome.seconds > 0
    ended = train(DIGITS, optimizer, **how, resume=True)  # nothing is left to do, and everything is measured
    assert ended == whole


def test_checkpoints_of_other_runs_are_refused(tmp_path):
    train(DIGITS, ADAMW, steps=4, folder=tmp_path, checkpoint_every=2)
    with pytest.raises(UserError, match="of a run of 4 steps"):
        train(DIGITS, ADAMW, steps=6, folder=tmp_path, checkpoint_every=2, resume=True)
    with pytest.raises(ProgramError, match="another program"):
        train(DIGITS, BASELINES["adam"].program, steps=4, folder=tmp_path, checkpoint_every=2, resume=True)


@pytest.mark.parametrize("content", [b"", b"PK not a checkpoint", b"\x80\x02."])
def test_damaged_checkpoints_are_told(tmp_path, content):
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a checkpoint; remove it"):
        train(DIGITS, ADAMW, steps=4, folder=tmp_path, checkpoint_every=2, resume=True)


def test_a_checkpoint_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"state_dict": Evil()}, tmp_path / CHECKPOINT)
    with pytest.raises(UserError, match="cannot be read"):
        train(DIGITS, ADAMW, steps=4, folder=tmp_path, checkpoint_every=2, resume=True)
    assert not (tmp_path / "owned").exists()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        result = CliRunner().invoke(app, [str(w) for w in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.mark.slow
def test_a_killed_command_goes_on(run, tmp_path):
    """The real thing: kill -9 of the process, then --resume without any other option."""
    begin = ["--steps", "1200", "--seed", "4", "--set", "weight_decay=0.1", "--schedule", "cosine"]
    words = [
        sys.executable,
        "-m",
        "optforge.experiments.cli",
        "train",
        *begin,
        "--run-dir",
        "r",
        "--checkpoint-every",
        "100",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 100
    while not (tmp_path / "r" / CHECKPOINT).exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = torch.load(tmp_path / "r" / CHECKPOINT, weights_only=True)["global_step"]
    assert 100 <= done < 1200 and not (tmp_path / "r" / "result.json").exists()
    code, out, _ = run("train", "--run-dir", "r", "--resume")
    assert code == 0 and "1200 steps" in out
    assert run("train", *begin, "--run-dir", "w")[0] == 0
    found, whole = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("r", "w"))
    keys = ("curve", "valid_curve", "train_loss", "valid_loss", "test_loss", "test_accuracy", "program", "seed")
    assert [found[key] for key in keys] == [whole[key] for key in keys]


def test_a_run_does_not_go_on_with_other_data(run, tmp_path):
    from optforge.experiments.tasks.user_tasks import from_file

    source = (
        "import torch\nfrom optforge.search.training import Splits, Task, TensorSplit\n"
        "x = torch.linspace(-1, 1, 40)[:, None]\nPART = TensorSplit(x, 2 * x)\n"
        "TASK = Task('mine', 'line', lambda: torch.nn.Linear(1, 1), lambda: Splits(PART, PART, PART),\n"
        "            torch.nn.functional.mse_loss, 'squared error', 4, 8, 'none')\n"
    )
    (tmp_path / "mine.py").write_text(source)
    assert run("train", "--task", "mine.py", "--checkpoint-every", 2, "--run-dir", "r")[0] == 0
    (tmp_path / "r" / "result.json").unlink()
    assert "has not ended: optforge train --resume --run-dir" in run("report", "r")[2]
    (tmp_path / "mine.py").write_text(source.replace("2 * x", "3 * x"))
    from_file.cache_clear()
    code, _, err = run("train", "--resume", "--run-dir", "r")
    assert code == 2 and "no longer those that the run in" in err
    (tmp_path / "mine.py").write_text(source)
    from_file.cache_clear()
    assert run("train", "--resume", "--run-dir", "r")[0] == 0


def test_what_is_kept_and_what_cannot_go_on(run, tmp_path):
    few = ("train", "--steps", 4, "--run-dir")
    assert run(*few, "plain")[0] == 0
    assert not (tmp_path / "plain" / "command.json").exists() and not (tmp_path / "plain" / CHECKPOINT).exists()
    assert run(*few, "kept", "--checkpoint-every", 2, "--task", "digits", "--learn", "lr")[0] == 0
    asked = json.loads((tmp_path / "kept" / "command.json").read_text())
    assert asked["checkpoint_every"] == 2 and asked["learn"] == ["lr"] and asked["steps"] == 4
    (tmp_path / "kept" / "result.json").unlink()
    assert run("train", "--resume", "--run-dir", "kept", "--json", "again.json")[0] == 0
    assert (tmp_path / "again.json").exists() and (tmp_path / "kept" / "result.json").exists()
    (tmp_path / "begun").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "command.json").write_text("[]")
    for words, said in (
        (("--resume",), "--resume needs the --run-dir"),
        (("--resume", "--run-dir", "nowhere"), "there is no run directory nowhere"),
        (("--resume", "--run-dir", "plain"), "the run in plain has ended"),
        (("--resume", "--run-dir", "begun"), "runs go on if they were begun with --checkpoint-every"),
        (("--resume", "--run-dir", "broken"), "is damaged"),
        (("--resume", "--run-dir", "plain", "--lr", "1", "--steps", "9"), "leave out --lr, --steps"),
    ):
        code, out, err = run("train", *words)
        assert (code, out) == (2, "") and said in err, (words, err)
    code, _, err = run(*few, "refused", "--checkpoint-every", 2, "--lr", -1)
    assert code == 2 and "lr must be" in err and not (tmp_path / "refused").exists()
