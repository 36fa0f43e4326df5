"""One training run under Lightning equals the plain loop, and ends well whatever happens."""

from __future__ import annotations

import math
import signal

import pytest
import torch
from support.training import train

from optforge.baselines import BASELINES, AdamW, ScheduleFreeAdamW
from optforge.experiments.errors import UserError
from optforge.experiments.tasks import TASKS
from optforge.primitives import ProgramError, ProgramOptimizer
from optforge.search.training.loop import evaluate
from optforge.search.training.task import batch_indices, initial_model
from optforge.search.training.trial import Status

DIGITS = TASKS["digits"]
ADAMW = BASELINES["adamw"].program
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # where Lightning trains


def test_equals_the_plain_loop_bit_for_bit():
    result = train(DIGITS, ADAMW, 3e-3, seed=5, steps=30)
    splits, model = DIGITS.data(), initial_model(DIGITS, 5).to(DEVICE)
    optimizer = ProgramOptimizer(model.parameters(), ADAMW, 3e-3)
    curve = []
    for indices in batch_indices(len(splits.train), DIGITS.batch_size, 30, 5):
        inputs, targets = (x.to(DEVICE) for x in splits.train.batch(indices))
        optimizer.zero_grad()
        loss = DIGITS.loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    assert list(result.curve) == curve
    assert (result.loss("valid"), result.outcome.accuracy["valid"]) == evaluate(model, DIGITS, splits.valid)
    assert (result.loss("test"), result.outcome.accuracy["test"]) == evaluate(model, DIGITS, splits.test)
    assert result.outcome.status is Status.OK and result.outcome.reason == ""
    assert result.steps == 30 and result.learned == {}
    assert result.valid_curve[-1] == (30, result.loss("valid"))


def test_runs_of_different_optimizers_are_paired_and_repeatable():
    first, again = (train(DIGITS, ADAMW, seed=1, steps=5) for _ in range(2))
    other = train(DIGITS, BASELINES["lion"].program, 1e-4, seed=1, steps=5)
    assert first.curve == again.curve and first.loss("test") == again.loss("test")
    assert first.curve[0] == other.curve[0] and first.curve[-1] != other.curve[-1]
    assert train(DIGITS, ADAMW, seed=2, steps=1).curve[0] != first.curve[0]


def test_a_tuned_run_learns_the_digits():
    result = train(DIGITS, ADAMW, 1e-2)
    assert result.steps == DIGITS.steps == 200
    assert result.loss("valid") < 0.15 and result.outcome.accuracy["test"] > 0.95
    assert result.loss("train") < result.loss("valid")


def test_a_factory_works_like_a_program():
    program, factory = (train(DIGITS, o, 3e-3, steps=10) for o in (ADAMW, AdamW))
    assert factory.loss("valid") == pytest.approx(program.loss("valid"), rel=1e-4)


def test_schedule_free_is_evaluated_at_its_averages():
    """By hand, as a program, and by a plain loop that switches to the averages itself."""
    task = DIGITS
    by_hand = train(task, ScheduleFreeAdamW, 0.03, steps=20)
    program = train(task, BASELINES["schedule-free-adamw"].program, 0.03, steps=20)
    model = initial_model(task, 0).to(DEVICE)
    optimizer = ScheduleFreeAdamW(model.parameters(), lr=0.03)
    splits = task.data()
    for step in batch_indices(len(splits.train), task.batch_size, 20, 0):
        inputs, targets = (x.to(DEVICE) for x in splits.train.batch(step))
        optimizer.zero_grad()
        task.loss(model(inputs), targets).backward()
        optimizer.step()
    at_y = evaluate(model, task, splits.valid)[0]
    optimizer.eval()
    assert by_hand.loss("valid") == evaluate(model, task, splits.valid)[0] != at_y
    assert program.loss("valid") == pytest.approx(by_hand.loss("valid"), rel=1e-5)


def test_a_full_batch_holds_every_training_example_once_whatever_the_seed_of_batches():
    """Its loss before the first step is that of the training split, and every step is one of exact descent."""
    result = train(DIGITS, BASELINES["gradient-descent"].program, 0.1, seed=4, steps=5, full_batch=True)
    model, split = initial_model(DIGITS, 4), DIGITS.data().train
    curve = []
    for _ in range(5):
        loss = DIGITS.loss(model(split.inputs), split.targets)
        curve.append(loss.item())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= 0.1 * g
    assert list(result.curve) == pytest.approx(curve, rel=1e-6)
    assert result.curve == sorted(result.curve, reverse=True)


def test_a_split_too_large_for_one_batch_is_refused():
    with pytest.raises(UserError, match=r"task charlm has [0-9,]+ training examples, and a full batch holds at most"):
        train(TASKS["charlm"], BASELINES["gradient-descent"].program, 0.1, steps=1, full_batch=True)


def test_learning_the_rate_lifts_a_small_one():
    plain = train(DIGITS, ADAMW, 1e-4)
    learned = train(DIGITS, ADAMW, 1e-4, learn=("lr",))
    assert learned.learned["lr"] > 3e-4
    assert learned.loss("valid") < 0.8 * plain.loss("valid")


def test_divergence_is_a_status():
    result = train(DIGITS, ADAMW, 1e15)
    assert result.outcome.status is Status.DIVERGED and f"non-finite at step {result.steps}" in result.outcome.reason
    assert result.steps < 200 and result.loss("valid") == result.outcome.valid == math.inf


def test_divergence_in_the_last_step_is_seen():
    result = train(DIGITS, ADAMW, 1e30, steps=1)
    assert result.outcome.status is Status.DIVERGED and result.steps == 1 and math.isfinite(result.curve[0])


def test_curves_go_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train(DIGITS, ADAMW, 1e-3, steps=20, learn=("lr",), folder=tmp_path)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    logged = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert {"loss/train", "loss/valid", "accuracy/valid", "optimizer/lr", "optimizer/learned/lr"} <= set(logged)
    assert {tag.split("/")[0] for tag in logged} == {"loss", "accuracy", "optimizer"}
    assert [step for step, _ in logged["loss/train"]] == list(range(1, 21))
    assert [value for _, value in logged["loss/train"]] == pytest.approx(result.curve)
    assert logged["loss/valid"] == [(step, pytest.approx(value)) for step, value in result.valid_curve]
    assert logged["optimizer/learned/lr"][-1][1] == pytest.approx(result.learned["lr"])


def test_says_nothing(capfd, caplog):
    train(DIGITS, ADAMW, steps=2, progress=True)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "") and not caplog.records


def test_ctrl_c_is_a_keyboard_interrupt_and_stays_possible():
    class Interrupted(AdamW):
        def step(self, closure=None):
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(DIGITS, Interrupted)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(("presses", "last"), [(1, False), (2, False), (1, True)])
def test_ctrl_c_waits_for_the_end_of_the_step_and_a_second_one_does_not(presses, last):
    ended = []

    class Pressed(AdamW):
        def step(self, closure=None):
            super().step(closure)
            for _ in range(presses if len(ended) == (9 if last else 2) else 0):
                signal.raise_signal(signal.SIGINT)
            ended.append("step")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(DIGITS, Pressed, steps=10)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(ended) == (10 if last else 3 if presses == 1 else 2)


def test_misuse_is_told_before_anything_is_written(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(UserError, match="at least 1, got 0"):
        train(DIGITS, ADAMW, steps=0, folder=folder)
    with pytest.raises(UserError, match="only programs can learn lr"):
        train(DIGITS, AdamW, learn=("lr",), folder=folder)
    with pytest.raises(ProgramError, match="cannot learn 'gamma'"):
        train(DIGITS, ADAMW, learn=("lr", "gamma"), folder=folder)
    with pytest.raises(UserError, match="lr must be"):
        train(DIGITS, ADAMW, -1.0, folder=folder)
    assert not folder.exists()


def test_the_other_task_trains_too():
    result = train(TASKS["charlm"], ADAMW, 3e-3, steps=12)
    assert result.outcome.status is Status.OK and result.curve[-1] < result.curve[0] - 0.5
    assert torch.isfinite(torch.tensor(result.loss("test")))
