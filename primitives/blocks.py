"""Named building blocks of update rules, as functions from expressions to expressions.

Hand-written programs are assembled from them, and a search may splice them in whole.
"""

from __future__ import annotations

from collections.abc import Callable

from primitives.builder import Builder, Expr, SlotExpr


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


def caution(b: Builder, x: Expr) -> Expr:
    """Without the elements whose sign is not the gradient's, the others enlarged by 1 / their share.

    Liang et al. 2024, Cautious Optimizers, algorithm 1; variant: the share has 1e-3 added.
    """
    agrees = b.agree(x, b.g)
    return x * agrees / (b.mean(agrees) + 1e-3)


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
        caution,
        decoupled_weight_decay,
    )
}
