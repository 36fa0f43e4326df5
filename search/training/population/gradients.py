"""Losses and gradients of many members at once, as graphs of plain torch calls.

Taking gradients of a vmapped loss costs Python and autograd a few milliseconds of bookkeeping that is the same at every
step. It is done once: the calls that it ends in are recorded, and from then on only they are made.

Members go through in blocks. Small models gain from a large block: one call serves all members. Of models whose
activations alone fill the cache, each block holds one: stacked, they would only drive each other out of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from optforge.search.training import Task
from optforge.search.training.loop import as_dtype
from optforge.search.training.population.replay import Replay
from optforge.search.training.task import initial_model, trainable

CACHE_BYTES = 4 << 20  # activations of a block on a CPU; measured: 2 to 5 MB are equally fast, 15 MB are not
DEVICE_SHARE = 0.3  # of a GPU's free memory, for the activations of a block
GRAIN = 8  # members
PRECISIONS = ("float32", "tf32", "bf16")

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten.expand.default, torch.ops.aten._unsafe_view.default)


class Like(NamedTuple):
    """What a graph depends on of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, x: Tensor) -> Like:
        """Shape and dtype of `x`."""
        return cls(tuple(x.shape), x.dtype)


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. torch has no class for that on CPUs, only words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


class _Recorded(NamedTuple):
    """What was recorded, and where it reads and writes."""

    arena: Tensor
    gradient: Tensor
    like: tuple[Like, Like]
    replay: Replay[Tensor]


class Gradients:
    """Losses and gradients of all members of an arena ``[seeds, members, elements]``.

    Args:
        task: what is trained.
        precision: of forward and backward pass: "float32" (that is, the arena's own), "bf16" (autocast), or "tf32",
            which on CUDA rounds the factors of matrix products to 10 bits and elsewhere changes nothing.
        block: most members in one call; by default what `fitting_block` finds.

    Attributes:
        replays: whether all launches of a call become one (see `search.training.population.replay`); if None, on CUDA.
    """

    def __init__(self, task: Task, precision: str = "float32", block: int | None = None) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
        self.task, self.precision, self.block = task, precision, block
        self.replays: bool | None = None
        self._recorded: _Recorded | None = None

    def __call__(self, arena: Tensor, inputs: Tensor, targets: Tensor, gradient: Tensor) -> Tensor:
        """Write all gradients into `gradient`, which is like the arena, and return the losses ``[seeds, members]``.

        Inputs are ``[seeds, batch, …]``. When memory runs out, blocks become half as large and the work is done anew.
        """
        if self.block is None:
            self.block = fitting_block(self.task, Like.of(inputs[0]), Like.of(targets[0]), arena.dtype, arena.device)
        replays = arena.device.type == "cuda" if self.replays is None else self.replays
        run = self._replay if replays else self._run
        while True:
            try:
                return run(arena, inputs, targets, gradient, min(self.block, arena.shape[1]))
            except (RuntimeError, MemoryError) as error:
                self._recorded = None
                if self.block == 1 or not out_of_memory(error):
                    raise
                self.block = (min(self.block, arena.shape[1]) + 1) // 2

    def _replay(self, arena: Tensor, inputs: Tensor, targets: Tensor, gradient: Tensor, block: int) -> Tensor:
        """The same, recorded anew for every other arena, which is then always where it was."""
        kept, like = self._recorded, (Like.of(inputs), Like.of(targets))
        if kept is None or kept.arena is not arena or kept.gradient is not gradient or kept.like != like:
            replay = Replay(lambda x, y: self._run(arena, x, y, gradient, block), arena.device)
            kept = self._recorded = _Recorded(arena, gradient, like, replay)
        return kept.replay(inputs, targets).clone()

    @torch.no_grad()
    def _run(self, arena: Tensor, inputs: Tensor, targets: Tensor, gradient: Tensor, block: int) -> Tensor:
        losses = arena.new_empty(arena.shape[:2])
        for seed, (x, y) in enumerate(zip(inputs, targets, strict=True)):
            for rows, size in slices(arena.shape[1], block):
                function = graph(self.task, size, Like.of(x), Like.of(y), arena.dtype, arena.device, self.precision)
                losses[seed, rows], *found = function(arena[seed, rows], x, y)
                torch.cat([g.reshape(size, -1) for g in found], dim=-1, out=gradient[seed, rows])
        return losses


def slices(members: int, block: int) -> list[tuple[slice, int]]:
    """Blocks of one size that cover all members, each with that size; the last may overlap the one before it.

    Several blocks have a multiple of `GRAIN` members where there is room for it: each size has a graph of its own,
    which takes up to a second to record.
    """
    count = -(-members // block)
    size = -(-members // count)
    if count > 1 and (rounded := -(-size // GRAIN) * GRAIN) <= block:
        size = rounded
    return [(slice(first, first + size), size) for first in (*range(0, members - size, size), members - size)]


@lru_cache(maxsize=256)
def fitting_block(task: Task, inputs: Like, targets: Like, dtype: torch.dtype, device: torch.device) -> int:
    """How many members' activations fit into the cache of a CPU, or into part of a GPU's free memory."""
    room = CACHE_BYTES
    if device.type == "cuda":
        room = int(DEVICE_SHARE * torch.cuda.mem_get_info(device)[0])
    return max(1, room // activation_bytes(task, inputs, targets, dtype))


@lru_cache(maxsize=256)
def activation_bytes(task: Task, inputs: Like, targets: Like, dtype: torch.dtype) -> int:
    """Bytes that the forward pass of one member keeps for the backward pass, parameters included; measured."""
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    model = initial_model(task, 0).to(dtype)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = task.loss(model(_zeros(inputs)), _zeros(targets))  # alive until counted: addresses must not be reused
        assert loss.ndim == 0
    return max(1, sum(kept.values()))


@lru_cache(maxsize=128)
def graph(
    task: Task,
    members: int,
    inputs: Like,
    targets: Like,
    dtype: torch.dtype,
    device: torch.device,
    precision: str,
) -> Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]:
    """The function from arena ``[members, elements]``, inputs and targets of one seed to losses and gradients.

    The gradients are as many as the model has parameters that require them, each ``[members, *shape]``. A model that
    cannot be recorded (see `torch.fx.experimental.proxy_tensor.make_fx`), or does something else with other inputs, is
    run as it is.
    """
    gradients = unrecorded(task, members, dtype, device, precision)
    arena = _flat(initial_model(task, 0).to(device, dtype)).repeat(members, 1)
    try:
        recorded = make_fx(gradients)(arena, _zeros(inputs, device), _zeros(targets, device))
        recorded = _without_idle_calls(recorded)
        examples = _examples(task, inputs.shape[0], inputs, targets, device)
        if _alike(recorded(arena, *examples), gradients(arena, *examples)):
            return recorded
    except Exception as error:  # whatever a model does that cannot be recorded
        if out_of_memory(error):
            raise
    return gradients


def unrecorded(
    task: Task, members: int, dtype: torch.dtype, device: torch.device, precision: str = "float32"
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """What `graph` records."""
    model = initial_model(task, 0).to(device, dtype)
    names = list(trainable(model))
    shapes = [p.shape for p in trainable(model).values()]

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return task.loss(functional_call(model, parameters, (x,)), y)

    def gradients(arena: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            pieces = [p.detach().requires_grad_() for p in views(arena, shapes)]
            if members == 1:  # vmap would give up kernels that know no batches, for nothing
                losses = loss(dict(zip(names, (p[0] for p in pieces), strict=True)), x, y)[None]
            else:
                losses = vmap(loss, in_dims=(0, None, None))(dict(zip(names, pieces, strict=True)), x, y)
            found = torch.autograd.grad(losses.sum(), pieces, materialize_grads=True)  # some may have no part in it
            return losses.detach(), *found

    return gradients


@lru_cache(maxsize=64)
def cannot_be_stacked(task: Task) -> str:
    """Why members cannot be trained as one on `task`, in words; empty if they can.

    Found out once, by two members on two examples: stacked, they must have the losses and gradients that they have one
    at a time. What is not trained must be the same for all seeds.
    """
    models = [initial_model(task, seed) for seed in (0, 1)]
    others = [[x for name, x in m.state_dict(keep_vars=True).items() if not x.requires_grad] for m in models]
    if not all(map(torch.equal, *others)):
        return "what its model does not train differs between seeds"
    cpu, dtype = torch.device("cpu"), torch.float32
    arena = torch.stack([_flat(m.to(dtype)) for m in models])
    try:
        first, second = task.data().train.batch(torch.arange(min(2, len(task.data().train))))
        examples = _examples(task, len(first), Like.of(as_dtype(first, dtype)), Like.of(second), cpu)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            stacked = unrecorded(task, 2, dtype, cpu)(arena, *examples)
            alone = [unrecorded(task, 1, dtype, cpu)(member, *examples) for member in arena.split(1)]
    except Exception as error:  # whatever a model does that vmap does not
        if out_of_memory(error):
            raise
        said = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {said[0][:200]}"
    same = _alike(stacked, [torch.cat(pair) for pair in zip(*alone, strict=True)])
    return "" if same else "stacked, members have other losses or gradients than one at a time"


def _alike(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Whether these are the same up to rounding."""
    return all(torch.allclose(x, y, 1e-3, 1e-5, equal_nan=True) for x, y in zip(found, expected, strict=True))


def _examples(task: Task, count: int, inputs: Like, targets: Like, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of `count` examples."""
    train = task.data().train
    x, y = train.batch(torch.arange(count) % len(train))
    return x.to(device, inputs.dtype), y.to(device, targets.dtype)


def _flat(model: nn.Module) -> Tensor:
    """What of a model is trained, as one vector."""
    return nn.utils.parameters_to_vector(trainable(model).values()).detach()


def views(arena: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """A model's parameters ``[…, *shape]`` as views of an arena ``[…, elements]``."""
    pieces = arena.split([s.numel() for s in shapes], dim=-1)
    return [x.unflatten(-1, s) if s else x[..., 0] for x, s in zip(pieces, shapes, strict=True)]


def _zeros(like: Like, device: torch.device | None = None) -> Tensor:
    return torch.zeros(like.shape, dtype=like.dtype, device=device)


def _without_idle_calls(module: fx.GraphModule) -> fx.GraphModule:
    """Take out the calls that return what they get: without autograd they say nothing."""
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        before, after = (n.meta.get("tensor_meta") for n in (node.args[0], node))
        same = before and after and (before.shape, before.stride) == (after.shape, after.stride)
        if node.target is torch.ops.aten.detach.default or (node.target in _VIEWS and same):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module
