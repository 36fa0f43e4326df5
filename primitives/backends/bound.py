"""What compiled kernels have in common: parameters bound to one, and how it is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import is_
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from optforge.primitives.program import Program

if TYPE_CHECKING:
    from optforge.primitives.backends.numbers import Numbers


class Bound:
    """A parameter with its state, as long as these stay the tensors that they are.

    Args:
        kernel: what trains them.
        p: the parameter.
        local: this process's shard of it, if it is sharded; else the same.
        state: its state, of which the kernel writes `names`.

    Attributes:
        flat: contiguous tensors that the kernel works on, parameter first; made by `Kernel.bind`.
        copies: pairs of a tensor that is not contiguous and the one of `flat` that stands for it.
    """

    flat: list[Tensor]
    copies: list[tuple[Tensor, Tensor]]

    def __init__(
        self, kernel: Kernel, p: Tensor, local: Tensor, state: Mapping[str, Tensor], names: Sequence[str]
    ) -> None:
        self.kernel, self.p, self.state, self.names = kernel, p, state, ("step", *names)
        self.size = local.numel()
        self.shape, self.dtype, self.device = local.shape, local.dtype, local.device
        self.held = [state[name] for name in self.names]
        self.tensors = [local.detach(), *(x.to_local() if hasattr(x, "to_local") else x for x in self.held[1:])]
        self._layout = (p.data_ptr(), p.stride(), [x.data_ptr() for x in self.held])
        self._counter = memoryview(state["step"].view(1).numpy())  # type: ignore[arg-type]

    def holds(self, p: Tensor, state: Mapping[str, Tensor] | None) -> bool:
        """Whether parameter and state are still the tensors that were bound, and where they were."""
        same = p is self.p and state is self.state and all(map(is_, map(self.state.get, self.names), self.held))
        return same and (p.data_ptr(), p.stride(), list(map(Tensor.data_ptr, self.held))) == self._layout

    def advance(self) -> float:
        """Count one more step; returns its number."""
        self._counter[0] += 1
        return self._counter[0]


class Kernel(Protocol):
    """A compiled program."""

    program: Program

    def bind(self, p: Tensor, local: Tensor, state: Mapping[str, Tensor], names: Sequence[str]) -> Bound:
        """A parameter of this kernel."""
        ...

    def run(self, bound: Sequence[Bound], gradients: Sequence[Tensor], numbers: Numbers, sign: int) -> None:
        """One step in place of parameters at the same step; gradients are multiplied by `sign`."""
        ...
