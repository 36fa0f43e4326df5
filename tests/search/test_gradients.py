"""Gradients of stacked members are those that autograd finds for each alone, whatever the blocks."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support.evaluators import SMALL
from torch import Tensor, nn

from optforge.search.training import Task
from optforge.search.training.population import gradients as gradients_module
from optforge.search.training.population.gradients import (
    CACHE_BYTES,
    Gradients,
    Like,
    activation_bytes,
    fitting_block,
    graph,
    views,
)
from optforge.search.training.task import initial_model

SEEDS, MEMBERS = 2, 5


class Tangled(nn.Module):
    """Has a parameter without dimensions, and asks for a value, which no recorded graph can answer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(64, 10), nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (self.scale if float(x.abs().sum()) > 0 else 0.0)


TANGLED = dataclasses.replace(SMALL, model=Tangled)


def setting(task: Task) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    elements = sum(p.numel() for p in initial_model(task, 0).parameters())
    arena = torch.randn(SEEDS, MEMBERS, elements, generator=generator, dtype=torch.float64) / 3
    inputs, targets = task.data().train.batch(torch.arange(SEEDS * 16).view(SEEDS, 16))
    return arena, inputs.double(), targets


def expected(task: Task, arena: Tensor, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    losses, gradients = torch.zeros(arena.shape[:2], dtype=arena.dtype), torch.zeros_like(arena)
    model = initial_model(task, 3).double()
    for seed in range(SEEDS):
        for member in range(arena.shape[1]):
            nn.utils.vector_to_parameters(arena[seed, member], model.parameters())
            loss = task.loss(model(inputs[seed]), targets[seed])
            found = torch.autograd.grad(loss, list(model.parameters()))
            losses[seed, member], gradients[seed, member] = loss, nn.utils.parameters_to_vector(found)
    return losses.detach(), gradients


def check(task: Task, gradients: Gradients) -> None:
    arena, inputs, targets = setting(task)
    buffer = torch.full_like(arena, torch.nan)
    losses = gradients(arena, inputs, targets, buffer)
    wanted = expected(task, arena, inputs, targets)
    torch.testing.assert_close((losses, buffer), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("block", [1, 2, 3, 5, 100, None])
def test_any_block_gives_what_autograd_gives(block: int | None) -> None:
    check(SMALL, Gradients(SMALL, block=block))


@pytest.mark.parametrize(("members", "block"), [(19, 16), (37, 30), (20, 7), (9, 9), (33, 17)])
def test_blocks_that_overlap_count_every_member_once(members: int, block: int) -> None:
    arena, inputs, targets = setting(SMALL)
    arena = arena.repeat(1, -(-members // MEMBERS), 1)[:, :members] * torch.linspace(0.5, 1.5, members)[:, None]
    buffer = torch.full_like(arena, torch.nan)
    losses = Gradients(SMALL, block=block)(arena.double(), inputs, targets, buffer)
    torch.testing.assert_close((losses, buffer), expected(SMALL, arena, inputs, targets), rtol=1e-12, atol=1e-14)


def test_replayed_gradients_follow_inputs_weights_and_arena() -> None:
    gradients = Gradients(SMALL, block=2)
    gradients.replays = True  # as on CUDA
    arena, inputs, targets = setting(SMALL)
    for _ in range(2):
        buffer = torch.full_like(arena, torch.nan)
        kept = []
        for change in range(3):
            kept.append(gradients(arena, inputs, targets, buffer))
            torch.testing.assert_close(
                (kept[-1], buffer), expected(SMALL, arena, inputs, targets), rtol=1e-12, atol=1e-14
            )
            inputs, targets = inputs + change, (targets + 1) % 10
            arena.mul_(1.1)
        assert len({float(x.sum()) for x in kept}) == 3  # none was overwritten
        arena = arena[:, :3].clone()  # another arena, with fewer members


def test_a_model_that_cannot_be_recorded_is_run_as_it_is() -> None:
    check(TANGLED, Gradients(TANGLED, block=1))
    like = Like((16, 64), torch.float64), Like((16,), torch.int64)
    kinds = [type(graph(t, 1, *like, torch.float64, torch.device("cpu"), "float32")) for t in (SMALL, TANGLED)]
    assert [issubclass(kind, nn.Module) for kind in kinds] == [True, False]


def test_blocks_are_halved_until_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def small_memory(task: Task, members: int, *rest: object) -> object:
        asked.append(members)
        if members > 1:
            error: Exception = torch.OutOfMemoryError() if members == 5 else MemoryError()
            if members == 3:  # what torch says of a CPU
                error = RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory")
            raise error
        return graph(task, members, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(gradients_module, "graph", small_memory)
    gradients = Gradients(SMALL, block=100)
    check(SMALL, gradients)
    assert gradients.block == 1
    assert asked[:3] == [5, 3, 2]  # 5 is what there is; halves of it are 3 and 2, of these 2 and 1


def test_without_room_for_one_member_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr(gradients_module, "graph", no_memory)
    with pytest.raises(MemoryError):
        check(SMALL, Gradients(SMALL))


def test_blocks_fit_the_cache() -> None:
    def room(width: int) -> tuple[int, int]:
        task = dataclasses.replace(SMALL, model=lambda: nn.Sequential(nn.Linear(64, width), nn.Linear(width, 10)))
        like = Like((16, 64), torch.float32), Like((16,), torch.int64)
        kept = activation_bytes(task, *like, torch.float32)
        # the input, what the layers give, the second layer's weights, log-probabilities, targets and the like
        assert 0 <= kept - 4 * (16 * 64 + 16 * width + 10 * width + 16 * 10) <= 1000
        return fitting_block(task, *like, torch.float32, torch.device("cpu")), kept

    for width in (8, 512):
        block, kept = room(width)
        assert block * kept <= CACHE_BYTES < (block + 1) * kept
    assert room(100_000)[0] == 1


def test_bf16_rounds_and_tf32_does_not_on_a_cpu() -> None:
    arena, inputs, targets = (x.float() if x.is_floating_point() else x for x in setting(SMALL))
    found = {}
    for precision in ("float32", "tf32", "bf16"):
        buffer = torch.empty_like(arena)
        losses = Gradients(SMALL, precision)(arena, inputs, targets, buffer)
        assert losses.dtype is buffer.dtype is torch.float32
        found[precision] = buffer
    assert torch.equal(found["float32"], found["tf32"])
    error = (found["bf16"] - found["float32"]).norm() / found["float32"].norm()
    assert 2**-12 < error < 2**-5  # bfloat16 has 8 bits


def test_unknown_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match="tf32"):
        Gradients(SMALL, "fp8")


def test_views_are_views() -> None:
    arena = torch.arange(7.0).view(1, 7).clone()
    first, second = views(arena, [torch.Size((3, 2)), torch.Size(())])
    second.fill_(-1)
    assert first.shape == (1, 3, 2) and arena[0, 6] == -1
