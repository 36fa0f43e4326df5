"""Each option of a training run does what the plain loop with torch's own means does, bit for bit, and says so."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.training import train
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from typer.testing import CliRunner

from optforge.baselines import BASELINES
from optforge.experiments.cli import app
from optforge.experiments.cli.train import train as train_on_the_command_line
from optforge.experiments.errors import UserError
from optforge.experiments.tasks import TASKS
from optforge.experiments.training.train import PRECISIONS, training_of
from optforge.primitives import ProgramError, ProgramOptimizer
from optforge.search.training import Task
from optforge.search.training.loop import evaluate
from optforge.search.training.task import batch_indices, initial_model
from optforge.search.training.torch_schedules import SCHEDULES
from optforge.search.training.trial import Status

DIGITS = TASKS["digits"]
ADAMW = BASELINES["adamw"].program
STEPS = 24

Options = dict[str, Any]
PLAIN: Options = {}


def loop(
    options: Options, lr: float, before_step: Callable[[nn.Module], Any] = lambda model: None, task: Task = DIGITS
) -> tuple[list[float], nn.Module]:
    """Training as torch's documentation writes it; returns the loss of each step and the model."""
    splits, model = task.data(), initial_model(task, 5)
    optimizer: Optimizer = ProgramOptimizer(model.parameters(), ADAMW, lr, **options.get("hypers", {}))
    schedule = SCHEDULES[options.get("schedule", "constant")](optimizer, STEPS, options.get("warmup", 0))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.get("precision", "32"))
    scaler = GradScaler("cpu", enabled=options.get("precision") == "fp16")
    curve = []
    for indices in batch_indices(len(splits.train), task.batch_size, STEPS, 5):
        inputs, targets = splits.train.batch(indices)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            outputs = model(inputs)
        loss = task.loss(outputs.float(), targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        before_step(model)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        curve.append(loss.item())
    return curve, model


@functools.cache
def plain_loss() -> float:
    return train(DIGITS, ADAMW, 0.01, seed=5, steps=STEPS).loss("train")


CASES: list[tuple[Options, Callable[[nn.Module], Any]]] = [
    *(({"schedule": name}, lambda m: None) for name in SCHEDULES),
    ({"warmup": 5}, lambda m: None),
    ({"clip_norm": 0.5}, lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.5)),
    ({"clip_value": 0.01}, lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.01)),
    ({"precision": "bf16"}, lambda m: None),
    ({"precision": "fp16"}, lambda m: None),
    ({"hypers": {"beta1": 0.5, "weight_decay": 0.3}}, lambda m: None),
    (
        {"schedule": "cosine", "warmup": 3, "clip_norm": 0.3, "precision": "bf16", "hypers": {"beta2": 0.9}},
        lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.3),
    ),
]


@pytest.mark.parametrize(("options", "before_step"), CASES)
def test_equals_the_plain_loop_bit_for_bit(options: Options, before_step: Callable[[nn.Module], Any]) -> None:
    result = train(DIGITS, ADAMW, 0.01, seed=5, steps=STEPS, **options)
    curve, model = loop(options, 0.01, before_step)
    assert list(result.curve) == curve
    assert result.loss("valid") == evaluate(model, DIGITS, DIGITS.data().valid)[0]
    assert (result.noted["clipped"] > 0) == bool(options.keys() & {"clip_norm", "clip_value"})
    assert result.noted["skipped"] == 0 and result.outcome.status is Status.OK
    if options.get("schedule") != "constant":
        assert result.loss("train") != plain_loss(), "the option did nothing"


@pytest.mark.parametrize("options", [PLAIN, {"clip_norm": 0.1}, {"schedule": "wsd", "warmup": 4, "clip_value": 0.01}])
def test_accumulated_batches_are_one_large_batch(options: Options) -> None:
    rule = BASELINES["momentum"].program  # which does not blow up what rounding leaves of small gradients
    small, large = (dataclasses.replace(DIGITS, batch_size=size) for size in (16, 64))
    accumulated = train(small, rule, 0.1, steps=10, **options, accumulate=4)
    whole = train(large, rule, 0.1, steps=10, **options)
    assert len(accumulated.curve) == accumulated.steps == 10
    assert accumulated.curve == pytest.approx(whole.curve, rel=1e-5)
    assert accumulated.loss("valid") == pytest.approx(whole.loss("valid"), rel=1e-5)
    assert accumulated.noted["clipped"] == whole.noted["clipped"]
    assert [step for step, _ in accumulated.valid_curve] == [step for step, _ in whole.valid_curve]


def spoiled(*calls: int) -> Task:
    """Digits whose loss is not a number in some of its calls while training."""
    count = iter(range(10**6))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        value = DIGITS.loss(outputs, targets)
        return value * math.nan if outputs.requires_grad and next(count) in calls else value

    return dataclasses.replace(DIGITS, loss=loss)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_steps_that_are_not_finite_are_skipped_counted_and_told(
    precision: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    options: Options = {"schedule": "cosine", "warmup": 4, "precision": precision, "monitor": 1}
    result = train(spoiled(0, 7), ADAMW, 0.01, seed=5, steps=STEPS, **options, folder=tmp_path)
    assert (result.outcome.status, result.noted["skipped"], result.steps) == (Status.OK, 2, STEPS)
    assert [i for i, loss in enumerate(result.curve) if math.isnan(loss)] == [0, 7]
    assert result.steps == STEPS
    assert "step 1 skipped" in caplog.text and "step 8 skipped: gradients are not finite (2 of 8" in caplog.text
    rates = scalars(tmp_path)["optimizer/lr"]
    factors = [(t + 1) / 4 for t in range(4)] + [(1 + math.cos(math.pi * t / 20)) / 2 for t in range(18)]
    # the first step was skipped before it had a rate, the eighth shows that of the one before it
    expected = [*factors[:6], factors[5], *factors[6:]]
    assert [value for _, value in rates] == pytest.approx([0.01 * f for f in expected])
    shares = dict(scalars(tmp_path)["optimizer/skipped_share"])
    assert shares[2] == pytest.approx(1 / 2) and shares[9] == pytest.approx(1 / 2) and shares[12] == 0


def test_steps_that_are_never_finite_end_the_run() -> None:
    result = train(spoiled(*range(3, 999)), ADAMW, 0.01, steps=100, precision="bf16")
    assert (result.outcome.status, result.noted["skipped"], result.steps) == (Status.DIVERGED, 50, 53)
    assert "the gradients of many steps up to step 53 were not finite" in result.outcome.reason


def test_one_spoiled_batch_of_several_spoils_the_step() -> None:
    result = train(spoiled(5), ADAMW, 0.01, steps=4, accumulate=4, precision="bf16")
    assert (result.noted["skipped"], result.steps) == (1, 4)
    assert [math.isnan(x) for x in result.curve] == [False, True, False, False]
    result = train(spoiled(5), ADAMW, 0.01, steps=4, accumulate=4)
    assert (result.outcome.status, result.noted["skipped"], result.steps) == (Status.DIVERGED, 0, 2)


def test_options_and_learning_go_together() -> None:
    options: Options = {"schedule": "warmup", "warmup": 5, "clip_norm": 0.5, "accumulate": 2, "precision": "bf16"}
    options |= {"hypers": {"beta1": 0.8}}
    result = train(DIGITS, ADAMW, 1e-4, steps=40, learn=("lr",), **options)
    assert result.outcome.status is Status.OK and result.learned["lr"] > 1.2e-4 and result.curve[-1] < result.curve[0]


@pytest.mark.parametrize("name", ["beta3", "compile", "lr", "total_steps"])
def test_only_hyperparameters_are_taken(name: str) -> None:
    with pytest.raises(ProgramError, match=f"unknown hyperparameter '{name}'; this program has: beta1, beta2, eps"):
        train(DIGITS, ADAMW, steps=1, hypers={name: 1.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean cosine"),
        ({"precision": "8"}, "unknown precision '8'"),
        ({"accumulate": 0}, "at least 1 batch must be accumulated for a step, got 0"),
        ({"clip_norm": 0.0}, "limit of a gradient's norm must be a positive number, got 0"),
        ({"clip_value": -1.0}, "limit of a gradient's value must be a positive number, got -1"),
        ({"warmup": -1}, "a warm-up of -1 steps does not fit"),
        ({"monitor": -1}, "must be at least 0"),
    ],
)
def test_misuse_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        training_of(DIGITS, ADAMW, **options)


def test_a_warmup_longer_than_the_run_is_told() -> None:
    with pytest.raises(UserError, match="a warm-up of 6 steps does not fit into a run of 5"):
        train(DIGITS, ADAMW, steps=5, warmup=6)


def test_names_of_lightning_mean_the_same() -> None:
    names = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    assert names.keys() == PRECISIONS.keys()
    for name, other in names.items():
        assert training_of(DIGITS, ADAMW, precision=name) == training_of(DIGITS, ADAMW, precision=other)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_scalar_has_its_place_in_tensorboard(tmp_path: Path) -> None:
    train(DIGITS, ADAMW, 0.01, steps=20, schedule="cosine", clip_norm=0.5, monitor=10, folder=tmp_path)
    found = scalars(tmp_path)
    names = ("grad_norm", "grad_norm_before_clip", "update_norm", "update_to_weight", "sign_agreement", "momentum_norm",
             "second_moment_min", "second_moment_max", "skipped_share", "clipped_share",
             *(f"trust_ratio/model.layers.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")))  # fmt: skip
    for name in names:
        assert [step for step, _ in found.pop(f"optimizer/{name}")] == [1, 10, 20], name
    assert [step for step, _ in found["optimizer/lr"]] == list(range(1, 21))
    assert set(found) == {"loss/train", "loss/valid", "accuracy/valid", "optimizer/lr"}


def test_switched_off_the_monitor_leaves_the_rates(tmp_path: Path) -> None:
    train(DIGITS, ADAMW, 0.01, steps=3, monitor=0, folder=tmp_path)
    assert set(scalars(tmp_path)) == {"loss/train", "loss/valid", "accuracy/valid", "optimizer/lr"}


@pytest.mark.parametrize("options", [PLAIN, {"clip_norm": 0.5, "accumulate": 2}])
def test_watching_changes_nothing(options: Options, tmp_path: Path) -> None:
    watched = train(DIGITS, ADAMW, 0.01, steps=8, **options, monitor=1, folder=tmp_path)
    assert watched.curve == train(DIGITS, ADAMW, 0.01, steps=8, **options).curve


# The command line.


def invoke(folder: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    done = CliRunner().invoke(app, ["train", "--steps", "6", "--run-dir", str(folder / "run"), *arguments])
    record = folder / "run" / "result.json"
    return done.exit_code, done.output, json.loads(record.read_text()) if record.exists() else {}


def test_options_reach_the_run_and_its_record(tmp_path: Path) -> None:
    code, said, record = invoke(
        tmp_path, "--lr", "0.01", "--seed", "5", "--schedule", "cosine", "--warmup", "2", "--clip-norm", "0.5",
        "--clip-value", "0.1", "--accumulate", "2", "--precision", "bf16", "--monitor", "3", "--set", "beta1=0.95",
        "--set", "weight_decay = 0.1",
    )  # fmt: skip
    assert code == 0
    options: Options = {"schedule": "cosine", "warmup": 2, "clip_norm": 0.5, "clip_value": 0.1, "accumulate": 2}
    options |= {"precision": "bf16", "monitor": 3, "hypers": {"beta1": 0.95, "weight_decay": 0.1}}
    assert record["options"] == options | {"devices": 1, "strategy": "auto", "checkpoint_every": 0}
    result = train(DIGITS, ADAMW, 0.01, seed=5, steps=6, **options)
    assert record["curve"] == result.curve and record["clipped"] == result.noted["clipped"] > 0
    assert f"clipped the gradients of {result.noted['clipped']} of 6 steps" in said


def test_the_defaults_of_the_command_line_are_those_of_a_run(tmp_path: Path) -> None:
    code, said, record = invoke(tmp_path)
    assert code == 0
    assert training_of(DIGITS, ADAMW, record["lr"], **record["options"]) == training_of(DIGITS, ADAMW, record["lr"])
    assert record["curve"] == train(DIGITS, ADAMW, record["lr"], steps=6).curve
    assert "clipped" not in said and "skipped" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "beta3=1"], "adamw has no hyperparameter 'beta3'; did you mean beta2 or beta1? (it has: beta1,"),
        (["--set", "beta1"], "'beta1' is not of the form NAME=NUMBER"),
        (["--set", "beta1=high"], "'beta1=high' is not of the form NAME=NUMBER"),
        (["--set", "beta1=1.5"], "hyper beta1: 1.5 is outside [0, 1)"),
        (["--set", "eps=nan"], "hyper eps: nan is outside"),
        (["--set", "lr=0.1"], "the learning rate has an option of its own: --lr"),
        (["--set", "beta1=0.5", "--set", "beta1=0.6"], "--set gives beta1 twice"),
        (["--schedule", "sine"], "unknown schedule 'sine'"),
        (["--warmup", "7"], "a warm-up of 7 steps does not fit into a run of 6"),
        (["--optimizer", "gradient-descent", "--accumulate", "2"], "there is nothing to accumulate"),
    ],
)  # fmt: skip
def test_mistakes_on_the_command_line_are_a_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    code, said, _ = invoke(tmp_path, *arguments)
    assert code == 2 and message in " ".join(said.split())
    assert not (tmp_path / "run").exists()


def test_hyperparameters_of_a_fallback_may_be_set(tmp_path: Path) -> None:
    names = [name for name in BASELINES["muon"].program.fallback.defaults()  # type: ignore[union-attr]
             if name not in BASELINES["muon"].program.defaults()]  # fmt: skip
    code, said, record = invoke(tmp_path, "--optimizer", "muon", "--set", f"{names[0]}=0.5")
    assert code == 0, said
    assert record["options"]["hypers"] == {names[0]: 0.5}


def test_the_help_names_all_schedules() -> None:
    for name in SCHEDULES:
        assert name in (train_on_the_command_line.__doc__ or "")
