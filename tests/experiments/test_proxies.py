"""The proxies: tiny tasks whose data do not repeat within a run."""

from __future__ import annotations

import math

import pytest
import torch

from optforge.baselines import BASELINES
from optforge.experiments.errors import UserError
from optforge.experiments.tasks import get_task, proxy_data, task_names
from optforge.experiments.tasks.proxies import PROXIES
from optforge.search.training.population.members import train_members
from optforge.search.training.schedule import scheduled
from optforge.search.training.task import batch_indices, parameter_count

TEXT = "proxy-text"


@pytest.mark.parametrize("name", PROXIES)
def test_examples_do_not_repeat_within_a_run(name: str) -> None:
    task = PROXIES[name]
    train = task.data().train
    seen = batch_indices(len(train), task.batch_size, task.steps, 3).flatten()
    assert len(seen.unique()) == len(seen) and len(train) >= 3 * len(seen)
    inputs = train.batch(seen)[0].flatten(1)
    if name not in (TEXT, "proxy-recurrent"):  # short pieces of text may occur twice in it
        assert len(inputs.unique(dim=0)) == len(inputs)


@pytest.mark.parametrize("name", PROXIES)
def test_training_and_validation_loss_agree(name: str) -> None:
    """Of batches that are new, at the end of runs with AdamW: within 2 % beyond the noise of batches."""
    task, seeds = PROXIES[name], range(64)
    rule = scheduled(BASELINES["adamw"].program, "cosine", task.steps, task.steps // 20)
    found = train_members(task, [(rule, 0.05)], seeds, splits=("valid", "test"))
    training = found.curve[-1, 0].double()
    held_out = torch.stack([found.losses[split][0].mean() for split in ("valid", "test")])
    noise = math.hypot(float(training.std()) / math.sqrt(len(seeds)), float(held_out.std()) / math.sqrt(2))
    assert noise < 0.05 * float(held_out.mean())
    assert abs(float(training.mean() - held_out.mean())) < 0.02 * float(held_out.mean()) + 2 * noise
    assert held_out.mean() < 0.9 * found.start.mean()  # and there is something to learn


def test_proxies_differ_in_model_and_batch_size() -> None:
    assert len(PROXIES) >= 8
    assert len({row.batch_size for row in PROXIES.values()}) >= 2
    assert all(1_000 < parameter_count(row) < 10_000 for row in PROXIES.values())


def test_suite_name_stands_for_all_proxies() -> None:
    assert task_names("proxies") == tuple(PROXIES)
    assert task_names("digits, proxies,digits") == ("digits", *PROXIES)
    assert get_task("proxy-deep") is PROXIES["proxy-deep"]
    with pytest.raises(UserError, match="unknown task 'proxy'"):
        task_names("digits,proxy")


def test_letters_fold_capitals_and_kinds_of_characters() -> None:
    text = "\n Az(]'9~\u4e2d"
    found = proxy_data.fold(text).tolist()
    assert found == [0, 1, 2, 27, 29, 29, 30, 28, 31, 31]
    splits = proxy_data.letters()
    inputs, targets = splits.train.batch(torch.tensor([0, 17]))
    assert torch.equal(inputs[:, 1:], targets[:, :-1]) and int(targets.max()) < proxy_data.LETTERS


def test_missing_library_source_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_data, "MODULES", ("no_such_module_at_all",))
    with pytest.raises(UserError, match="task proxy-text needs the source of Python's standard library"):
        proxy_data.letters.__wrapped__()


def test_chain_is_predictable_from_two_symbols_and_not_from_one() -> None:
    train = proxy_data.chain().train
    x, y = train.batch(torch.arange(len(train)))
    pair = x[:, :-1] * proxy_data.SYMBOLS + x[:, 1:]

    def entropy(context: torch.Tensor, following: torch.Tensor, size: int) -> float:
        counts = torch.zeros(size, proxy_data.SYMBOLS)
        counts.index_put_((context.flatten(), following.flatten()), torch.ones(context.numel()), accumulate=True)
        share = counts / counts.sum()
        given = counts / counts.sum(1, keepdim=True).clamp(min=1)
        return float(-(share * given.clamp(min=1e-12).log()).sum())

    one = entropy(x[:, 1:], y[:, 1:], proxy_data.SYMBOLS)
    two = entropy(pair, y[:, 1:], proxy_data.SYMBOLS**2)
    assert two < one - 0.5
