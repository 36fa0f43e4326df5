"""One row per baseline: its name, both of its forms, where it comes from, and where its learning rate lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch.optim.optimizer import Optimizer

from baselines import adafactor, adamw, lion
from baselines.raw import lion_raw
from primitives import Program


@dataclass(frozen=True)
class Baseline:
    """A hand-written optimizer and its program; each is the oracle of the other.

    `lr_range` is where its best learning rate usually lies for networks trained from scratch.
    """

    name: str
    optimizer: type[Optimizer]
    build: Callable[[], Program]
    paper: str
    lr_range: tuple[float, float]

    @cached_property
    def program(self) -> Program:
        """The rule in the primitive language, with the paper's default hyperparameters."""
        return self.build()


BASELINES: dict[str, Baseline] = {
    row.name: row
    for row in (
        Baseline("adamw", adamw.AdamW, adamw.program, "Loshchilov & Hutter 2019, arXiv:1711.05101", (3e-4, 1e-2)),
        Baseline(
            "adafactor", adafactor.AdaFactor, adafactor.program, "Shazeer & Stern 2018, arXiv:1804.04235", (1e-2, 1e-1)
        ),
        Baseline("lion", lion.Lion, lion.program, "Chen et al. 2023, arXiv:2302.06675", (3e-5, 1e-3)),
    )
}

NAMED: dict[str, Callable[[], Program]] = {
    "lion-raw": lion_raw,
    "lion-raw-ablated": lambda: lion_raw(ablated=True),
}
"""Programs that go by a name but have no hand-written twin."""
