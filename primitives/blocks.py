"""Named building blocks of update rules, as functions from expressions to expressions.

Hand-written programs are assembled from them, and a search may splice those of `BLOCKS` in whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optforge.primitives.builder import Builder, Expr, SlotExpr
from optforge.primitives.kinds import ProgramError


def momentum(b: Builder, slot: SlotExpr, x: Expr, decay: Expr | float) -> Expr:
    """Exponential moving average ``slot ← decay · slot + (1 - decay) · x``; returns its new value."""
    slot.next = b.lerp(slot, x, 1.0 - decay)
    return slot.next


def heavy_ball(b: Builder, slot: SlotExpr, x: Expr, decay: Expr | float) -> Expr:
    """Undamped accumulation ``slot ← decay · slot + x`` (Polyak 1964); returns its new value."""
    slot.next = decay * slot + x
    return slot.next


def nesterov(b: Builder, slot: SlotExpr, x: Expr, decay: Expr | float) -> Expr:
    """Heavy ball that looks ahead, ``x + decay · slot`` with the slot's new value (Sutskever et al. 2013, §2)."""
    return x + decay * heavy_ball(b, slot, x, decay)


def sign(b: Builder, x: Expr) -> Expr:
    """Elementwise sign, 0 at 0 (Bernstein et al. 2018, signSGD)."""
    return b.sign(x)


def orthogonalise(b: Builder, x: Expr) -> Expr:
    """All singular values set to about 1, where the parameter is a matrix (Jordan et al. 2024, Muon)."""
    return b.orthogonalise(x)


def rms_normalise(b: Builder, x: Expr, second_moment: Expr, eps: Expr | float) -> Expr:
    """``x / (√second_moment + eps)``: epsilon outside the root, as in Kingma & Ba 2015, algorithm 1."""
    return x / (b.sqrt(second_moment) + eps)


def debias(b: Builder, average: Expr, decay: Expr | float) -> Expr:
    """Remove the bias of an average that started at zero: divide by ``1 - decay^step`` (Kingma & Ba 2015, §3)."""
    return average / (1.0 - b.pow(decay, b.step))


def trust_ratio(b: Builder, direction: Expr) -> Expr:
    """``‖p‖ / ‖direction‖`` of the whole parameter, and 1 where either norm is 0 (You et al. 2020, LAMB, φ = id)."""
    ratio = b.safe_div(b.norm(b.p), b.norm(direction))
    return ratio + b.less(ratio, 1e-30)


def decoupled_weight_decay(b: Builder, direction: Expr, weight_decay: Expr | float) -> Expr:
    """``direction + weight_decay · p``: decay scaled by the learning rate alone (Loshchilov & Hutter 2019)."""
    return direction + weight_decay * b.p


def look_ahead(b: Builder, x: Expr, decay: Expr | float) -> Expr:
    """``decay · x + (1 - decay) · g``: Nesterov's step for an average x of gradients, as in Dozat 2016, algorithm 2."""
    return b.lerp(x, b.g, 1.0 - decay)


def slow_average(b: Builder, slot: SlotExpr, x: Expr, decay: Expr | float, weight: Expr | float) -> Expr:
    """``x + weight · slot`` with an average of gradients of its own decay (Pagliardini et al. 2024, AdEMAMix)."""
    return x + weight * momentum(b, slot, b.g, decay)


def every(b: Builder, k: Expr | float, value: Expr, slot: SlotExpr) -> Expr:
    """``slot ← value`` at the first step and at every k-th after it; returns the slot's new value.

    What only `value` needs is computed in these steps alone (see `primitives.lazy`).
    """
    slot.next = b.choose(b.due(b.step, k), value, slot)
    return slot.next


def cautious(b: Builder, direction: Expr) -> Expr:
    """`direction` where it has the gradient's sign, divided by the share of such elements, and 0 elsewhere.

    Liang et al. 2024, Cautious Optimizers, algorithm 1; the share counts as at least 1e-3, as in the authors' code.
    """
    mask = b.agree(direction, b.g)
    return direction * (mask / b.max(b.mean(mask), 1e-3))


def newton_schulz(b: Builder, x: Expr, coefficients: Sequence[tuple[float, float, float]]) -> Expr:
    """`x` with all singular values near 1, by one quintic step for each triple of `coefficients`.

    ``orthogonalise(x)`` has five times those of Jordan et al. 2024 (Muon), ``(3.4445, -4.775, 2.0315)``; others change
    from step to step, as in Amsel et al. 2025, The Polar Express, arXiv:2505.16932. Nothing bounds what polynomials
    make of singular values from 0 to 1.
    """
    x = x / (b.norm(x) + 1e-7)
    for a, c, e in coefficients:
        x = b.quintic(x, a, c, e)
    return x


def inverse_root(b: Builder, x: Expr, p: int, damping: Expr | float = 1e-6) -> Expr:
    """``(x + damping · |x|)^(-1/p)`` of a square matrix: op ``inverse_root1``, ``inverse_root2`` or ``inverse_root4``.

    Raises:
        ProgramError: for any other root.
    """
    if isinstance(p, bool) or p not in (1, 2, 4):
        raise ProgramError(f"an inverse p-th root has p = 1, 2 or 4, got {p!r}; write others as roots of roots")
    return b.op(f"inverse_root{p}", x, damping)


def distance(b: Builder, start: SlotExpr) -> Expr:
    """Euclidean distance of the parameter from where it started, which the slot `start`, with init ``"p"``, keeps."""
    start.next = start
    return b.norm(b.p - start)


def on_sphere(b: Builder, direction: Expr) -> Expr:
    """The update after which the parameter has the norm R that it had: ``W ← R N(W - lr R N(direction))``.

    N(x) = x / ‖x‖: a step of length lr R, and back to the sphere (Wen et al. 2026, Hyperball, arXiv:2606.16899).

    R is the present norm, which such steps leave as it was at the start. A parameter that is 0 stays 0.
    """
    radius = b.norm(b.p)
    ahead = b.p - b.lr * radius * b.safe_div(1.0, b.norm(direction)) * direction
    return b.safe_div(b.p - radius * b.safe_div(1.0, b.norm(ahead)) * ahead, b.lr)


BLOCKS: dict[str, Callable[..., Expr]] = {
    f.__name__: f
    for f in (
        momentum,
        heavy_ball,
        nesterov,
        look_ahead,
        slow_average,
        sign,
        orthogonalise,
        rms_normalise,
        debias,
        trust_ratio,
        cautious,
        decoupled_weight_decay,
    )
}
"""Those that a search splices in: their arguments are tensors, slots and numbers."""
