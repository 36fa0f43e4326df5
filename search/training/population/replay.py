"""Many small CUDA launches as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

R = TypeVar("R")


class Replay(Generic[R]):
    """A function of tensors that otherwise works on tensors which stay where they are.

    On CUDA its launches are recorded at the second call as a CUDA graph and from then on made all at once, which costs
    microseconds where each launch costs as much. The first call allocates, compiles and warms up. What waits for the
    device on the way cannot be recorded; it is called as it is, as everything is on other devices.

    Args:
        function: of tensors whose shapes and dtypes are always the same. Its result is overwritten by the next call.
        device: where it works.
    """

    def __init__(self, function: Callable[..., R], device: torch.device) -> None:
        self.function, self.records = function, device.type == "cuda"
        self.arguments: list[Tensor] | None = None
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *arguments: Tensor) -> R:
        """The function of `arguments`."""
        if self.arguments is None:
            self.arguments = [x.clone() for x in arguments]
            return self.function(*self.arguments)
        if arguments:
            torch._foreach_copy_(self.arguments, arguments)
        if self.graph is None and self.records:
            self._record()
        if self.graph is None:
            return self.function(*self.arguments)
        self.graph.replay()
        return self.result

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.result = self.function(*self.arguments or ())
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # of CUDA, about whatever cannot be recorded
            self.records = False
        else:
            self.graph = graph
