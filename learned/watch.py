"""Programs that also measure what learning their hyperparameters needs: sums, as state of kind SCALAR.

The last step u and the gradient g meet where the parameter is updated anyway: a watched program is an ordinary one, so
that it runs interpreted, compiled in one pass over memory, and resumes exactly. What it measures is read off its
state after the step, and moves the rate of the next one.

The last update itself is recomputed rather than kept wherever the state tells it: AdamW's is a function of its two
averages. Otherwise it takes one buffer; the gradients of plain descent, for one, leave no other trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from optforge.learned.derivative import Extended, derivative, differentiate
from optforge.primitives.builder import Expr
from optforge.primitives.kinds import Kind
from optforge.primitives.parameters import ASIDE
from optforge.primitives.program import Arg, Const, Program

SUMS = ("dot", "g2", "u2", "n2", "gu", "p2", "stale")
"""⟨g, u⟩, ‖g‖² and ‖u‖² with u of the step before, ‖u‖² and ⟨g, u⟩ of this one, ‖p‖² before it, and 1 where the step
before has rested, so that the first ⟨g, u⟩ and ‖u‖² are not of the same step.

`u2` is what `n2` was: one sum over memory less."""


@dataclass(frozen=True)
class Watched:
    """A program that measures.

    Attributes:
        program: does what the original does, and measures.
        resting: does the same and measures nothing; its slots are among those of `program`. The same as `program`
            where another hyperparameter than `lr` is measured: such derivatives have memory, which every step moves.
        sums: names of its slots for `SUMS`; with `dot`, `u2` of each other hyperparameter as ``"dot beta1"``.
        factor: slot that multiplies the update of each parameter; 1 unless the caller writes it.
        damp: hyperparameter that multiplies gradients.
        extra: all slots that the original has not.
    """

    program: Program
    resting: Program
    sums: dict[str, str]
    factor: str
    damp: str
    extra: tuple[str, ...]


@lru_cache(maxsize=256)
def watched(program: Program, what: tuple[str, ...] = ("lr",)) -> Watched:
    """`program` (not its fallback) with sums for each hyperparameter in `what`.

    Raises:
        ProgramError: if one of them does not exist or has no effect.
    """
    damp = Extended(program).fresh("damp")
    b = Extended(program, damp)
    g = b.gradient
    sums: dict[str, str] = {}
    alive: list[Expr] = []

    def measure(name: str, value: Expr) -> Expr:
        slot = b.slot(b.fresh(ASIDE + name.replace(" ", "_")), Kind.SCALAR)
        slot.next = value
        sums[name] = slot.arg
        alive.append(b.less(b.square(slot), -1.0))  # always 0, whatever it holds; liveness does not see that
        return slot

    def last(name: str, value: Expr) -> Expr:
        slot = b.slot(b.fresh(f"{ASIDE}last_{name}"))
        slot.next = value
        return slot

    update = b.update
    factor = b.slot(b.fresh(f"{ASIDE}factor"), Kind.SCALAR, 1.0)
    rate = b.slot(b.fresh(f"{ASIDE}rate"), Kind.SCALAR)
    factor.next, rate.next = factor, b.lr * factor
    step = update
    if "lr" in what:
        reads = "lr" in program.live.names
        if reads:
            dot = differentiate(b, "lr").get(update.arg)
            step = update if dot is None else update + b.lr * dot
        before = None if reads else recovered(b, program, rate)
        before = last("step", b.of_kind(step, b.g)) if before is None else before
        measure("dot", b.dot(g, before))
    measure("u2", measure("n2", b.dot(step, step)))  # as it was before
    measure("gu", b.dot(g, step))
    rested = b.slot(b.fresh(f"{ASIDE}rested"), Kind.SCALAR)
    rested.next = 0.0 * rested
    measure("stale", rested)
    measure("g2", b.dot(g, g))
    measure("p2", b.dot(b.p, b.p))
    for name in what:
        if name != "lr":
            rule = derivative(program, name, memory=True)
            before = last(name, b.include(rule))
            measure(f"dot {name}", b.dot(g, before))
            measure(f"u2 {name}", b.dot(before, before))
    nothing = alive[0]
    for term in alive[1:]:
        nothing = nothing + term
    own = {slot.name for slot in program.state}
    result = resting = b.build(update * (factor - nothing)).pruned()
    if what == ("lr",):
        rested.next = 0.0 * rested + 1.0
        resting = b.build(update * (factor - b.less(b.square(rested), -1.0))).pruned()
    return Watched(result, resting, sums, factor.arg, damp, tuple(s.name for s in result.state if s.name not in own))


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
            if decay and op in ("add", "sub"):
                return b.op(op, *(read(a, True) for a in args))
            if (
                decay
                and op == "mul"
                and "p" in args
                and all(a == "p" or program.kind_of(a) is Kind.SCALAR for a in args)
            ):
                return b.op(op, *(Expr(b, "p") if a == "p" else read(a) for a in args))
            return b.op(op, *map(read, args))
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


__all__ = ["SUMS", "Watched", "recovered", "watched"]
