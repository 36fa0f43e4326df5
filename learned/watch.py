"""Programs that also measure what learning their hyperparameters needs: sums, as state of kind SCALAR.

The last step and the gradient meet where the parameter is updated anyway: a watched program is an ordinary one, which
is compiled to one pass over memory. What it measures is read off its state, and moves the rate of the next step.

The last update itself is recomputed rather than kept wherever the state tells it: AdamW's is a function of its two
averages. Otherwise it takes one buffer; the gradients of plain descent, for one, leave no other trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import add

from optforge.learned.derivative import Extended, derivative, differentiate
from optforge.primitives.builder import Expr, SlotExpr
from optforge.primitives.kinds import Kind
from optforge.primitives.parameters import ASIDE
from optforge.primitives.program import Arg, Const, Program


@dataclass(frozen=True)
class Watched:
    """A program that measures.

    Attributes:
        program: does what the original does, and measures.
        resting: does the same and measures nothing; its slots are among those of `program`. The same as `program`
            where another hyperparameter than `lr` is measured: such derivatives have memory, which every step moves.
        sums: slots of `program`, by what is in them after a step, with g the gradient, u the derivative of its update
            with respect to the rate, u⁻ that of the step before, and p the parameter: ``dot`` is ⟨g, u⁻⟩, ``g2`` ‖g‖²,
            ``u2`` ‖u⁻‖², or -1 where the step before has measured nothing, so that ⟨g, u⁻⟩ may be of another step,
            ``n2`` ‖u‖², and ``p2`` ‖p‖² before the step. For each other hyperparameter there are ``"dot beta1"`` and
            ``"u2 beta1"``.
        extra: all slots that the original has not.
    """

    program: Program
    resting: Program
    sums: dict[str, str]
    extra: tuple[str, ...]


@lru_cache(maxsize=256)
def watched(program: Program, what: tuple[str, ...] = ("lr",)) -> Watched:
    """`program`, not its fallback, with sums; `ProgramError` if one of `what` does not exist or has no effect."""
    b = Extended(program)
    g = b.g
    sums: dict[str, str] = {}
    alive: list[Expr] = []

    def measure(name: str, value: Expr, first: float = 0.0) -> SlotExpr:
        slot = b.slot(b.fresh(ASIDE + name.replace(" ", "_")), Kind.SCALAR, first)
        slot.next = value
        sums[name] = slot.arg
        alive.append(b.less(b.square(slot), -1.0))  # always 0, whatever it holds; liveness does not see that
        return slot

    def last(name: str, value: Expr) -> Expr:
        slot = b.slot(b.fresh(f"{ASIDE}last_{name}"))
        slot.next = value
        return slot

    update = step = b.update
    rate = b.slot(b.fresh(f"{ASIDE}rate"), Kind.SCALAR)
    rate.next = b.lr
    if "lr" in what:
        reads = "lr" in program.live.names
        if reads:
            dot = differentiate(b, "lr").get(update.arg)
            step = update if dot is None else update + b.lr * dot
        before = None if reads else recovered(b, program, rate)
        before = last("step", b.of_kind(step, b.g)) if before is None else before
        measure("dot", b.dot(g, before))
    now = measure("n2", b.dot(step, step), -1.0)
    measure("u2", now)  # as it was before: one sum over memory less
    measure("g2", b.dot(g, g))
    measure("p2", b.dot(b.p, b.p))
    for name in what:
        if name != "lr":
            rule = derivative(program, name, memory=True)
            before = last(name, b.include(rule))
            measure(f"dot {name}", b.dot(g, before))
            measure(f"u2 {name}", b.dot(before, before))
    own = {slot.name for slot in program.state}
    result = resting = b.build(update * (1.0 - reduce(add, alive))).pruned()
    if what == ("lr",):
        now.next = 0.0 * now - 1.0
        resting = b.build(update * (1.0 - b.less(b.square(now), -1.0))).pruned()
    return Watched(result, resting, sums, tuple(s.name for s in result.state if s.name not in own))


def recovered(b: Extended, program: Program, rate: Expr) -> Expr | None:
    """The update of the step before, from the state and the `rate` that it left, or None if these do not tell.

    Weight decay w p, w one number, reads p before the step, of which only p after it is left: p⁺ = p - α u. As
    u = A + w p = A + w p⁺ + α w u, it is (A + w p⁺) / (1 - α w), with α kept in a slot.
    """
    live = program.live.names  # slots that nothing reads are not kept
    slots = zip(program.state, program.next_state, strict=True)
    known = {a: s.name for s, a in slots if type(a) is int and s.name in live}
    if not program.live_state:
        return None

    class Unknown(Exception):
        pass

    def read(arg: Arg, decay: bool = False) -> Expr:
        if type(arg) is Const:
            return Expr(b, arg)
        if arg in known:
            return Expr(b, known[arg])
        if type(arg) is int:
            op, args = program.body[arg]
            decays = op == "mul" and "p" in args and all(a == "p" or program.kind_of(a) is Kind.SCALAR for a in args)
            if decay and decays:
                return b.op(op, *(Expr(b, "p") if a == "p" else read(a) for a in args))
            return b.op(op, *(read(a, decay and op in ("add", "sub")) for a in args))
        if arg == "step":
            return b.step - 1.0
        if arg in program.defaults():
            return Expr(b, arg)
        raise Unknown

    try:
        found = read(program.update, True)
    except Unknown:
        return None
    decay = differentiate(b, "p").get(found.arg)
    return found if decay is None else found / (1.0 - rate * decay)
