"""Parameters and gradients as torch has them: sharded, sparse or complex ones, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from optforge.primitives.backends.interpret import initial_slot
from optforge.primitives.kinds import Kind, ProgramError, Slot

REST = "p"
"""Key of the state for what rounding takes from a parameter; no slot can have it, because the word is a signal."""


ASIDE = "learning_"
"""How keys of the state begin that only learning hyperparameters needs; a program's own optimizer leaves them aside."""


def local(x: Tensor) -> Tensor:
    """What this process holds of a distributed tensor; any other tensor itself."""
    return x.to_local() if hasattr(x, "to_local") else x


def begin(slot: Slot, p: Tensor, dtype: torch.dtype) -> Tensor:
    """First value of `slot` in `dtype`; what has the parameter's shape is distributed like the parameter."""
    if hasattr(p, "placements") and slot.kind is Kind.TENSOR and not isinstance(slot.init, str):
        return torch.full_like(p, slot.init, dtype=dtype)
    gradient = p.grad if p.grad is None else p.grad.to(dtype)
    return initial_slot(slot, p.to(dtype), gradient)  # type: ignore[arg-type]


def placed_like(old: Tensor, value: Tensor) -> Tensor:
    """`value` as new state in place of `old`, which keeps its distribution."""
    if not hasattr(old, "to_local"):
        return value
    local(old).copy_(value)
    return old


def is_sharded(x: Tensor) -> bool:
    """Whether this process holds only some elements of `x`."""
    return any(not placement.is_replicate() for placement in getattr(x, "placements", ()))


def shards_refused(p: Tensor, rule: str) -> ProgramError:
    """The error for a shard of a parameter that a `rule` (``"this program"``) can train only as a whole."""
    return ProgramError(
        f"{rule} mixes the elements of a parameter, of which a shard of {tuple(p.shape)} has only some; shard with an "
        "elementwise program, or do not shard"
    )


def with_gradients(groups: Iterable[dict[str, Any]]) -> list[list[Tensor]]:
    """Of each parameter group what a step moves: parameters that have elements and a gradient.

    Raises:
        ProgramError: before any parameter moves, if a gradient is sparse or complex.
    """
    ready = [[p for p in group["params"] if p.grad is not None and p.numel()] for group in groups]
    for p in chain.from_iterable(ready):
        if p.grad.layout is not torch.strided or p.grad.is_complex():
            _refuse(p, p.grad)
    return ready


def _refuse(p: Tensor, g: Tensor) -> NoReturn:
    kind = "complex parameters" if g.layout is torch.strided else "sparse gradients"
    raise ProgramError(f"update rules do not define a meaning for {kind} (parameter of shape {tuple(p.shape)})")


def global_norm(gradients: Iterable[Tensor | None], wide: bool = False) -> Tensor:
    """Euclidean norm of all gradients together, 0-dimensional; 0 if there are none.

    `wide` holds norms of half precision in float32; in their own dtype they may overflow where no element does. On
    CPUs, where looking at the result waits for nothing, one that overflows all the same is taken anew in float64.
    """
    given = [g for g in gradients if g is not None]
    found = _norm(given, [torch.promote_types(g.dtype, torch.float32) if wide else None for g in given])
    if wide and found.device.type == "cpu" and not found.isfinite():
        return _norm(given, [torch.float64] * len(given))
    return found


def _norm(gradients: Sequence[Tensor], dtypes: Sequence[torch.dtype | None]) -> Tensor:
    norms = [whole(torch.linalg.vector_norm(g, dtype=dtype)) for g, dtype in zip(gradients, dtypes, strict=True)]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), dtype=torch.float32)


def whole(x: Tensor) -> Tensor:
    """A distributed tensor with all its elements; any other tensor itself."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def state_dtype(p: Tensor, chosen: torch.dtype | None) -> torch.dtype:
    """Dtype of the state and arithmetic of `p`: what was `chosen`, else that of `p`, but at least float32 for float16.

    In float16 an epsilon of 1e-8 is 0, as is the square of a gradient below 2e-4, and the quotient of both is NaN.
    """
    return chosen or (torch.float32 if p.dtype is torch.float16 else p.dtype)


def check_state_dtype(dtype: torch.dtype | None, parameters: Iterable[Tensor]) -> None:
    """`ProgramError` if arithmetic in `dtype` would round a parameter with every step, or small numbers to 0."""
    for p in parameters:
        if dtype is not None and torch.promote_types(dtype, p.dtype) != dtype:
            raise ProgramError(
                f"state_dtype {dtype} cannot hold a parameter of {p.dtype}, which every step would round; "
                f"choose {torch.promote_types(dtype, p.dtype)} or leave it out"
            )
    if dtype is torch.float16:
        raise ProgramError(
            "state_dtype torch.float16 rounds epsilon and squares of small gradients to 0, and steps become NaN; "
            "choose torch.float32 or leave it out"
        )


def load_unrounded(
    optimizer: Optimizer,
    load: Callable[[dict[str, Any]], None],
    state_dict: dict[str, Any],
    dtype: Callable[[Tensor], torch.dtype],
    check: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    """Call torch's `load`, then undo that it rounds state to the dtype of its parameter; `dtype` says what it shall be.

    `check` sees what is loaded, after the user's hooks, before anything changes. Options of groups that are not in it
    stay as they are.
    What rounding takes from a parameter is kept in ``state[REST]`` if, and only if, the two dtypes differ.
    """
    seen = [state_dict]

    def look(_: Optimizer, final: dict[str, Any]) -> None:
        check(final)
        seen.append(final)

    present = [{**group} for group in optimizer.param_groups]
    hook = optimizer.register_load_state_dict_pre_hook(look)
    try:
        load(state_dict)
    finally:
        hook.remove()
    saved = seen[-1]
    for group, before in zip(optimizer.param_groups, present, strict=True):
        for option, value in before.items():  # an older checkpoint may lack some
            group.setdefault(option, value)
    names = chain.from_iterable(g["params"] for g in saved["param_groups"])
    own = chain.from_iterable(g["params"] for g in optimizer.param_groups)
    for name, p in zip(names, own, strict=True):
        state = optimizer.state.get(p)
        if state is None:
            continue
        for key, value in saved["state"].get(name, {}).items():
            if key == "step":  # a number in old checkpoints, or a tensor too narrow to count in
                state[key] = torch.as_tensor(value, dtype=torch.float32).detach().clone()
            elif isinstance(value, Tensor):
                state[key] = value.detach().to(p.device, dtype(p), copy=True)
        if dtype(p) != p.dtype:
            state.setdefault(REST, torch.zeros_like(p, dtype=dtype(p), requires_grad=False))
        else:
            state.pop(REST, None)
