"""Programs: what can be constructed, what is alive, and the walk."""

from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
from hypothesis import given
from support.strategies import flat_programs, programs

from optforge.primitives import OPS, Const, Hyper, Instr, Kind, Program, ProgramError, Slot, fold
from optforge.primitives.program import MAX_HYPERS, MAX_INSTRUCTIONS, MAX_STATE, Arg, check_hypers

ROW_SLOT = Slot("r", Kind.ROW)


def program(*body: tuple[str, tuple[Arg, ...]], update: Arg = "g", **slots: Arg) -> Program:
    """A program of the given statements; each slot by its next value, as a tensor that starts at 0."""
    return Program(
        tuple(Slot(name) for name in slots), (), tuple(Instr(*i) for i in body), update, tuple(slots.values())
    )


@pytest.mark.parametrize(
    ("instr", "reason"),
    [
        (Instr("ad", ("g", "p")), "unknown op 'ad'; did you mean add"),
        (Instr("add", ("g",)), r"add takes 2 argument\(s\), got 1"),
        (Instr("neg", ("g", "p")), r"neg takes 1 argument\(s\), got 2"),
        (Instr("neg", ()), r"neg takes 1 argument\(s\), got 0"),
        (Instr("norm", ("lr",)), r"norm does not accept arguments of kind \(SCALAR\)"),
        (Instr("dot", ("g", Const(2.0))), r"dot does not accept arguments of kind \(TENSOR, SCALAR\)"),
        (Instr("add", ("g", 1)), "register x1 is not written before this point"),
        (Instr("add", ("g", 7)), "register x7 is not written before this point"),
        (Instr("add", ("g", -1)), "register x-1 is not written before this point"),
        (Instr("add", ("g", "velocity")), "unknown name velocity"),
        (Instr("add", ("g", Const(math.nan))), "constant nan is not a finite float"),
        (Instr("add", ("g", Const(math.inf))), "constant inf is not a finite float"),
        (Instr("add", ("g", Const(-math.inf))), "constant -inf is not a finite float"),
        (Instr("add", ("g", Const(1))), "constant 1 is not a finite float"),
        (Instr("add", ("g", Const(True))), "constant True is not a finite float"),
        (Instr("add", ("g", Const("0.1"))), "is not a finite float"),  # type: ignore[arg-type]
        (Instr("add", ("g", Const(-0.0))), "constant -0.0 is not allowed; write 0.0"),
        (Instr("add", ("g", 0.5)), "argument 0.5 is neither a register, a name nor a Const"),  # type: ignore[arg-type]
        (Instr("add", ("g", True)), "argument True is neither"),
        (Instr("add", ("g", None)), "argument None is neither"),  # type: ignore[arg-type]
        (Instr(None, ("g",)), "unknown op None"),  # type: ignore[arg-type]
        (Instr(["add"], ("g",)), "unknown op"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_bad_instructions_are_refused_by_number_and_text(instr: Instr, reason: str) -> None:
    with pytest.raises(ProgramError, match=reason) as caught:
        program(("neg", ("g",)), instr, update=0)
    text = ", ".join(str(a.value) if isinstance(a, Const) else str(a) for a in instr.args[-1:] if type(a) is not int)
    assert str(caught.value).startswith("instruction x1 = ")
    assert text in str(caught.value)


def test_error_shows_the_instruction_as_it_is_written() -> None:
    with pytest.raises(ProgramError) as caught:
        program(("neg", ("g",)), ("add", (0, Const(0.25), "lr")), update=0)
    assert str(caught.value) == "instruction x1 = add(x0, 0.25, lr): add takes 2 argument(s), got 3"


def test_error_text_is_bounded() -> None:
    with pytest.raises(ProgramError) as caught:
        program(("o" * 10**6, ("a" * 10**6,) * 100))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        ("lr", "update lr: expected kind TENSOR, got SCALAR"),
        (1, "update x1: expected kind TENSOR, got SCALAR"),
        (2, "update x2: register x2 is not written"),
        (Const(1.0), "update 1.0: expected kind TENSOR, got SCALAR"),
        ("q", "update q: unknown name q"),
        (None, "update None: argument None is neither"),
    ],
)
def test_bad_update_is_refused(update: Arg, reason: str) -> None:
    with pytest.raises(ProgramError, match=reason):
        program(("neg", ("g",)), ("norm", ("g",)), update=update)


def test_next_value_must_have_the_kind_of_its_slot() -> None:
    with pytest.raises(ProgramError, match="next m x0: expected kind TENSOR, got SCALAR"):
        program(("norm", ("g",)), m=0)
    with pytest.raises(ProgramError, match="next r g: expected kind ROW, got TENSOR"):
        Program((ROW_SLOT,), (), (), "g", ("g",))


def test_every_slot_needs_one_next_value() -> None:
    with pytest.raises(ProgramError, match="1 slots but 0 next values"):
        Program((Slot("m"),), (), (), "g", ())


@pytest.mark.parametrize(
    ("slots", "hypers", "reason"),
    [
        ((Slot("m"), Slot("m")), (), "slot 'm' is named twice"),
        ((), (Hyper("m", 1.0), Hyper("m", 1.0)), "hyper 'm' is named twice"),
        ((Slot("m"),), (Hyper("m", 1.0),), "hyper 'm' is named twice"),
    ],
)
def test_names_are_unique(slots: tuple[Slot, ...], hypers: tuple[Hyper, ...], reason: str) -> None:
    with pytest.raises(ProgramError, match=reason):
        Program(slots, hypers, (), "g", ("g",) * len(slots))


def test_sizes_are_bounded() -> None:
    statement = ("neg", ("g",))
    program(*[statement] * MAX_INSTRUCTIONS)
    with pytest.raises(ProgramError, match=f"{MAX_INSTRUCTIONS + 1} instructions"):
        program(*[statement] * (MAX_INSTRUCTIONS + 1))
    with pytest.raises(ProgramError, match="64 slots"):
        program(**{f"m{i}": "g" for i in range(MAX_STATE + 1)})
    with pytest.raises(ProgramError, match="64 hyperparameters"):
        Program((), tuple(Hyper(f"h{i}", 1.0) for i in range(MAX_HYPERS + 1)), (), "g", ())


def test_fallback_must_work_for_every_shape_and_is_the_last() -> None:
    matrix = program(("centralise", ("g",)), update=0)
    flat = program()
    assert dataclasses.replace(matrix, fallback=flat).fallback is flat
    with pytest.raises(ProgramError, match="fallback program itself needs rows and columns"):
        dataclasses.replace(matrix, fallback=matrix)
    with pytest.raises(ProgramError, match="fallback program itself has a fallback"):
        dataclasses.replace(matrix, fallback=dataclasses.replace(flat, fallback=flat))


@given(programs())
def test_programs_are_immutable_hashable_values(p: Program) -> None:
    twin = Program(p.state, p.hypers, p.body, p.update, p.next_state, p.fallback)
    assert p == twin and hash(p) == hash(twin) and p is not twin
    with pytest.raises(dataclasses.FrozenInstanceError):
        p.update = "g"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(p)) == p


@given(programs())
def test_kinds_follow_from_the_table(p: Program) -> None:
    assert len(p.kinds) == len(p.body)
    for (op, args), kind in zip(p.body, p.kinds, strict=True):
        assert OPS[op].result[tuple(p.kind_of(a) for a in args)] is kind
    assert p.kind_of(p.update) is Kind.TENSOR
    assert [p.kind_of(a) for a in p.next_state] == [s.kind for s in p.state]
    assert p.kind_of(Const(1.0)) is Kind.SCALAR


def test_register_one_is_not_the_number_one() -> None:
    body = (("neg", ("g",)), ("abs", ("g",)), ("add", ("g", 1)))
    assert program(*body, update=2) != program(*body[:2], ("add", ("g", Const(1.0))), update=2)


# What is alive.


def test_unread_statements_are_dead() -> None:
    p = program(("neg", ("g",)), ("abs", ("p",)), ("mul", (0, "lr")), update=2)
    assert p.live.instructions == (0, 2)
    assert p.live.names == {"g", "lr"}


def test_slot_overwritten_before_it_is_read_is_dead() -> None:
    """As the last statement of Lion's raw find: m is interpolated, used, and then overwritten by cosh."""
    p = program(("lerp", ("v", "g", Const(0.9))), ("cosh", (0,)), update=0, m=1, v=0)
    assert p.live.instructions == (0,)
    assert p.live_state == (Slot("v"),)


def test_slot_that_only_feeds_itself_is_dead() -> None:
    p = program(("add", ("n", "g")), ("neg", ("g",)), update=1, n=0)
    assert p.live.instructions == (1,)
    assert p.live_state == ()


def test_slots_that_feed_each_other_and_nothing_else_are_dead() -> None:
    assert program(a="b", b="a").live_state == ()


def test_slot_is_alive_through_another_slot() -> None:
    """Gradient of two steps ago: g → a → b → update."""
    p = program(update="b", a="g", b="a")
    assert p.live_state == (Slot("a"), Slot("b"))
    assert p.live.names == {"a", "b", "g"}


@given(programs())
def test_liveness_is_the_least_closed_set(p: Program) -> None:
    """What the update reads, what that reads, and so on, until nothing is new."""
    reads = {i: set(instr.args) for i, instr in enumerate(p.body)}
    reads |= {s.name: {a} for s, a in zip(p.state, p.next_state, strict=True)}  # type: ignore[misc]
    found: set[Arg] = {p.update}
    while more := {b for a in found if type(a) is not Const for b in reads.get(a, ())} - found:  # type: ignore[call-overload]
        found |= more
    assert p.live.instructions == tuple(sorted(a for a in found if type(a) is int))
    assert p.live.names == {a for a in found if type(a) is str}
    assert p.live_state == tuple(s for s in p.state if s.name in found)


def test_needs_matrix_and_reduces_look_at_live_parts_only() -> None:
    row, norm = ("row_mean", ("g",)), ("norm", ("g",))
    dead = program(row, norm, ("neg", ("g",)), update=2)
    assert not dead.needs_matrix and not dead.reduces
    alive = program(row, ("mul", ("g", 0)), update=1)
    assert alive.needs_matrix and alive.reduces
    whole = program(norm, ("mul", ("g", 0)), update=1)
    assert not whole.needs_matrix and whole.reduces
    slot = Program((ROW_SLOT,), (), (Instr("mul", ("r", "g")),), 0, ("r",))
    assert slot.needs_matrix and not slot.reduces
    assert not Program((ROW_SLOT,), (), (), "g", ("r",)).needs_matrix


def test_shared_statements_read_no_tensor_and_no_slot() -> None:
    p = Program(
        (Slot("s", Kind.SCALAR, 1.0),),
        (Hyper("beta", 0.9, "unit"),),
        (
            Instr("pow", ("beta", "step")),  # x0: the same for all parameters
            Instr("sub", (Const(1.0), 0)),  # x1: likewise
            Instr("mul", (1, "s")),  # x2: not with a slot
            Instr("norm", ("g",)),  # x3: nor a number of one parameter
            Instr("add", (2, 3)),  # x4
            Instr("mul", ("g", 4)),  # x5
            Instr("add", ("lr", "lr")),  # x6: shared but dead
        ),
        5,
        (1,),
    )
    assert p.shared == {0, 1}
    assert p.depends_only_on(frozenset({"step"})) == set()


@given(programs())
def test_pruned_is_the_same_rule_without_what_is_dead(p: Program) -> None:
    small = p.pruned()
    assert small.key == p.key
    assert small.live.instructions == tuple(range(len(small.body)))
    assert small.live_state == small.state == p.live_state
    assert {h.name for h in small.hypers} <= small.live.names
    assert small.pruned() == small


# Hyperparameters.


def with_hypers() -> Program:
    return Program((), (Hyper("beta", 0.9, "unit"), Hyper("eps", 1e-8, "log")), (), "g", ())


def test_defaults_can_be_replaced() -> None:
    p = with_hypers()
    assert p.defaults() == {"beta": 0.9, "eps": 1e-8}
    changed = p.with_defaults(beta=0.5)
    assert changed.defaults() == {"beta": 0.5, "eps": 1e-8}
    assert changed.hypers[0].scale == "unit"
    assert p.defaults()["beta"] == 0.9


def test_unknown_and_illegal_hypers_are_refused_by_name() -> None:
    with pytest.raises(ProgramError, match="unknown hyperparameter 'betas'; this program has: beta, eps"):
        with_hypers().with_defaults(betas=0.5)
    with pytest.raises(ProgramError, match=r"hyper beta: 1\.0 is outside \[0, 1\)"):
        with_hypers().with_defaults(beta=1.0)
    with pytest.raises(ProgramError, match="this program has: none"):
        check_hypers(program(), {"beta": 0.5})


# The walk.


def test_fold_visits_in_order_and_returns_what_it_says() -> None:
    p = program(("neg", ("g",)), ("abs", ("p",)), ("add", (0, Const(2.0))), update=2, m=1, n="n")
    seen: list[str] = []

    def apply(op: object, args: list[str], index: int) -> str:
        seen.append(f"{index}:{op.name}")  # type: ignore[attr-defined]
        return f"{op.name}[{','.join(args)}]"  # type: ignore[attr-defined]

    update, state, values = fold(p, str, apply)
    assert seen == ["0:neg", "2:add"]
    assert update == "add[neg[g],2.0]"
    assert state == ("m", "n"), "dead slots keep what they had"
    assert set(values) == {0, 2}
    seen.clear()
    assert fold(p, str, apply, only_live=False).next_state == ("abs[p]", "n")
    assert seen == ["0:neg", "1:abs", "2:add"]


@given(flat_programs())
def test_text_of_a_program_is_its_str(p: Program) -> None:
    assert str(p).startswith("optforge 1\n") and f"update {'x' if type(p.update) is int else ''}{p.update}\n" in str(p)
