"""Lion as evolution found it, before anyone simplified it: Chen et al. 2023, program 4 and section 2.4."""

from __future__ import annotations

from primitives import Builder, Program


def lion_raw(*, ablated: bool = False) -> Program:
    """The raw find; `ablated` leaves out the two statements that training shows to have no effect (clip and arcsin).

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
