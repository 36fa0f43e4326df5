"""The interpreter: the slow, obvious meaning of a program. Everything faster is tested against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    return Stepped(update, tuple(s.to(g.dtype) for s in state))


class Simulation:
    """A program that runs step by step, for one parameter or a stack: each step's state enters the next step.

    Args:
        program: the rule, with default hyperparameters.
        dims: as for `execute`.
        step: what computes a step from its inputs and `dims`: `execute`, or something equal to it.
    """

    def __init__(
        self,
        program: Program,
        dims: Sequence[int] | None = None,
        step: Callable[..., Stepped] | None = None,
    ) -> None:
        self.program, self.dims = program, dims
        self._execute = step or (lambda inputs, dims: execute(program, inputs, dims))
        self._hypers = {name: torch.tensor(x, dtype=torch.float64) for name, x in program.defaults().items()}
        self._state: dict[str, Tensor] | None = None

    def step(self, signals: Mapping[str, Tensor]) -> Stepped:
        """The next step, given a tensor for every signal that the program reads, and `g` and `p`."""
        if self._state is None:
            p, g = signals["p"], signals["g"]
            lead = 0 if self.dims is None else p.ndim - len(self.dims)
            self._state = {s.name: initial_slot(s, p, g, lead) for s in self.program.state}
        found = self._execute({**self._hypers, **self._state, **signals}, self.dims)
        self._state = dict(zip(self._state, found.state, strict=True))
        return found

    def follow(
        self,
        p: Tensor,
        gradient: Callable[[int, Tensor], Tensor],
        steps: int,
        *,
        lr: float | Tensor,
        total: int | None = None,
        moves: bool = True,
    ) -> Iterator[tuple[Tensor, Stepped]]:
        """Train from `p`: the parameter before each step, and the step.

        Args:
            p: the parameter, or a stack of them.
            gradient: makes the gradient from the step number, 1 for the first, and the parameter.
            steps: how many steps to take.
            lr: learning rate; one that broadcasts over a stack gives each parameter its own.
            total: number of steps of which `progress` is a share; `steps` by default.
            moves: whether updates move the parameter; else it stays at `p`.
        """
        rate, reads = torch.as_tensor(lr, dtype=torch.float64), self.program.live.names
        for step in range(1, steps + 1):
            g = gradient(step, p)
            signals = {"g": g, "p": p, "lr": rate}
            if "step" in reads:
                signals["step"] = torch.tensor(step, dtype=torch.float64)
            if "progress" in reads:
                signals["progress"] = torch.tensor(step / (total or steps), dtype=torch.float64)
            if "global_norm" in reads:
                signals["global_norm"] = torch.linalg.vector_norm(g, dim=self.dims, keepdim=self.dims is not None)
            found = self.step(signals)
            yield p, found
            if moves:
                p = p - rate * found.update


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
