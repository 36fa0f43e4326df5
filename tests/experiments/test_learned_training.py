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
from torch import nn
from typer.testing import CliRunner

from optforge.baselines import BASELINES
from optforge.experiments.cli import app
from optforge.experiments.tasks import TASKS
from optforge.experiments.training import train as training
from optforge.experiments.training.options import RunOptions
from optforge.experiments.training.train import train
from optforge.learned import LearnedOptimizer, learn
from optforge.learned.reasons import LARGE, Moves

ADAMW = BASELINES["adamw"].program
DIGITS = TASKS["digits"]


def test_learn_per_tensor_on_the_command_line(tmp_path):
    asked = ["train", "--lr", "1e-5", "--learn", "lr,beta1", "--per", "tensor", "--steps", "60", "--monitor", "0"]
    done = CliRunner().invoke(app, [*asked, "--json", str(tmp_path / "r.json"), "--run-dir", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["learn"] == ["lr", "beta1"] and result["options"]["per"] == "tensor"
    assert (result["steps"], result["seed"]) == (60, 0)
    assert all(math.isfinite(result[name]) for name in ("train_loss", "valid_loss", "test_loss"))
    own = {f"lr/{layer}.{part}" for layer in (0, 1) for part in ("weight", "bias")}
    learned = result["learned"]
    assert {name.replace("layers.", "") for name in learned} == {"lr", "beta1", *own} and learned["lr"] > 2e-5
    assert len({learned[name] for name in learned if name.startswith("lr/")}) == 4
    steps, sentences = zip(*result["moves"], strict=True)
    assert list(steps) == sorted(steps) and sentences[0].startswith("lr raised from 1e-05 to ")
    assert sentences[-1] in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["--per", "tensor"], "add --learn lr"),
        (["--learn", "lr", "--per", "layer"], "per global, group, tensor, not per 'layer'"),
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


def test_each_tensor_has_a_rate_of_its_own():
    options = [RunOptions(per=per) for per in ("global", "tensor")]
    one, many = (train(DIGITS, ADAMW, 1e-4, steps=30, learn=("lr",), options=how) for how in options)
    assert one.valid_loss != many.valid_loss


def test_reasons_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(DIGITS, ADAMW, 10.0, steps=20, learn=("lr",), log_dir=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    texts = [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors("learned/moves/text_summary")]
    assert texts == list(result.moves)
    assert texts[0][0] == 1 and texts[0][1].startswith("lr lowered from 10 to ") and "the cap" in texts[0][1]


def test_the_progress_bar_shows_what_is_learned(monkeypatch):
    said = []
    monkeypatch.setattr(training, "progress_bar", lambda *_: nullcontext(lambda step, words: said.append(words)))
    result = train(DIGITS, ADAMW, 1e-4, steps=10, learn=("lr",), progress=True)
    assert said[-1] == f"loss {result.curve[-1]:.4f}, lr {result.learned['lr']:.2g}"


def test_reasons_by_hand():
    """Gradients that always agree raise the rate, those that turn around lower it; small moves are not mentioned."""
    p = nn.Parameter(torch.ones(3, 3))
    optimizer = learn([p], BASELINES["sgd"].program, 1e-6, rule="traced", hyper_lr=0.2)
    moves, said = Moves(optimizer), []
    for step in range(40):
        p.grad = torch.ones(3, 3) * (1.0 if step < 20 else (-1.0) ** step)
        optimizer.step()
        before = dict(moves.noted)
        found = moves.take()
        factor = optimizer.learned_values()["lr"] / before["lr"]
        assert bool(found) == (abs(math.log(factor)) >= LARGE)
        said += found
    assert said[0].startswith("lr raised from 1e-06 to ") and "agree with the steps before them (average" in said[0]
    assert said[-1].startswith("lr lowered from ") and "turn against the steps before" in said[-1]


@pytest.mark.parametrize("per", ["group", "tensor"])
def test_reasons_for_rates_of_their_own(per):
    """One parameter whose gradients agree, and one whose gradients turn around."""
    params = [nn.Parameter(torch.ones(3, 3)) for _ in range(2)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(params, (0.01, 0.1), strict=True)]
    optimizer = learn(groups, BASELINES["sgd"].program, rule="traced", hyper_lr=1.0, per=per)
    moves, said = Moves(optimizer), []
    for step in range(30):
        params[0].grad, params[1].grad = torch.ones(3, 3), (-1.0) ** step * torch.ones(3, 3)
        optimizer.step()
        said += moves.take()
    steady, turning = ([s for s in said if s.startswith(f"lr/group{k}")] for k in range(2))
    agree = "times the common rate: its gradients agree {} with the steps before them than those of the others"
    assert " raised from 1 to " in steady[0] and all(s.endswith(agree.format("more")) for s in steady)
    assert " lowered from 10 to " in turning[0] and all(s.endswith(agree.format("less")) for s in turning)


def test_a_loss_that_is_not_finite_ends_the_run_and_teaches_nothing():
    steps = itertools.count(1)

    def loss(outputs, targets):
        found = DIGITS.loss(outputs, targets)
        return found * math.nan if torch.is_grad_enabled() and next(steps) == 9 else found

    task = dataclasses.replace(DIGITS, loss=loss)
    result = train(task, ADAMW, 1e-5, steps=20, learn=("lr", "beta1"))
    assert result.status == "diverged" and result.reason.startswith("the training loss was nan at step 9 of 20")
    assert all(math.isfinite(value) and value > 0 for value in result.learned.values())


@pytest.mark.parametrize("name", ["learned_rate", "learned_rate_lightning"])
def test_examples_run(name):
    """From 1e-6 to a rate that fits in a few hundred steps."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        main = runpy.run_module(f"optforge.experiments.examples.{name}")["main"]
        loss, rate = main(steps=150)
    assert loss < 0.2 and 1e-4 < rate < 1


@pytest.mark.parametrize("options", [{"clip_norm": 1e9}, {"clip_value": 1e9}, {"precision": "bf16"}])
def test_the_loss_is_told_however_the_step_is_made(options):
    """Of a rate that is set aside at first, and ends at five times the loss where it gets no trial."""
    ends = []
    for chosen in (RunOptions(), RunOptions(**options)):
        result = train(DIGITS, BASELINES["rmsprop"].program, 0.01, seed=100, learn=("lr",), options=chosen)
        ends.append(result.valid_loss)
    assert ends[1] == pytest.approx(ends[0], rel=0.2) and ends[1] < 0.15


def test_steps_of_many_batches_are_told_their_mean_loss():
    """However they are made: Lightning tells the loss of the last batch, divided by their number."""
    told = []

    class Heard(LearnedOptimizer):
        def _told(self, loss):
            told[-1].append(float(loss))
            super()._told(loss)

    for options in (RunOptions(accumulate=2), RunOptions(accumulate=2, clip_norm=1e9)):
        told.append([])
        result = train(DIGITS, lambda params, lr: Heard(params, ADAMW, lr), 1e-3, steps=20, options=options)
        assert told[-1] == list(result.curve)
    assert told[0] == told[1] and len(told[0]) == 20
