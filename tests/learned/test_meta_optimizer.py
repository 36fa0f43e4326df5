"""Learned rules as torch optimizers: the same numbers as in meta-training, and what any optimizer must stand."""

from __future__ import annotations

import copy
import io
import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from optforge.experiments.training.meta_problems import digit_images
from optforge.learned import MetaOptimizer
from optforge.learned.meta.features import default_features
from optforge.learned.meta.models import LSTMRule, MLPRule, flatten
from optforge.learned.meta.tasks import classifier, quadratics
from optforge.learned.meta.trainer import evaluate
from optforge.learned.meta.weights import Learned, card_markdown, load, pack, shipped
from optforge.primitives import ProgramError


def learned(rule=None, seed=0):
    rule = MLPRule() if rule is None else rule
    weights = rule.initial(torch.Generator().manual_seed(seed))
    return Learned(rule, {k: 3 * w for k, w in weights.items()}, {"seed": seed})


BOTH = pytest.mark.parametrize("rule", [LSTMRule(), MLPRule()], ids=["lstm", "mlp"])


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def train(net, optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(8, 4, generator=generator)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@BOTH
def test_the_optimizer_does_what_meta_training_did(rule):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.rand(40, 6, generator=generator), torch.randint(3, (40,), generator=generator)
    task = classifier("toy", x, y, (4,), horizon=6, workers=2, batch_size=8)
    found = learned(rule)
    losses = evaluate(rule, task, flatten(found.weights, rule), 7, 2)
    again = torch.Generator().manual_seed(7)
    instances, params = task.draw(again, 2)
    batches = task.batches(again, 2, 7)
    for worker in range(2):
        own = {n: p[worker].clone().requires_grad_() for n, p in params.items()}
        optimizer = MetaOptimizer(own.values(), found)
        for step, batch in enumerate(batches[worker]):
            optimizer.zero_grad()
            loss = task.loss(own, instances, batch)
            torch.testing.assert_close(loss.detach(), losses[worker, step], rtol=1e-4, atol=1e-6)
            loss.backward()
            optimizer.step()


@BOTH
def test_a_saved_state_goes_on_exactly(rule):
    whole = model()
    expected = train(whole, MetaOptimizer(whole.parameters(), learned(rule)), 3, seed=1)
    del expected
    optimizer = MetaOptimizer(whole.parameters(), learned(rule))
    train(whole, optimizer, 3, seed=2)
    other = copy.deepcopy(whole)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    resumed = MetaOptimizer(other.parameters(), learned(rule))
    resumed.load_state_dict(torch.load(buffer, weights_only=True))
    assert same(train(whole, optimizer, 3, seed=3), train(other, resumed, 3, seed=3))


def test_a_learned_rate_survives_saving():
    net = model()
    optimizer = MetaOptimizer(net.parameters(), learned(), learn_lr=0.1)
    train(net, optimizer, 4)
    other = copy.deepcopy(net)
    resumed = MetaOptimizer(other.parameters(), learned(), learn_lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.learned_factor == resumed.learned_factor != 1
    assert same(train(net, optimizer, 3), train(other, resumed, 3))


def test_a_checkpoint_of_another_rule_is_refused():
    net = model()
    optimizer = MetaOptimizer(net.parameters(), learned(LSTMRule()))
    saved = MetaOptimizer(model().parameters(), learned(MLPRule())).state_dict()
    with pytest.raises(ProgramError, match="differs in name"):
        optimizer.load_state_dict(saved)


@BOTH
def test_groups_have_rates_of_their_own_and_frozen_parameters_stay(rule):
    net, plain = model(), model()
    first, second = net[0].parameters(), net[2].parameters()
    net[0].bias.requires_grad_(False)
    optimizer = MetaOptimizer([{"params": first}, {"params": second, "lr": 0.5}], learned(rule))
    before = [p.clone() for p in net.parameters()]
    x = torch.ones(3, 4)
    for n, o in ((net, optimizer), (plain, MetaOptimizer(plain.parameters(), learned(rule)))):
        n(x).square().mean().backward()
        o.step()
    after, whole = list(net.parameters()), list(plain.parameters())
    assert torch.equal(after[1], before[1])
    torch.testing.assert_close(after[0], whole[0])
    torch.testing.assert_close(after[2] - before[2], 0.5 * (whole[2] - before[2]), rtol=1e-4, atol=1e-7)


def test_closures_are_called_with_gradients():
    net = model()
    optimizer = MetaOptimizer(net.parameters(), learned())
    before = [p.clone() for p in net.parameters()]

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(2, 4)).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert not same(before, net.parameters())


def test_schedulers_copies_and_float64():
    net = model().double()
    optimizer = MetaOptimizer(net.parameters(), learned(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    net(torch.ones(2, 4).double()).square().mean().backward()
    optimizer.step()
    schedule.step()
    assert copy.deepcopy(optimizer).param_groups[0]["lr"] == 0.5
    assert all(p.dtype is torch.float64 for p in net.parameters())


def test_gradients_that_are_not_finite_move_nothing():
    net = model()
    optimizer = MetaOptimizer(net.parameters(), learned())
    net(torch.ones(2, 4)).sum().backward()
    net[2].bias.grad[0] = math.nan
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(ProgramError, match=r"parameter 3 of shape \(2,\) is not finite"):
        optimizer.step()
    assert same(before, net.parameters())
    assert not optimizer.state


@pytest.mark.parametrize("lr", [-1.0, math.nan, math.inf, "1", True])
def test_rates_out_of_range_are_refused(lr):
    with pytest.raises(ProgramError, match="lr must be"):
        MetaOptimizer(model().parameters(), learned(), lr=lr)
    with pytest.raises(ProgramError, match="learn_lr must be"):
        MetaOptimizer(model().parameters(), learned(), learn_lr=lr)


def test_half_precision_and_sparse_gradients_are_refused():
    with pytest.raises(ProgramError, match="autocast"):
        MetaOptimizer(model().half().parameters(), learned())
    embedding = nn.Embedding(3, 2, sparse=True)
    optimizer = MetaOptimizer(embedding.parameters(), learned())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ProgramError, match="sparse"):
        optimizer.step()


class Linear:
    """A rule that goes along the gradient, for which the best rate is known."""

    name = "linear"
    shapes = {"a": (1,)}  # noqa: RUF012
    settings = {}  # noqa: RUF012

    def init(self, p):
        return {}

    def step(self, weights, ps, gs, states, step):
        return [weights["a"] * g for g in gs], [{} for _ in ps]


@pytest.mark.parametrize(("start", "low", "high"), [(1e-3, 3.0, 1e6), (1.9, 0.0, 0.9)])
def test_a_learned_rate_rises_from_small_and_falls_from_large(start, low, high):
    p = torch.ones(3, requires_grad=True)
    rule = Learned(Linear(), {"a": torch.tensor([start])}, {})
    optimizer = MetaOptimizer([p], rule, learn_lr=0.05)
    for _ in range(40):
        optimizer.zero_grad()
        (0.5 * p.square().sum()).backward()
        optimizer.step()
    assert low < optimizer.learned_factor < high


def test_the_first_move_of_a_learned_rate_by_hand():
    p = torch.tensor([2.0, 1.0], requires_grad=True)
    optimizer = MetaOptimizer([p], Learned(Linear(), {"a": torch.tensor([0.1])}, {}), learn_lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        (p.square() * torch.tensor([0.5, 2.0])).sum().backward()
        optimizer.step()
    u = 0.1 * torch.tensor([2.0, 4.0]).double()
    g = torch.tensor([0.9 * 2.0, 4 * 0.6]).double()  # after p = (1.8, 0.6)
    cosine = (g @ u) / (g.norm() * u.norm())
    assert optimizer.learned_factor == pytest.approx(math.exp(0.05 * cosine), rel=1e-6)


# files


@BOTH
def test_weights_survive_a_file(rule, tmp_path):
    found = learned(rule)
    path = tmp_path / "w.safetensors"
    path.write_bytes(pack(found))
    back = load(path)
    assert back.card == found.card
    assert back.rule.name == rule.name
    assert all(torch.equal(back.weights[k], found.weights[k]) for k in found.weights)
    assert "| seed | 0 |" in card_markdown(back, "mine")


def test_weights_of_another_feature_program_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    features = default_features()
    path.write_bytes(pack(learned(MLPRule())))
    other = type(features).parse(features.text.replace("0.99", "0.98"))
    with pytest.raises(
        ProgramError, match=r"another feature program: it has '.*0\.99.*' where '.*0\.98.*' is expected"
    ):
        load(path, MLPRule(other))
    with pytest.raises(ProgramError, match="rule 'mlp', not of 'lstm'"):
        load(path, LSTMRule())
    with pytest.raises(ProgramError, match="needs"):
        load(path, MLPRule(hidden=16))


def _packed(**metadata):
    return safetensors.torch.save({"x": torch.zeros(1)}, metadata or None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no safetensors file"),
        (b"hello there, this is text", "no safetensors file"),
        (_packed(), "not the weights of a learned rule"),
        (_packed(optforge="1", rule="gru"), "not the weights of a learned rule"),
        (_packed(optforge="1", rule="lstm"), "does not say how its rule was set"),
        (_packed(optforge="1", rule="lstm", p="10.0", scale="0.1"), "has nothing for 'weight_ih_l0'"),
        (_packed(optforge="1", rule="mlp", scale="0.01", features="{"), "does not say what its features are"),
        (_packed(optforge="1", rule="lstm", p="10.0", scale="nan"), "its scale is nan"),
        (pack(learned()._replace(card=[1])), "is no JSON object"),
        (pack(learned()._replace(weights={k: w.long() for k, w in learned().weights.items()})), "of torch.int64"),
    ],
    ids=[
        "empty",
        "text",
        "bare",
        "gru",
        "unset",
        "shapeless",
        "features",
        "nan",
        "card",
        "integers",
    ],  # the bytes differ from process to process
)
def test_files_that_are_no_weights_are_refused(content, says, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ProgramError, match=says):
        load(path)


def test_truncated_and_poisoned_weights_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    whole = pack(learned())
    for length in (4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ProgramError, match="no safetensors file, or only a part"):
            load(path)
    found = learned()
    found.weights["layers.0.bias"][3] = math.nan
    path.write_bytes(pack(found))
    with pytest.raises(ProgramError, match="not finite"):
        load(path)


def test_a_name_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(ProgramError, match=f"there are no weights '{'a' * 200}'"):
        load("a" * 5000)
    with pytest.raises(ProgramError, match="expected the name or path of weights, got 5"):
        MetaOptimizer([torch.ones(2, requires_grad=True)], 5)
    with pytest.raises(ProgramError, match="there are no weights 'nope'"):
        load("nope")


@pytest.mark.parametrize("name", shipped())
def test_shipped_weights_train(name):
    found = load(name)
    assert {"trained on", "seed", "commit", "CPU seconds", "meta-steps"} <= found.card.keys()
    assert json.dumps(found.card)
    if name.endswith("quadratics"):
        problem, workers, share = quadratics(), 64, 0.1
    else:
        problem, workers, share = classifier("digits", *digit_images(8)), 3, 0.15
    losses = evaluate(found.rule, problem, flatten(found.weights, found.rule), 77, workers).mean(0)
    assert losses[-1] < share * losses[0]


def test_the_example_of_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "meta.md").read_text()
    exec(page.split("```python\n")[1].split("```")[0], {})


def test_what_a_learned_rule_cannot_do_is_told_before_anything_moves():
    p = torch.nn.Parameter(torch.ones(2))
    with pytest.raises(ProgramError, match="change the sign of the loss"):
        MetaOptimizer([{"params": [p], "maximize": True}])
    optimizer = MetaOptimizer([p])
    p.grad = torch.ones(2)
    optimizer.param_groups[0]["lr"] = math.nan
    with pytest.raises(ProgramError, match="lr has become nan"):
        optimizer.step()
    assert torch.equal(p.detach(), torch.ones(2)) and not optimizer.state
