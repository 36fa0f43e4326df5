"""Tasks: data, models, losses, and that they train as stacks."""

from __future__ import annotations

import dataclasses
import importlib
import math

import pytest
import torch
from support.training import train
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from optforge.baselines import BASELINES
from optforge.experiments.errors import UserError
from optforge.experiments.programs import usual_rate
from optforge.experiments.tasks import TASKS, cross_entropy, get_task, texts
from optforge.experiments.tasks.file_tasks import FILE_TASKS
from optforge.experiments.tasks.proxies import PROXIES
from optforge.search.fitness.evaluator import Status
from optforge.search.fitness.sweep import Sweep
from optforge.search.training.loop import as_dtype, evaluate, train_alone
from optforge.search.training.task import (
    TRAIN_MEASURED,
    Splits,
    TensorSplit,
    batch_indices,
    initial_model,
    measured_part,
)

OFFLINE = [name for name in TASKS if name not in FILE_TASKS]
ON_FILES = {"mnist": "mnist", "mnist-vit": "mnist", "shakespeare": "tinyshakespeare", "tinystories": "tinystories"}


@pytest.fixture(params=[*OFFLINE, *ON_FILES])
def task(request):
    """Every task whose data are here; real data in files where the folder for them is there."""
    if request.param in ON_FILES:
        request.getfixturevalue("real_data")(ON_FILES[request.param])
    if request.param == "tinystories":
        pytest.importorskip("tokenizers", reason="the extra text is not installed")
    return get_task(request.param)


def test_names_are_keys():
    assert all(name == task.name for name, task in TASKS.items())


def test_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match=r"unknown task 'digit'; did you mean digits.*\? \(there are: arrays, .*text\)"):
        get_task("digit")


def test_data_is_loaded_once(task):
    assert task.data() is task.data()


def test_batches_keep_the_leading_shape_of_their_indices(task):
    for split in task.data():
        indices = torch.tensor([[0, 1, 2], [len(split) - 1, 5, 6]])
        inputs, targets = split.batch(indices)
        assert inputs.shape[:2] == targets.shape[:2] == indices.shape
        single, target = split.batch(torch.tensor(5))
        assert torch.equal(inputs[1, 1], single) and torch.equal(targets[1, 1], target)


def test_stacked_members_have_the_gradients_of_single_ones_in_float64(task):
    models = [initial_model(task, seed).double() for seed in range(3)]
    parameters, buffers = stack_module_state(models)
    inputs, targets = task.data().train.batch(torch.arange(4) * 7)
    inputs = as_dtype(inputs, torch.float64)

    def loss(parameters, buffers):
        return task.loss(functional_call(models[0], (parameters, buffers), (inputs,)), targets)

    gradients, losses = vmap(grad_and_value(loss))(parameters, buffers)
    for member, model in enumerate(models):
        alone = task.loss(model(inputs), targets)
        alone.backward()
        assert alone.dtype is torch.float64
        torch.testing.assert_close(losses[member], alone.detach(), rtol=1e-12, atol=1e-12)
        for name, p in model.named_parameters():
            torch.testing.assert_close(gradients[name][member], p.grad, rtol=1e-9, atol=1e-12)


def test_stacked_members_can_share_parameters_without_buffers(task):
    """The mask of an attention is a constant: it stays right when only parameters are exchanged."""
    model = initial_model(task, 0)
    inputs, _ = task.data().train.batch(torch.arange(2))
    assert torch.equal(functional_call(model, dict(model.named_parameters()), (inputs,)), model(inputs))


@pytest.mark.parametrize(
    ("name", "classes", "within"),
    [("digits", 10, 0.15), ("digits-conv", 10, 0.15), ("breast-cancer", 2, 0.5), ("mnist1d", 10, 0.15),
     ("copy", 8, 0.4), ("charlm", texts.VOCABULARY, 0.15)],
)  # fmt: skip
def test_untrained_models_know_nothing(name, classes, within):
    loss, accuracy = evaluate(initial_model(TASKS[name], 0), TASKS[name], TASKS[name].data().valid)
    assert abs(loss - math.log(classes)) < within
    assert accuracy is not None and accuracy < (0.3 if classes > 2 else 0.9)


def test_digits_are_stratified_and_standardised_by_the_training_part():
    splits = TASKS["digits"].data()
    assert [len(s) for s in splits] == [1078, 359, 360]
    images = torch.cat([s.inputs for s in splits])
    assert len(images.unique(dim=0)) == 1797  # no image is in two parts
    shares = torch.stack([s.targets.bincount(minlength=10) / len(s) for s in splits])
    assert (shares - shares[0]).abs().max() < 0.005
    train = splits.train.inputs
    assert train.mean(0).abs().max() < 1e-5
    black = train.std(0) == 0
    assert 0 < black.sum() < 10 and torch.isfinite(train).all()
    assert 0.8 < train.std(0)[~black].median() < 1.0  # (std + 0.01) keeps it below 1


def test_text_is_encoded_the_same_everywhere():
    assert texts.encode("\n ~aé\t\u4e2d").tolist() == [0, 1, 95, 66, 96, 96, 96]
    assert texts.encode("").tolist() == []


def test_characters_follow_each_other():
    splits = TASKS["charlm"].data()
    inputs, targets = splits.train.batch(torch.tensor([0, 1, 1000, len(splits.train) - 1]))
    assert inputs.shape == targets.shape == (4, texts.CONTEXT)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert torch.equal(inputs[1], targets[0])  # windows start at every character
    assert inputs.min() >= 0 and max(inputs.max(), targets.max()) < texts.VOCABULARY
    assert len(splits.train) == len(splits.train.text) - texts.CONTEXT
    assert len(splits.train.text) > 500_000 and sum(len(s.text) for s in splits) <= texts.MAX_CHARACTERS


def test_validation_windows_are_spread_and_mostly_unseen():
    splits = TASKS["charlm"].data()
    seen = bytes(splits.train.text.tolist())
    for split in (splits.valid, splits.test):
        assert len(split) == 256
        assert split.starts[0] == 0 and split.starts[-1] == len(split.text) - texts.CONTEXT - 1
        windows, _ = split.batch(torch.arange(256))
        known = sum(bytes(window.tolist()) in seen for window in windows)
        assert known < 26, f"{known} of 256 windows occur in the training text"


def test_missing_text_is_a_sentence(monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(UserError, match=r"needs the text of 'pydoc_data\.topics', which this Python lacks"):
        texts.charlm.__wrapped__()


def test_missing_source_is_a_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="'argparse'"):
        texts.charlm.__wrapped__()


def test_attention_sees_only_the_past():
    model = initial_model(TASKS["charlm"], 0).double()
    text = torch.arange(texts.CONTEXT)[None] % texts.VOCABULARY
    changed = text.clone()
    changed[0, 20] = 96
    difference = (model(text) - model(changed)).abs().sum(-1)[0]
    assert difference[:20].max() == 0
    assert (difference[20:] > 0).all()


def test_shorter_inputs_are_prefixes():
    model = initial_model(TASKS["charlm"], 0).double()
    text = torch.arange(texts.CONTEXT)[None]
    torch.testing.assert_close(model(text[:, :10]), model(text)[:, :10])


def test_cross_entropy_in_nats():
    outputs = torch.randn(2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2], [3, 4, 0]])
    expected = -outputs.log_softmax(-1).gather(-1, targets[..., None]).mean()
    torch.testing.assert_close(cross_entropy(outputs, targets), expected)


LONG = ("charlm", "copy", "mnist-vit", "shakespeare", "tinystories")  # ten seconds and more each; measured by hand


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in (*OFFLINE, *ON_FILES) if name not in (*LONG, *PROXIES)])
def test_adamw_reaches_the_target_from_its_default_settings(name, request):
    """From a seed that the targets were not measured with."""
    if name in ON_FILES:
        request.getfixturevalue("real_data")(ON_FILES[name])
    task = get_task(name)
    result = train(task, BASELINES["adamw"].program, usual_rate("adamw"), seed=3)
    assert task.target is not None and task.target / 3 < result.loss("valid") <= task.target


def test_evaluation_is_the_mean_over_all_examples(task):
    model = initial_model(task, 0)
    split = task.data().valid
    inputs, targets = split.batch(torch.arange(len(split)))
    outputs = model(inputs)
    loss, accuracy = evaluate(model, task, split)
    assert loss == pytest.approx(task.loss(outputs, targets).item(), rel=1e-5)
    right = float((outputs.argmax(-1) == targets).float().mean()) if task.accuracy else None
    assert accuracy == (None if right is None else pytest.approx(right, rel=1e-6))


def test_a_long_training_split_is_measured_in_part():
    small, asked = TASKS["digits"].data(), []

    class Counting:
        def __len__(self):
            return 10**9

        def batch(self, indices):
            asked.extend(indices.tolist())
            return small.valid.batch(indices % 300)

    task = dataclasses.replace(TASKS["digits"], data=lambda: Splits(Counting(), small.valid, small.test))
    part = measured_part(task, "train")
    assert len(part) == len(asked) == TRAIN_MEASURED and asked[0] == 0 and asked[-1] == 10**9 - 1
    assert asked == sorted(set(asked))
    assert measured_part(task, "valid") is small.valid


def test_initial_models_and_batches_depend_on_the_seed_alone(task):
    torch.manual_seed(1)
    first, state = initial_model(task, 3), torch.get_rng_state()
    torch.manual_seed(2)
    second = initial_model(task, 3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(batch_indices(100, 10, 25, 0), batch_indices(100, 10, 25, 0))
    assert not torch.equal(batch_indices(100, 10, 25, 0), batch_indices(100, 10, 25, 1))


def test_populations_train_every_task_as_the_plain_loop_does(task):
    """Two programs at two rates, few steps and examples, in float64; what a search on the task rests on."""
    few = TensorSplit(*task.data().valid.batch(torch.arange(20)))
    short = dataclasses.replace(task, batch_size=min(task.batch_size, 4), data=lambda: task.data()._replace(valid=few))
    protocol = Sweep(short, rates=(1e-3, 1e-2), seeds=(3,), steps=2, precision="float64")
    programs = [BASELINES[name].program for name in ("adamw", "lion")]
    found, expected = protocol(programs), dataclasses.replace(protocol, engine=train_alone)(programs)
    for mine, reference in zip(found, expected, strict=True):
        assert mine.status is Status.OK, mine.reason
        assert mine.by_rate == pytest.approx(reference.by_rate, rel=1e-9)
        assert len(set(mine.by_rate)) == 2
