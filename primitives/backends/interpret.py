"""The interpreter: the slow, obvious meaning of a program. Everything faster is tested against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from optforge.primitives.kinds import Slot
from optforge.primitives.ops import Op
from optforge.primitives.program import Program, fold


class Stepped(NamedTuple):
    """Result of one step of a rule: what to subtract after scaling by the learning rate, and the new state."""

    update: Tensor
    state: tuple[Tensor, ...]


def execute(program: Program, inputs: Mapping[str, Tensor], dims: Sequence[int] | None = None) -> Stepped:
    """One step of `program` for one parameter, or for a stack of them.

    Args:
        program: the rule.
        inputs: a tensor for every name that the program reads: signals, slots and hyperparameters. Signals of kind
            SCALAR and hyperparameters are 0-dimensional float64; they are rounded where they meet a tensor.
        dims: the dimensions that belong to one parameter; all of them by default. Leading dimensions before these
            stack independent parameters. In a stack, parameters that are single numbers need one of size 1.

    Returns:
        The update, of the parameter's shape, and the next value of each slot in order (dead slots keep theirs).
        Shapes of scalars may be broadcastable instead of exact.
    """
    g = inputs["g"]
    at = own_dims(g, range(g.ndim) if dims is None else dims)

    def leaf(value: str | float) -> Tensor:
        return inputs[value] if isinstance(value, str) else torch.tensor(value, dtype=torch.float64)

    def apply(op: Op, args: list[Tensor], index: int) -> Tensor:
        if index not in program.shared:
            args = [a.to(g.dtype) for a in args]
        return op.function(*args, dims=at)

    update, state, _ = fold(program, leaf, apply)
    return Stepped(update, tuple(s.to(g.dtype) for s in state))  # type: ignore[arg-type, attr-defined]


def own_dims(g: Tensor, dims: Sequence[int]) -> tuple[int, ...]:
    """`dims` as a tuple; `ValueError` for a stack of parameters without dimensions.

    No reduction could tell them apart: torch reduces over everything when it is given no dimensions.
    """
    if not dims and g.ndim:
        raise ValueError(f"a stack {tuple(g.shape)} of single numbers needs one dimension of size 1 for each of them")
    return tuple(dims)


def initial_slot(slot: Slot, p: Tensor, g: Tensor, lead: int = 0) -> Tensor:
    """Value of `slot` before the first step, for a parameter (or a stack with `lead` leading dimensions) `p`."""
    if isinstance(slot.init, str):
        return (p if slot.init == "p" else g).detach().clone()
    own = slot.kind.shape(p.shape[lead:])
    if slot.kind.is_square and own:
        value = slot.init * torch.eye(own[0], dtype=p.dtype, device=p.device)
        return value.reshape(own).expand(*p.shape[:lead], *own).clone()
    return torch.full((*p.shape[:lead], *own), slot.init, dtype=p.dtype, device=p.device)
