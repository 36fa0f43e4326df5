"""Many small CUDA launches as one."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Replay:
    """A function of no arguments that works in place on tensors that stay where they are.

    On CUDA its launches are recorded at the second call as a CUDA graph and from then on made all at once, which costs
    microseconds where each launch costs as much. The first call allocates, compiles and warms up. On other devices it
    is called as it is.
    """

    def __init__(self, function: Callable[[], None], device: torch.device) -> None:
        self.function, self.device, self.calls = function, device, 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do what the function does."""
        self.calls += 1
        if self.device.type != "cuda" or self.calls == 1:
            self.function()
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.function()
        self.graph.replay()
