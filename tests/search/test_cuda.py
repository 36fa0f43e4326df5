"""What runs on a CUDA device is what runs on a CPU, and a step does not wait for the device."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lightning
import pytest
import torch
from support.stacked import ADAMW, relatives
from torch import Tensor, nn

from optforge.baselines import BASELINES
from optforge.experiments.tasks import get_task
from optforge.experiments.tasks.losses import cross_entropy
from optforge.experiments.tasks.transformers import GPT
from optforge.learned import MetaOptimizer, learn
from optforge.learned.meta.models import RULES
from optforge.learned.meta.tasks import classifier
from optforge.learned.meta.trainer import MetaTrainer
from optforge.learned.meta.training import ESTIMATORS
from optforge.primitives import Program, ProgramOptimizer
from optforge.search.training.population import members as population
from optforge.search.training.population.gradients import Gradients
from optforge.search.training.population.members import Outcome, train_members
from optforge.search.training.task import Splits, Task, TensorSplit, initial_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

STEPS = 20
Make = Callable[..., torch.optim.Optimizer]


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def trained(device: str, make: Make, wait: bool = True) -> list[Tensor]:
    """Parameters after some steps in float64, the later ones without waiting for the device if it must not be."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    x, y = torch.randn(STEPS, 16, 5).double().to(device), torch.randn(STEPS, 16, 3).double().to(device)
    model = copy.deepcopy(model).to(device)
    optimizer = make(model.parameters())

    def step(index: int) -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[index]), y[index]).backward()
        optimizer.step()

    for index in range(STEPS):
        if wait or index < 3:  # it compiles
            step(index)
        else:
            with no_waiting():
                step(index)
    return [p.detach().cpu() for p in model.parameters()]


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_programs_step_on_both_alike(name: str) -> None:
    make = functools.partial(ProgramOptimizer, program=BASELINES[name].program, lr=1e-3, total_steps=STEPS)
    torch.testing.assert_close(trained("cuda", make), trained("cpu", make), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "lamb"])
def test_a_step_does_not_wait(name: str, compiled: bool) -> None:
    make = functools.partial(ProgramOptimizer, program=BASELINES[name].program, lr=1e-3, compile=compiled)
    trained("cuda", make, wait=False)


@pytest.mark.parametrize("what", [("lr",), ("lr", "beta1")])
def test_learned_rates_are_the_same_and_do_not_wait(what: tuple[str, ...]) -> None:
    make = functools.partial(learn, program=ADAMW, lr=1e-3, what=what)
    torch.testing.assert_close(trained("cuda", make, wait=False), trained("cpu", make), rtol=1e-5, atol=1e-8)


def both(monkeypatch: pytest.MonkeyPatch, members: list[tuple[Program, float]], **options: object) -> list[Outcome]:
    task = get_task("digits")
    train = functools.partial(train_members, task, members, (0, 1), steps=STEPS, dtype=torch.float64)
    found = [train(**options)]
    with monkeypatch.context() as patch:
        patch.setattr(
            population,
            "quiet_trainer",
            lambda: lightning.Trainer(barebones=True, max_epochs=1, accelerator="cpu", devices=1),
        )
        found.append(train(**options))
    return found


def test_a_population_trains_on_both_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = [row.program for row in BASELINES.values()] + relatives(ADAMW, 3, 12)
    members = [(program, lr) for program in programs for lr in (1e-4, 1e-3, 1e-2)]
    on_gpu, on_cpu = both(monkeypatch, members)
    good = on_cpu.losses["valid"] < 10
    assert good.float().mean() > 0.2
    torch.testing.assert_close(on_gpu.losses["valid"][good], on_cpu.losses["valid"][good], rtol=1e-5, atol=1e-7)
    assert torch.equal(on_gpu.diverged_at, on_cpu.diverged_at)


@pytest.mark.parametrize(("vocabulary", "context"), [(1024, 64), (4096, 128)])
def test_gradients_of_a_transformer_are_recorded(vocabulary: int, context: int) -> None:
    text = torch.randint(vocabulary, (17, context + 1), generator=torch.Generator().manual_seed(0))
    part = TensorSplit(text[:, :-1], text[:, 1:])
    task = Task(
        name="words", summary="", model=lambda: GPT(vocabulary, context, 64, 4, 2, tied=True),
        data=lambda: Splits(part, part, part), loss=cross_entropy, metric="", steps=10, batch_size=16, licence="",
        accuracy=True,
    )  # fmt: skip
    weights = nn.utils.parameters_to_vector(initial_model(task, 0).parameters()).detach()[None, None]
    found = []
    for device in ("cpu", "cuda"):
        gradients, arena = Gradients(task), weights.to(device)
        buffer = torch.zeros_like(arena)
        for first in (0, 1, 1):
            inputs, targets = (x[None, first : first + 16].to(device) for x in (part.inputs, part.targets))
            losses = gradients(arena, inputs, targets, buffer)
        found.append((losses.cpu(), buffer.cpu()))
    assert gradients._recorded is not None and gradients._recorded.replay.graph is not None
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("estimator", ["bptt", "tbptt"])
@pytest.mark.parametrize("rule", ["lstm", "mlp"])
def test_meta_training_is_the_same_on_both(rule: str, estimator: str) -> None:
    drawn = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(60, 6, generator=drawn), torch.randint(3, (60,), generator=drawn)
    found = []
    for device in ("cpu", "cuda"):
        data = (x.to(device) for x in (inputs, targets))
        problem = classifier("toy", *data, (5,), horizon=6, workers=3, batch_size=8)
        trainer = MetaTrainer(RULES[rule](), [problem], ESTIMATORS[estimator](), 3, workers=4, device=device)
        losses = torch.stack([trainer.run().losses for _ in range(3)])
        found.append((losses, trainer.state_dict()["theta"], torch.tensor(list(trainer.validate().values()))))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("weights", ["lstm-classifiers", "mlp-classifiers"])
def test_a_learned_rule_trains_on_both_alike(weights: str) -> None:
    make = functools.partial(MetaOptimizer, learned=weights, lr=0.1)
    torch.testing.assert_close(trained("cuda", make), trained("cpu", make), rtol=1e-3, atol=1e-5)
