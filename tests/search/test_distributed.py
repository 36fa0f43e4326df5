"""Two real processes on gloo: sharded and replicated models are trained as one process trains them.

The processes do all the work once, for all tests; they meet through a file, so that no port can be taken, and are ended
if they do not finish.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from support.strategies import assert_same, random_gradients
from torch import Tensor, nn

from optforge.baselines import BASELINES
from optforge.primitives import Builder, Program, ProgramError, ProgramOptimizer
from optforge.primitives.blocks import momentum, trust_ratio

WORLD, STEPS, SECONDS = 2, 3, 120
ADAMW, LION = BASELINES["adamw"].program, BASELINES["lion"].program


def clipped() -> Program:
    """Elementwise, but for the norm of all gradients together."""
    b = Builder()
    return b.build(momentum(b, b.slot("m"), b.g / b.global_norm, 0.9))


def trusting(fallback: Program | None = None) -> Program:
    """Scaled by norms of whole parameters, centred in rows."""
    b = Builder()
    m = momentum(b, b.slot("m"), b.centralise(b.g), 0.9)
    return b.build(m * trust_ratio(b, m), fallback)


ELEMENTWISE = {"adamw": ADAMW, "lion": LION, "clipped": clipped()}
WHOLE = {"lion": LION, "trusting": trusting(ADAMW)}


def model() -> nn.Module:
    """Shards of unequal size: five rows and one row over two processes, of which one then holds nothing."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range, rank: int | None = None) -> None:
    """Steps on the mean loss of a batch, or of this process's share of it."""
    for t in steps:
        x = random_gradients((8, 4), 0, t)[0]
        optimizer.zero_grad()
        net(x if rank is None else x[rank::WORLD]).square().mean().backward()
        optimizer.step()


def alone(program: Program | Callable[..., torch.optim.Optimizer], steps: int = STEPS) -> list[Tensor]:
    """What one process makes of the model."""
    net = model()
    by_hand = not isinstance(program, Program)
    optimizer = program(net.parameters(), lr=0.1) if by_hand else ProgramOptimizer(net.named_parameters(), program, 0.1)
    train(net, optimizer, range(steps))
    return [p.detach() for p in net.parameters()]


def whole(net: nn.Module) -> list[Tensor]:
    return [(p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone() for p in net.parameters()]


def sharded() -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model())  # type: ignore[return-value]


# What the processes do. Each function is called in all of them, and returns what the tests look at.


def fsdp(rank: int) -> dict[str, list[Tensor]]:
    trained = {}
    for name, program in ELEMENTWISE.items():
        for compiled in (False, True):
            net = sharded()
            optimizer = ProgramOptimizer(net.named_parameters(), program, 0.1, compile=compiled)
            train(net, optimizer, range(STEPS), rank)
            trained[f"{name}, {'compiled' if compiled else 'eager'}"] = whole(net)
    return trained


def hand(rank: int) -> dict[str, list[Tensor] | str]:
    trained: dict[str, list[Tensor] | str] = {}
    for name, row in BASELINES.items():
        net = sharded()
        try:
            optimizer = row.optimizer(net.parameters(), lr=0.1)
        except ProgramError as error:
            trained[name] = str(error)
            continue
        train(net, optimizer, range(STEPS), rank)
        trained[name] = whole(net)
    return trained


def ddp(rank: int) -> dict[str, list[Tensor]]:
    trained = {}
    for name, program in WHOLE.items():
        net = nn.parallel.DistributedDataParallel(model())
        train(net, ProgramOptimizer(net.named_parameters(), program, 0.1), range(STEPS), rank)
        trained[name] = whole(net)
    return trained


def refused(rank: int) -> str:
    try:
        ProgramOptimizer(sharded().named_parameters(), trusting(ADAMW))
    except ProgramError as error:
        return str(error)
    return "nothing"


def routed(rank: int) -> list[Tensor]:
    """A rule that mixes elements may be there if a predicate keeps it from what is sharded."""
    net = sharded()
    optimizer = ProgramOptimizer(net.named_parameters(), trusting(ADAMW), 0.1, where=lambda name, p: False)
    train(net, optimizer, range(STEPS), rank)
    return whole(net)


def resumed(rank: int) -> dict[str, list[Tensor]]:
    """Trained at once, and with a checkpoint between, whole or in shards."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    trained = {}
    for name, options in {"whole": StateDictOptions(full_state_dict=True), "shards": StateDictOptions()}.items():
        first, second = sharded(), sharded()
        before, after = (ProgramOptimizer(n.named_parameters(), ADAMW, lr) for n, lr in ((first, 0.1), (second, 0.7)))
        train(first, before, range(STEPS), rank)
        saved = get_model_state_dict(first, options=options), get_optimizer_state_dict(first, before, options=options)
        set_model_state_dict(second, saved[0], options=options)
        set_optimizer_state_dict(second, after, saved[1], options=options)
        for net, optimizer in ((first, before), (second, after)):
            train(net, optimizer, range(STEPS, 2 * STEPS), rank)
        trained[f"{name}, at once"], trained[f"{name}, resumed"] = whole(first), whole(second)
    return trained


WORK: tuple[Callable[[int], Any], ...] = (fsdp, hand, ddp, refused, routed, resumed)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever the machine's name resolves to
    store = f"file://{folder}/store"
    limit = timedelta(seconds=SECONDS)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=limit)
    try:
        torch.save({do.__name__: do(rank) for do in WORK}, f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What each process returned."""
    folder = tmp_path_factory.mktemp("processes")
    processes = torch.multiprocessing.start_processes(
        work, (str(folder),), nprocs=WORLD, join=False, start_method="spawn"
    )
    try:
        end = time.monotonic() + SECONDS
        while not processes.join(1.0):  # True once all have finished; raises what one of them raised
            assert time.monotonic() < end, f"the processes did not finish within {SECONDS} s"
        yield [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(WORLD)]
    finally:
        for process in processes.processes:
            process.kill()


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_fsdp2_trains_as_one_process_does(outcomes: list[dict[str, Any]], name: str, mode: str) -> None:
    expected = alone(ELEMENTWISE[name])
    for outcome in outcomes:
        torch.testing.assert_close(outcome["fsdp"][f"{name}, {mode}"], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", BASELINES)
def test_fsdp2_trains_hand_written_optimizers_or_refuses_those_that_need_whole_matrices(
    outcomes: list[dict[str, Any]], name: str
) -> None:
    for outcome in outcomes:
        found = outcome["hand"][name]
        if BASELINES[name].program.needs_matrix:
            assert "mixes the elements of a parameter, of which a shard" in found
        else:
            torch.testing.assert_close(found, alone(BASELINES[name].optimizer), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", WHOLE)
def test_ddp_trains_as_one_process_does(outcomes: list[dict[str, Any]], name: str) -> None:
    expected = alone(WHOLE[name])
    for outcome in outcomes:
        torch.testing.assert_close(outcome["ddp"][name], expected, rtol=1e-9, atol=1e-11)
    assert_same(outcomes[0]["ddp"][name], outcomes[1]["ddp"][name])


def test_fsdp2_refuses_rules_that_mix_elements(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        assert outcome["refused"].startswith("parameter '0.weight': this program mixes the elements of a parameter")


def test_fsdp2_trains_what_is_routed_to_an_elementwise_fallback(outcomes: list[dict[str, Any]]) -> None:
    for outcome in outcomes:
        torch.testing.assert_close(outcome["routed"], alone(ADAMW), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["whole", "shards"])
def test_fsdp2_checkpoint_goes_on(outcomes: list[dict[str, Any]], kind: str) -> None:
    for outcome in outcomes:
        assert_same(outcome["resumed"][f"{kind}, resumed"], outcome["resumed"][f"{kind}, at once"])
        torch.testing.assert_close(
            outcome["resumed"][f"{kind}, resumed"], alone(ADAMW, 2 * STEPS), rtol=1e-9, atol=1e-11
        )
