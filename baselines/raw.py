"""Lion as evolution found it, before anyone simplified it: Chen et al. 2023, program 4 and section 2.4."""

from __future__ import annotations

from optforge.baselines.row import NamedProgram
from optforge.primitives import Builder, Program


def lion_raw(*, ablated: bool = False) -> Program:
    """Lion as evolution found it, with statements that have no effect and constants in place of hyperparameters.

    `ablated` leaves out the two statements that training shows to have no effect (clip and arcsin).
    The paper's programs return the step including the learning rate, which they read as a schedule between 0 and 1
    and multiply by 0.0002; here the engine multiplies by `lr`, so that factor stays in the update.
    """
    b = Builder()
    m, v = b.slot("m"), b.slot("v")
    g = b.g if ablated else b.arcsin(b.clip(b.g, b.lr))
    average = b.lerp(g, v, 0.899)
    squared = average * average
    v.next = b.lerp(g, average, 1.109)
    update = average / b.sqrt(squared) + b.p * 0.4602
    m.next = b.cosh(update)
    return b.build(update * 0.0002)


def lion_raw_ablated() -> Program:
    """The raw find without the two statements whose removal does not change how it trains: clip and arcsin."""
    return lion_raw(ablated=True)


ROWS = (
    NamedProgram(
        name="lion-raw",
        build=lion_raw,
        paper="Chen et al. 2023, arXiv:2302.06675, program 4",
        when="Not for training: to see what evolution's find looked like before anyone simplified it.",
    ),
    NamedProgram(
        name="lion-raw-ablated",
        build=lion_raw_ablated,
        paper="Chen et al. 2023, arXiv:2302.06675, section 2.4",
        when="Not for training: to see `optforge simplify` turn it into Lion.",
    ),
)
