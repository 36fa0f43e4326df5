"""Steps compiled with `torch.compile`: one kernel per program, called for each parameter.

A kernel sees a parameter as a vector (or, if the program needs rows and columns, as a matrix) of any size, so that one
compilation serves a whole model: about a second, where a graph over all tensors of a model takes half a minute.
Learning rate, step number and all that follows from them enter as one small tensor; no value of theirs recompiles
anything. Everything is written in place: what is elementwise needs no memory beyond its inputs.

The first call for a shape goes through torch's guards. What they decided holds for every later call with that shape,
which therefore goes to the compiled code at once: 2 µs instead of 26, of which a model's small tensors take notice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import is_
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from primitives.program import Program
from primitives.source import hoist

SMALL = 1 << 14  # with fewer elements, waking other threads takes longer than the work

Code = Callable[[list[Any]], object]


class Direct(NamedTuple):
    """Compiled code and its arguments: a tensor's position (True, i), or a size (False, n)."""

    code: Code
    arguments: tuple[tuple[bool, Any], ...]


class Kernel:
    """The compiled step of a program for parameters and state of given dtypes on one device; made by `kernel`.

    Args:
        program: the rule.
        keeps_rest: whether what rounding to the parameter's dtype loses is kept in a tensor of its own.
        threads: how many share the work on a CPU.
        sides: see `primitives.source.HoistedStep`.
    """

    def __init__(
        self, program: Program, keeps_rest: bool, threads: int, sides: tuple[tuple[int, bool], ...] = ()
    ) -> None:
        self.matrix, self.threads = program.needs_matrix, threads
        self._direct: dict[tuple[int, ...], Direct] = {}
        self._seen: tuple[list[Any], Code] | None = None
        self._compiled = torch.compile(
            _in_place(program, keeps_rest, sides), dynamic=True, fullgraph=True, backend=self._backend
        )

    def view(self, x: Tensor) -> Tensor:
        """`x` in the shape that the kernel wants, contiguous: a view if `x` is, else a copy."""
        return x.contiguous().view(x.shape[0], -1) if self.matrix else x.ravel()

    def direct(self, tensors: Sequence[Tensor]) -> Direct | None:
        """How to make the call with `tensors` once the shape of their parameter, the second, is known."""
        return self._direct.get(tensors[1].shape)

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        """One step in place; `tensors`: numbers, parameter, gradient, live slots and the rest, in `view`'s shape."""
        bare = [_without_base(t) for t in tensors]
        torch._dynamo.mark_static(bare[0])
        self._seen = None
        self._compiled(*bare)
        if self._seen is not None:
            arguments, code = self._seen
            self._seen = None
            known = [_find(a, bare) if isinstance(a, Tensor) else a for a in arguments]
            where = [isinstance(a, Tensor) for a in arguments]
            if None not in known:  # else torch made tensors of its own from ours
                self._direct[tensors[1].shape] = Direct(code, tuple(zip(where, known, strict=True)))

    def _backend(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """TorchInductor, with a note of the compiled code that each call ends up in."""
        from torch._dynamo.backends.common import aot_autograd
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx_inner
        from torch._inductor.decomposition import select_decomp_table

        def inner(lowered: torch.fx.GraphModule, example: Sequence[Any]) -> Callable[[list[Any]], object]:
            options: dict[str, Any] = {
                "emulate_precision_casts": True,  # rounding to bfloat16 means it
                "size_asserts": False,  # `view` has seen to it
                "alignment_asserts": False,
                "cpp.threads": self.threads,
            }
            with config.patch(options):
                compiled = compile_fx_inner(lowered, example)
            code = getattr(compiled, "current_callable", None) or compiled

            def noted(arguments: list[Any]) -> object:
                self._seen = (list(arguments), code)
                return compiled(arguments)

            noted._boxed_call = True  # type: ignore[attr-defined]
            return noted

        make = aot_autograd(
            fw_compiler=inner,
            inference_compiler=inner,
            decompositions=select_decomp_table(),
            keep_inference_input_mutations=True,
        )
        return make(graph, inputs)


class Bound:
    """A kernel with the tensors of one parameter, as long as these stay what they are.

    Args:
        compiled: what to call.
        p: the parameter.
        local: this process's shard of it, if it is sharded; else the same.
        state: its state, of which the kernel writes `names`.
    """

    def __init__(
        self, compiled: Kernel, p: Tensor, local: Tensor, state: Mapping[str, Tensor], names: Sequence[str]
    ) -> None:
        self.kernel, self.p, self.names, self.device = compiled, p, names, local.device
        self.pointer = p.data_ptr()  # no other tensor has it while `tensors` lives
        self.held = [state[name] for name in names]
        self.tensors = [local.detach(), *(x.to_local() if hasattr(x, "to_local") else x for x in self.held)]
        self.flat = [compiled.view(x) for x in self.tensors]
        self.copies = [(x, f) for x, f in zip(self.tensors, self.flat, strict=True) if not x.is_contiguous()]
        self.dtype = local.dtype
        self._template: tuple[Code, list[Any], int, int] | None = None

    def holds(self, p: Tensor, state: Mapping[str, Tensor]) -> bool:
        """Whether parameter and state are still the tensors that were bound."""
        same = p is self.p and p.data_ptr() == self.pointer
        return same and all(map(is_, map(state.get, self.names), self.held))

    def call(self, numbers: Tensor, g: Tensor) -> tuple[Code, list[Any]]:
        """What to call, with what, for one step in place."""
        if self._template is None or g.dtype != self.dtype:
            return self._first, [numbers, g]
        code, template, first, second = self._template
        arguments = template.copy()
        arguments[first], arguments[second] = numbers, self.kernel.view(g)
        return code, arguments

    def _first(self, arguments: list[Any]) -> None:
        """A call that may compile. What is no view of its tensor is copied there and back."""
        numbers, g = arguments
        for x, flat in self.copies:
            flat.copy_(x.reshape(flat.shape))
        tensors = [numbers, self.flat[0], self.kernel.view(g.to(self.dtype)), *self.flat[1:]]
        direct = self.kernel.direct(tensors)
        if direct is None:
            self.kernel(tensors)
        else:
            direct.code([tensors[a] if is_tensor else a for is_tensor, a in direct.arguments])
            known = direct.arguments
            if not self.copies and known.count((True, 0)) == known.count((True, 2)) == 1:
                template = [self.flat[max(0, a - 2)] if is_tensor else a for is_tensor, a in known]
                self._template = (direct.code, template, known.index((True, 0)), known.index((True, 2)))
                template[self._template[2]] = template[self._template[3]] = None
        for x, flat in self.copies:
            x.copy_(flat.view(x.shape))


def _in_place(program: Program, keeps_rest: bool, sides: tuple[tuple[int, bool], ...]) -> Callable[..., None]:
    """The step as a function of tensors that writes parameter and state in place."""
    hoisted = hoist(program, sides)
    live = [s.name for s in program.live_state]
    passed = {s.name: None for s in program.state if s.name not in live}
    position = {s.name: i for i, s in enumerate(program.state)}

    def step(numbers: Tensor, p: Tensor, g: Tensor, *state: Tensor) -> None:
        dtype = state[-1].dtype if keeps_rest else p.dtype
        whole = p.to(dtype) + state[-1] if keeps_rest else p
        inputs = {**passed, "g": g.to(dtype), "p": whole, **dict(zip(live, state, strict=False))}
        *known, lr = numbers.unbind()
        update, following = hoisted(inputs, [n.to(dtype) for n in known], range(p.ndim))
        new = [following[position[name]].clone() for name in live]  # none may change before all are read
        if keeps_rest:
            whole = whole - lr * update
            p.copy_(whole)
            state[-1].copy_(whole - p.to(dtype))
        else:
            p.sub_((lr * update).to(dtype))
        for slot, value in zip(state, new, strict=False):
            slot.copy_(value)

    # torch counts recompilations per code object: each kernel needs one of its own
    return FunctionType(step.__code__.replace(co_name="optforge_step"), step.__globals__, None, None, step.__closure__)


@lru_cache(maxsize=256)
def kernel(
    program: Program,
    dtype: torch.dtype,
    state_dtype: torch.dtype,
    device: torch.device,
    threads: int,
    sides: tuple[tuple[int, bool], ...],
) -> Kernel:
    """The kernel for parameters of `dtype` on `device` whose state has `state_dtype`."""
    return Kernel(program, dtype != state_dtype, threads, sides)


def _find(x: Tensor, among: Sequence[Tensor]) -> int | None:
    return next((i for i, t in enumerate(among) if t is x), None)


def _without_base(x: Tensor) -> Tensor:
    """`x` as no view of anything: the shape of what it is a view of would be guarded, too."""
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(
        x.untyped_storage(), x.storage_offset(), x.shape, x.stride()
    )


__all__ = ["SMALL", "Bound", "Kernel", "kernel"]
