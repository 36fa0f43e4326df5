"""Steps compiled with `torch.compile`, for what `backends.native` does not do: other devices, matrices, 16 bits.

A kernel sees a parameter as a vector (or, if the program needs rows and columns, as a matrix) of any size, so that one
compilation serves a whole model. Learning rate, step number and all that follows from them enter as one small tensor;
no value of theirs recompiles anything. Which conditions are true (see `primitives.lazy`) is compiled in: a rule that is
refreshed every k steps has two steps, one with what is due and one without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import FunctionType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from optforge.primitives import linalg
from optforge.primitives.backends.bound import Bound
from optforge.primitives.backends.source import HoistedStep
from optforge.primitives.program import Program

if TYPE_CHECKING:
    from optforge.primitives.backends.numbers import Numbers


class InductorKernel:
    """The compiled step of a program for parameters of dtype `held` whose state and arithmetic have `dtype`."""

    def __init__(self, program: Program, dtype: torch.dtype, held: torch.dtype) -> None:
        self.program, self.dtype = program, dtype
        self.moved = _moved(program)
        options: dict[str, Any] = {"emulate_precision_casts": True}  # rounding to bfloat16 means it
        self._step = torch.compile(_in_place(program, dtype != held), dynamic=True, fullgraph=True, options=options)

    def bind(self, p: Tensor, local: Tensor, state: Mapping[str, Tensor], names: Sequence[str]) -> Bound:
        """A parameter in the shape that the kernel wants: views where memory allows, else copies."""
        bound = Bound(self, p, local, state, names)
        bound.flat = [self._view(x) for x in bound.tensors]
        bound.copies = [(x, f) for x, f in zip(bound.tensors, bound.flat, strict=True) if not x.is_contiguous()]
        return bound

    def run(self, bound: Sequence[Bound], gradients: Sequence[Tensor], numbers: Numbers, sign: int) -> None:
        """One step in place of parameters at the same step; gradients are multiplied by `sign`."""
        values: dict[torch.device, Tensor] = {}
        for b, g in zip(bound, gradients, strict=True):
            if b.device not in values:
                values[b.device] = numbers.packed(self.dtype, b.device, sign)
                torch._dynamo.mark_static(values[b.device])
            for x, flat in b.copies:
                flat.copy_(x.reshape(flat.shape))
            moved = [(b.flat[1 + new], b.flat[1 + old].clone()) for new, old in self.moved.items()]
            self._step(
                numbers.due, values[b.device], *map(_without_base, (b.flat[0], self._view(g.to(b.dtype)), *b.flat[1:]))
            )
            for slot, value in moved:
                slot.copy_(value)
            for x, flat in b.copies:
                x.copy_(flat.view(x.shape))

    def _view(self, x: Tensor) -> Tensor:
        return x.contiguous().view(x.shape[0], -1) if self.program.needs_matrix else x.ravel()


def _moved(program: Program) -> dict[int, int]:
    """Of live slots that become what another one was: its number, and the other one's.

    torch.compile may drop a copy of what it overwrites later in the same graph, so these are moved outside of it.
    """
    live = [s.name for s in program.live_state]
    pairs = zip(program.state, program.next_state, strict=True)
    return {live.index(s.name): live.index(str(a)) for s, a in pairs if s.name in live and a in live and a != s.name}


def _in_place(program: Program, keeps_rest: bool) -> Callable[..., None]:
    """The step as a function of tensors that writes parameter and state in place."""
    hoisted = HoistedStep(program, extra={"linalg": _routines()})
    live = [s.name for s in program.live_state]
    passed = {s.name: None for s in program.state if s.name not in live}
    position = {s.name: i for i, s in enumerate(program.state)}
    moved = _moved(program)

    def step(due: tuple[bool, ...], numbers: Tensor, p: Tensor, g: Tensor, *state: Tensor) -> None:
        dtype = state[-1].dtype if keeps_rest else p.dtype
        whole = p.to(dtype) + state[-1] if keeps_rest else p
        *known, lr, sign = numbers.unbind()
        inputs = {**passed, "g": g.to(dtype) * sign, "p": whole, **dict(zip(live, state, strict=False))}
        update, following = hoisted(inputs, known, range(p.ndim), due)
        # none may change before all are read
        new = {i: following[position[name]].clone() for i, name in enumerate(live) if i not in moved}
        if keeps_rest:
            whole = whole - lr * update
            p.copy_(whole)
            state[-1].copy_(whole - p.to(dtype))
        else:
            p.sub_((lr * update).to(dtype))
        for i, value in new.items():
            state[i].copy_(value)

    # torch counts recompilations per code object: each kernel needs one of its own
    return FunctionType(step.__code__.replace(co_name="optforge_step"), step.__globals__, None, None, step.__closure__)


_ITERATIONS = {
    "inverse_root": "(Tensor a, Tensor b, int p, int[] dims)",
    "basis": "(Tensor a, Tensor b, Tensor c, int[] dims)",
}


@cache
def _routines() -> SimpleNamespace:
    """`primitives.linalg`, of which iterations are called, where torch.compile would write them out round by round."""
    found = dict(vars(linalg))
    for name, arguments in _ITERATIONS.items():
        found[name] = _called(name, found[name], f"{arguments} -> Tensor")
    return SimpleNamespace(**found)


def _called(name: str, routine: Callable[..., Tensor], schema: str) -> Any:
    def run(*args: Any) -> Tensor:
        return routine(*args).contiguous()

    op = torch.library.custom_op(f"optforge::{name}", run, mutates_args=(), schema=schema)
    op.register_fake(lambda a, *_: a.new_empty(a.shape))
    return op


def _without_base(x: Tensor) -> Tensor:
    """`x` as no view of anything: the shape of what it is a view of would be guarded, too."""
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        x.untyped_storage(), x.storage_offset(), x.shape, x.stride()
    )
