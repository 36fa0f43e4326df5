"""Parameter groups of real small models: who decays, at which rate, and that optimizers do as the groups say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from optforge.baselines import BASELINES, AdamW
from optforge.experiments.tasks.models import MLP
from optforge.experiments.tasks.transformers import GPT
from optforge.learned import learn
from optforge.primitives import Program, ProgramError, ProgramOptimizer, parse_program
from optforge.primitives.export.one_file import export
from optforge.search.training.groups import layers_by_name, parameter_groups

SGD = parse_program("optforge 1\nupdate g\n")


def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(vocabulary=11, context=8, width=8, heads=2, depth=2)


def names(groups: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {group["name"]: [name for name, _ in group["params"]] for group in groups}


def test_biases_and_norms_do_not_decay() -> None:
    model = gpt()
    found = names(parameter_groups(model, weight_decay=0.1))
    assert set(found) == {"decay", "no_decay"}
    assert sorted(found["decay"] + found["no_decay"]) == sorted(dict(model.named_parameters()))
    for name in found["no_decay"]:
        assert name.endswith("bias") or "norm" in name
    for name in found["decay"]:
        assert name.endswith(("weight", "position")) and "norm" not in name
    assert "embed.weight" in found["decay"]


def test_norms_of_any_shape_do_not_decay() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LayerNorm((2, 8, 8)))
    decayed = {
        name: g["weight_decay"] > 0 for g in parameter_groups(model, weight_decay=0.1) for name, _ in g["params"]
    }
    assert decayed == {"0.weight": True, "0.bias": False, "1.weight": False, "1.bias": False}


def test_embeddings_may_be_left_out_of_decay() -> None:
    found = names(parameter_groups(gpt(), weight_decay=0.1, decay_embeddings=False))
    assert "embed.weight" in found["no_decay"] and "head.weight" in found["decay"]
    bag = nn.Sequential(nn.EmbeddingBag(4, 3), nn.Linear(3, 2))
    assert names(parameter_groups(bag, weight_decay=0.1, decay_embeddings=False))["decay"] == ["1.weight"]


def test_filters_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU())
    found = names(parameter_groups(model, weight_decay=0.1))
    assert found == {"decay": ["0.weight"], "no_decay": ["0.bias", "1.weight", "1.bias", "2.weight"]}


def test_frozen_parameters_are_left_out() -> None:
    model = gpt()
    model.embed.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    everything = [name for group in parameter_groups(model, weight_decay=0.1) for name, _ in group["params"]]
    assert everything and not any(name.startswith(("embed", "blocks.0")) for name in everything)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameters to train; is everything frozen"):
        parameter_groups(model)


@pytest.mark.filterwarnings("error")
def test_tied_parameters_come_once() -> None:
    model = gpt()
    model.head.weight = model.embed.weight
    groups = parameter_groups(model, weight_decay=0.1, decay_embeddings=False)
    found = names(groups)
    assert "embed.weight" in found["no_decay"] and "head.weight" not in found["decay"] + found["no_decay"]
    torch.optim.AdamW(groups)  # which warns of a parameter given twice


def test_without_decay_there_is_one_group_that_says_nothing_of_it() -> None:
    (group,) = parameter_groups(gpt())
    assert set(group) == {"name", "params"} and group["name"] == "all"
    ProgramOptimizer(parameter_groups(gpt()), SGD)  # which has no weight decay
    with pytest.raises(ProgramError, match="unknown hyperparameter 'weight_decay'"):
        ProgramOptimizer(parameter_groups(gpt(), weight_decay=0.1), SGD)


def test_layers_have_rates_of_their_own() -> None:
    groups = parameter_groups(gpt(), lr=0.1, weight_decay=0.2, layer_decay=0.5)
    rates = {name: group["lr"] for group in groups for name, _ in group["params"]}
    expected = {"embed.weight": 1 / 8, "position": 1 / 8, "blocks.0.attention.qkv.bias": 1 / 4,
                "blocks.1.norm1.bias": 1 / 2, "norm.weight": 1.0, "head.weight": 1.0}  # fmt: skip
    assert {name: rates[name] for name in expected} == pytest.approx({k: 0.1 * v for k, v in expected.items()})
    assert [group["name"] for group in groups] == [
        "layer0.decay", "layer1.decay", "layer1.no_decay", "layer2.decay", "layer2.no_decay", "layer3.decay",
        "layer3.no_decay"]  # fmt: skip
    assert {group["weight_decay"] for group in groups if group["name"].endswith("no_decay")} == {0.0}


def test_rates_do_not_depend_on_what_is_frozen() -> None:
    model = gpt()
    options: dict[str, Any] = {"lr": 0.1, "layer_decay": 0.5}
    all_rates = {n: g["lr"] for g in parameter_groups(model, **options) for n, _ in g["params"]}
    model.head.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    rates = {n: g["lr"] for g in parameter_groups(model, **options) for n, _ in g["params"]}
    assert rates and rates.items() < all_rates.items()


def test_layers_from_names() -> None:
    assert layers_by_name([name for name, _ in MLP(4, 3, 3, 2).named_parameters()]) == {
        "layers.0.weight": 0, "layers.0.bias": 0, "layers.1.weight": 1, "layers.1.bias": 1, "layers.2.weight": 2,
        "layers.2.bias": 2}  # fmt: skip
    both = ["embed", "encoder.layer.0.w", "encoder.layer.10.mlp.0.w", "decoder.layer.0.w", "out"]
    assert list(layers_by_name(both).values()) == [0, 1, 2, 3, 4]
    assert layers_by_name(["conv1.weight", "fc.weight"]) == {"conv1.weight": 0, "fc.weight": 0}


def test_own_numbering_of_layers() -> None:
    (low, high) = parameter_groups(MLP(4, 3, 3, 2), lr=1.0, layer_decay=0.1, layer=lambda n: int("layers.2" in n))
    assert (low["lr"], high["lr"]) == (0.1, 1.0)
    assert [n for n, _ in high["params"]] == ["layers.2.weight", "layers.2.bias"]


def exported(program: Program) -> Callable[..., Optimizer]:
    scope: dict[str, Any] = {}
    exec(export(program, "exported"), scope)
    return scope["Exported"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.AdamW(groups, lr=0.5),
        lambda groups: AdamW(groups, lr=0.5),
        lambda groups: ProgramOptimizer(groups, BASELINES["adamw"].program, lr=0.5),
        lambda groups: learn(groups, BASELINES["adamw"].program, lr=0.5),
        lambda groups: exported(BASELINES["adamw"].program)(groups, lr=0.5),
    ],
)
def test_optimizers_do_as_the_groups_say(make: Callable[[Any], Optimizer]) -> None:
    """Where gradients are zero, AdamW only decays: by lr · weight_decay in each group."""
    model = gpt()
    before = copy.deepcopy(dict(model.named_parameters()))
    groups = parameter_groups(model, lr=0.1, weight_decay=0.2, layer_decay=0.5)
    factor = {n: 1 - g["lr"] * g["weight_decay"] for g in groups for n, _ in g["params"]}
    assert len(set(factor.values())) == 5
    optimizer = make(groups)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, before[name] * factor[name])
    assert [group["name"] for group in optimizer.param_groups] == [group["name"] for group in groups]
    assert [n for group in optimizer.param_groups for n in group["param_names"]] == list(factor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be a finite number of at least 0, got -1"),
        ({"weight_decay": float("nan")}, "weight_decay must be a finite number of at least 0, got nan"),
        ({"lr": 0.1, "layer_decay": 0.0}, r"layer_decay must be a number in \(0, 1\], got 0"),
        ({"layer_decay": 0.9}, "layer_decay needs lr"),
    ],
)
def test_misuse_is_told(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parameter_groups(gpt(), **options)  # type: ignore[arg-type]
