"""Learned rates in `optforge train` and in loops of one's own: options, reasons, TensorBoard, bad input, examples."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import runpy
import warnings
from contextlib import nullcontext

import pytest
import torch
from support.training import train
from torch import nn
from typer.testing import CliRunner

from optforge.baselines import BASELINES
from optforge.experiments.cli import app
from optforge.experiments.tasks import TASKS
from optforge.experiments.training import train as training
from optforge.experiments.training.moves import LARGE, moves
from optforge.learned import learn
from optforge.search.training.trial import Status

ADAMW = BASELINES["adamw"].program
DIGITS = TASKS["digits"]


def test_learning_on_the_command_line(tmp_path):
    asked = ["train", "--lr", "1e-5", "--learn", "lr,beta1", "--schedule", "linear", "--steps", "60", "--monitor", "0"]
    done = CliRunner().invoke(app, [*asked, "--json", str(tmp_path / "r.json"), "--run-dir", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["learn"] == ["lr", "beta1"] and (result["steps"], result["seed"]) == (60, 0)
    assert all(math.isfinite(result[name]) for name in ("train_loss", "valid_loss", "test_loss"))
    assert result["learned"].keys() == {"lr", "beta1"} and result["learned"]["lr"] > 2e-5
    steps, sentences = zip(*result["moves"], strict=True)
    assert list(steps) == sorted(steps) and sentences[0].startswith("lr raised from 1e-05 to ")
    assert sentences[-1] in " ".join(done.output.split())


def test_the_command_line_runs_the_variant_of_the_benchmark():
    """What docs and README show: gradients alone, whatever the loss that is returned."""
    result = train(DIGITS, ADAMW, 0.1, steps=60, learn=("lr",))
    other = train(DIGITS, lambda params, lr: learn(params, ADAMW, lr), 0.1, steps=60)
    assert result.curve == other.curve and result.learned == other.learned


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--learn", "lr", "--lr", "0"], "lr must be positive to be learned, got 0.0"),
        (["--learn", "lr,momentum"], "cannot learn 'momentum'; choose from: lr, beta1"),
        (["--learn", "beta2", "--optimizer", "momentum"], "cannot learn 'beta2'; choose from: lr"),
    ],
)
def test_what_cannot_be_learned_is_told(asked, told, tmp_path):
    from optforge.experiments.cli import main

    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["optforge", "train", *asked, "--run-dir", str(folder)])
        main()
    assert ended.value.code != 0 and not folder.exists()


def test_reasons_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(DIGITS, ADAMW, 10.0, steps=20, learn=("lr",), folder=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    texts = [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors("learned/moves/text_summary")]
    assert texts == list(result.noted["moves"])
    assert texts[0][0] == 1 and texts[0][1].startswith("lr lowered from 10 to ") and "the cap" in texts[0][1]


def test_the_progress_bar_shows_what_is_learned(monkeypatch):
    said = []
    monkeypatch.setattr(training, "progress_bar", lambda *_: nullcontext(lambda step, words: said.append(words)))
    result = train(DIGITS, ADAMW, 1e-4, steps=10, learn=("lr",), progress=True)
    assert said[-1] == f"loss {result.curve[-1]:.4f}, lr {result.learned['lr']:.2g}"


def test_reasons_by_hand():
    """Gradients that always agree raise the rate, those that turn around lower it; small moves are not mentioned."""
    p = nn.Parameter(torch.full((3, 3), 1e3))
    optimizer = learn([p], BASELINES["sgd"].program, 1e-6, hyper_lr=0.2)
    noted, said = optimizer.learned_values(), []
    for step in range(40):
        p.grad = torch.ones(3, 3) * (1.0 if step < 20 else (-1.0) ** step)
        optimizer.step()
        before = dict(noted)
        found = moves(optimizer, noted)
        factor = optimizer.learned_values()["lr"] / before["lr"]
        assert bool(found) == (abs(math.log(factor)) >= LARGE)
        said += found
    assert said[0].startswith("lr raised from 1e-06 to ") and said[0].endswith("agree with the steps before them")
    assert said[-1].startswith("lr lowered from ") and said[-1].endswith("turn against the steps before them")


def test_a_loss_that_is_not_finite_ends_the_run_and_teaches_nothing():
    steps = itertools.count(1)

    def loss(outputs, targets):
        found = DIGITS.loss(outputs, targets)
        return found * math.nan if torch.is_grad_enabled() and next(steps) == 9 else found

    task = dataclasses.replace(DIGITS, loss=loss)
    result = train(task, ADAMW, 1e-5, steps=20, learn=("lr", "beta1"))
    assert result.outcome.status is Status.DIVERGED and "non-finite at step 9" in result.outcome.reason
    assert all(math.isfinite(value) and value > 0 for value in result.learned.values())


@pytest.mark.parametrize("name", ["learned_rate", "learned_rate_lightning"])
def test_examples_run(name):
    """From 1e-6 to a rate that fits in a few hundred steps."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        main = runpy.run_module(f"optforge.experiments.examples.{name}")["main"]
        loss, rate = main(steps=150)
    assert loss < 0.2 and 1e-4 < rate < 1
