"""The text form: it says everything, and reading it can end in only two ways."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.strategies import programs

from optforge.baselines import BASELINES
from optforge.primitives import Const, Hyper, Instr, Kind, Program, ProgramError, Slot, parse_program, print_program
from optforge.primitives.program import MAX_HYPERS, MAX_INSTRUCTIONS, MAX_STATE
from optforge.primitives.text import MAX_CHARACTERS

LION = """\
optforge 1
hyper beta1 = 0.9 unit
slot m = 0.0 tensor
x0 = sub(1.0, beta1)
x1 = lerp(m, g, x0)
x2 = sign(x1)
x3 = lerp(m, g, 0.01)
update x2
next m = x3
"""


def test_reads_as_it_is_written() -> None:
    assert parse_program(LION) == Program(
        (Slot("m", Kind.TENSOR, 0.0),),
        (Hyper("beta1", 0.9, "unit"),),
        (
            Instr("sub", (Const(1.0), "beta1")),
            Instr("lerp", ("m", "g", 0)),
            Instr("sign", (1,)),
            Instr("lerp", ("m", "g", Const(0.01))),
        ),
        2,
        (3,),
    )
    assert print_program(parse_program(LION)) == LION


@given(programs())
def test_parse_of_print_is_the_program(p: Program) -> None:
    text = print_program(p)
    again = parse_program(text)
    assert again == p
    assert again.key == p.key
    assert print_program(again) == text


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_round_trip(name: str) -> None:
    p = BASELINES[name].program
    assert parse_program(print_program(p)) == p


def test_largest_program_round_trips() -> None:
    long = "n" * 39
    state = tuple(Slot(f"{long}"[:37] + f"{i:03}", Kind.TENSOR, -1.2345678901234567e-300) for i in range(MAX_STATE))
    hypers = tuple(Hyper("h" * 37 + f"{i:03}", -1.2345678901234567e-300) for i in range(MAX_HYPERS))
    body = (Instr("lerp", (state[0].name, state[1].name, hypers[0].name)),) * MAX_INSTRUCTIONS
    flat = Program(state, hypers, body, 0, (0,) * MAX_STATE)
    p = Program(state, hypers, body, 0, (0,) * MAX_STATE, flat)
    assert parse_program(print_program(p)) == p


def test_layout_is_free() -> None:
    text = "\n# a comment\noptforge 1\r\n\n  slot m = 0 tensor # from zero\n\tx0 = add( g ,m )\nnext m = x0\nupdate x0"
    p = parse_program(text)
    assert p == Program((Slot("m"),), (), (Instr("add", ("g", "m")),), 0, (0,))


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("1", 1.0),
        ("-2.5", -2.5),
        ("+.5", 0.5),
        ("1.", 1.0),
        ("1e-8", 1e-8),
        ("1E+22", 1e22),
        ("-0", 0.0),
        ("5e-324", 5e-324),
    ],
)
def test_numbers(number: str, value: float) -> None:
    p = parse_program(f"optforge 1\nx0 = add(g, {number})\nupdate x0")
    assert p.body[0].args == ("g", Const(value))
    assert str(p.body[0].args[1].value) == str(value)  # type: ignore[union-attr]


def edit(old: str, new: str) -> str:
    """Lion's text with one place changed."""
    assert LION.count(old) == 1
    return LION.replace(old, new)


MALFORMED = {
    # name: (text, what the message says)
    "unknown op": (edit("sign(", "sing("), r"instruction x2 = sing\(x1\): unknown op 'sing'; did you mean .*sin"),
    "wrong kind": (edit("sign(x1)", "norm(x0)"), r"instruction x2 = norm\(x0\): .* kind \(SCALAR\)"),
    "too few": (edit("lerp(m, g, 0.01)", "lerp(m, g)"), r"instruction x3 = lerp\(m, g\): lerp takes 3 .* got 2"),
    "too many": (edit("sign(x1)", "sign(x1, g)"), r"instruction x2 = sign\(x1, g\): sign takes 1 .* got 2"),
    "none at all": (edit("sign(x1)", "sign()"), r"instruction x2 = sign\(\): sign takes 1 .* got 0"),
    "unwritten register": (edit("sign(x1)", "sign(x3)"), r"instruction x2 = sign\(x3\): register x3 is not written"),
    "its own register": (edit("sign(x1)", "sign(x2)"), r"instruction x2 = sign\(x2\): register x2 is not written"),
    "far register": (edit("sign(x1)", "sign(x9999999)"), "register x9999999 is not written"),
    "absurd register": (edit("sign(x1)", "sign(x99999999999999999999)"), "x99999999999999999999"),
    "unknown name": (edit("sign(x1)", "sign(momentum)"), r"instruction x2 = sign\(momentum\): unknown name momentum"),
    "nan": (edit("0.01", "nan"), r"line 7: 'x3 = lerp\(m, g, nan\)': constant nan is not a finite"),
    "minus nan": (edit("0.01", "-nan"), r"instruction x3 = lerp\(m, g, nan\): constant nan is not a finite"),
    "inf": (edit("0.01", "inf"), r"line 7: 'x3 = lerp\(m, g, inf\)': constant inf is not a finite"),
    "minus inf": (edit("0.01", "-inf"), r"instruction x3 = lerp\(m, g, -inf\): constant -inf is not a finite"),
    "overflow": (edit("0.01", "1e999"), r"instruction x3 = lerp\(m, g, inf\): constant inf is not a finite"),
    "nan default": (edit("= 0.9 unit", "= nan unit"), "line 2: 'hyper beta1 = nan unit': hyper beta1: nan is outside"),
    "nan init": (edit("m = 0.0", "m = nan"), "line 3: 'slot m = nan tensor': slot m: init nan is not a finite"),
    "slot twice": (edit("slot m = 0.0 tensor", "slot m = 0.0 tensor\nslot m = 0.0 tensor"), "slot 'm' is named twice"),
    "slot and hyper": (edit("hyper beta1", "hyper m"), "hyper 'm' is named twice|hyperparameter 'm'"),
    "signal as slot": (edit("slot m", "slot lr"), "line 3: 'slot lr = 0.0 tensor': slot name 'lr' is reserved"),
    "register as hyper": (edit("hyper beta1", "hyper x7"), "line 2: .*'x7' is reserved"),
    "capitals": (edit("hyper beta1", "hyper Beta1"), "line 2: .*'Beta1' is not a lower-case identifier"),
    "unknown scale": (edit("unit", "percent"), "line 2: .*unknown scale 'percent'; choose one of log, unit, linear"),
    "out of scale": (edit("0.9 unit", "1.5 unit"), r"line 2: .*1\.5 is outside \[0, 1\) of its unit scale"),
    "unknown kind": (edit("0.0 tensor", "0.0 vector"), "line 3: .*unknown kind 'vector'; choose one of scalar"),
    "kind in capitals": (edit("0.0 tensor", "0.0 Tensor"), "line 3: .*unknown kind 'Tensor'; choose one of scalar"),
    "no number": (edit("m = 0.0", "m = zero"), "line 3: .*'zero' is not a number"),
    "copy into a number": (edit("0.0 tensor", "g scalar"), "line 3: .*init 'g' must be a number"),
    "gap in numbering": (edit("x2 = sign", "x5 = sign"), "line 6: .*must be called x2, got 'x5'"),
    "register twice": (edit("x2 = sign", "x1 = sign"), "line 6: .*must be called x2, got 'x1'"),
    "no statement": (edit("x2 = sign(x1)", "x2 = sign x1"), "line 6: 'x2 = sign x1': expected"),
    "unclosed": (edit("sign(x1)", "sign(x1"), r"line 6: 'x2 = sign\(x1': expected"),
    "nested": (edit("sign(x1)", "sign(neg(x1))"), r"line 6: .*'neg\(x1\)' is neither"),
    "empty argument": (edit("lerp(m, g, 0.01)", "lerp(m,, 0.01)"), "line 7: .*'' is neither"),
    "code": (edit("sign(x1)", "sign(__import__('os'))"), "line 6: .*is neither a register, a name nor a number"),
    "update twice": (edit("update x2", "update x2\nupdate x1"), "line 9: 'update x1': update is given twice"),
    "no update": (edit("update x2\n", ""), "no update line"),
    "number as update": (edit("update x2", "update 1.0"), r"update 1\.0: expected kind TENSOR, got SCALAR"),
    "scalar as update": (edit("update x2", "update x0"), "update x0: expected kind TENSOR, got SCALAR"),
    "next twice": (LION + "next m = x3\n", "line 10: .*next value of slot 'm' is given twice"),
    "no next": (edit("next m = x3\n", ""), "slot 'm' has no next line"),
    "next of nothing": (LION + "next v = x3\n", "next v: there is no such slot"),
    "next of wrong kind": (edit("next m = x3", "next m = x0"), "next m x0: expected kind TENSOR, got SCALAR"),
    "no header": (edit("optforge 1\n", ""), "first line to be 'optforge 1', got 'hyper beta1"),
    "other version": (edit("optforge 1", "optforge 2"), "first line to be 'optforge 1', got 'optforge 2'"),
    "nothing": ("", "got nothing"),
    "comments only": ("# optforge 1\n\n", "got nothing"),
    "truncated": (LION[: len(LION) // 2], "line|truncated"),
    "prose": ("optforge 1\nWe take the sign of the momentum.", "line 2: 'We take the sign of the momentum.': expected"),
    "fallback twice": (LION + "fallback\nupdate g\nfallback\nupdate g\n", "line 12: .*at most one fallback"),
    "empty fallback": (LION + "fallback\n", "no update line"),
    "bad fallback": (LION + "fallback\nx0 = neg()\nupdate x0", r"instruction x0 = neg\(\): neg takes 1"),
    "fallback over rows": (LION + "fallback\nx0 = centralise(g)\nupdate x0\n", "fallback program itself needs rows"),
    "long line": (edit("0.01", "0." + "0" * 1000 + "1"), "line 7: longer than 400 characters"),
    "not ASCII digits": (edit("0.01", "٠.٠١"), "line 7: .*is neither"),
    "null": (edit("0.01", "0.01\0"), "line 7: .*is neither"),
    "lone surrogate": (edit("0.01", "\ud800"), "line 7: .*is neither"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_text_is_refused_with_its_place_and_text(name: str) -> None:
    text, message = MALFORMED[name]
    with pytest.raises(ProgramError) as caught:
        parse_program(text)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [None, 7, b"optforge 1\nupdate g\n", ["optforge 1"]])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(ProgramError, match="expected text, got"):
        parse_program(value)  # type: ignore[arg-type]


HUGE = {
    "a million instructions": "optforge 1\n" + "".join(f"x{i} = neg(g)\n" for i in range(10**6)) + "update g\n",
    "too many instructions": "optforge 1\n" + "".join(f"x{i} = neg(g)\n" for i in range(1001)) + "update g\n",
    "too many lines": "optforge 1\n" + "".join(f"x{i} = neg(g)\n" for i in range(40_000)) + "update g\n",
    "too many slots": "optforge 1\n"
    + "".join(f"slot s{i} = 0 tensor\nnext s{i} = g\n" for i in range(999))
    + "update g\n",
    "one long line": "optforge 1 " * 10**5,
    "deep nesting": "optforge 1\nx0 = " + "neg(" * 10**5 + "g" + ")" * 10**5,
    "digits": "optforge 1\nupdate " + "9" * 399,
    "digits and a letter": "optforge 1\nx0 = add(g, " + "9" * 380 + "z)\nupdate x0",
    "brackets": "optforge 1\nx0 = add" + "(" * 200 + ")" * 180,
    "commas": "optforge 1\nx0 = add(" + "," * 380 + ")",
    "blanks": "optforge 1" + " \n" * 400_000 + "x",
    "fallbacks": "optforge 1\nupdate g\n" + "fallback\nupdate g\n" * 10**4,
    "many slow lines": "optforge 1\n" + f"hyper a = {'1' * 380}z unit\n" * 2400,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HUGE)
def test_hostile_sizes_are_refused_in_bounded_time(name: str) -> None:
    with pytest.raises(ProgramError) as caught:
        parse_program(HUGE[name])
    assert len(str(caught.value)) < 400


def test_size_is_checked_first() -> None:
    with pytest.raises(ProgramError, match=f"{MAX_CHARACTERS + 1} characters; at most {MAX_CHARACTERS}"):
        parse_program("\n" * (MAX_CHARACTERS + 1))


def read(text: str) -> None:
    """Either a program, then one that round-trips, or a ProgramError of bounded length; nothing else may come out."""
    try:
        p = parse_program(text)
    except ProgramError as error:
        assert len(str(error)) < 500
    else:
        assert parse_program(print_program(p)) == p


@given(st.text())
@settings(max_examples=200)
def test_fuzz_arbitrary_text(text: str) -> None:
    read(text)
    read("optforge 1\n" + text)


WORDS = ["optforge 1", "hyper", "slot", "update", "next", "fallback", "x0", "x1", "m", "g", "p", "lr", "=", "(", ")",
         ",", "0.5", "-1e-3", "nan", "inf", "tensor", "row", "col", "scalar", "unit", "log", "linear", "neg", "add",
         "lerp", "#", "\n", "\n", "\n", " ", " ", "x99999999", "\r", "\t", "\x0b", "\u2028", "\0", "_",
         "'", '"']  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join))
@settings(max_examples=300)
@example("optforge 1 \n update g")
@example("optforge 1 \n update g \x0b next")
def test_fuzz_words_of_the_language(text: str) -> None:
    read(text)
    read("optforge 1\n" + text)


@st.composite
def mutated_texts(draw: st.DrawFn) -> str:
    """A valid text with some stretches deleted, repeated, or replaced."""
    text = print_program(draw(programs(max_body=6)))
    for _ in range(draw(st.integers(1, 4))):
        at, width = draw(st.integers(0, len(text))), draw(st.integers(0, 6))
        new = draw(st.sampled_from(WORDS) | st.text(max_size=4) | st.just(text[at : at + 2 * width]))
        text = text[:at] + new + text[at + width :]
    return text


@given(mutated_texts())
@settings(max_examples=300)
def test_fuzz_mutated_programs(text: str) -> None:
    read(text)


@given(mutated_texts())
def test_errors_show_nothing_but_one_line(text: str) -> None:
    try:
        parse_program(text)
    except ProgramError as error:
        assert "\n" not in str(error)


def test_every_prefix_of_a_program_is_refused_or_whole() -> None:
    for length in range(len(LION) - 1):
        with pytest.raises(ProgramError):
            parse_program(LION[:length])
