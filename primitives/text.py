"""Text form of programs. A program file is data: reading one never executes anything in it.

::

    optforge 1
    hyper beta1 = 0.9 unit
    slot m = 0.0 tensor
    x0 = sub(1.0, beta1)
    x1 = lerp(m, g, x0)
    update x1
    next m = x1

Statements number their results ``x0, x1, …`` in order; `#` starts a comment. ``fallback`` on a line of its own begins
the program for parameters without rows and columns. ``parse(print(p)) == p`` holds for every program.
"""

from __future__ import annotations

import re

from optforge.primitives.kinds import Hyper, Kind, ProgramError, Slot
from optforge.primitives.program import MAX_INSTRUCTIONS, VERSION, Program
from optforge.primitives.statements import Arg, Const, Instr

MAX_CHARACTERS = 1_000_000

_NUMBER = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?|[+-]?(?:nan|inf)"
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_WORD = re.compile(rf"{_NAME}|{_NUMBER}", re.ASCII)
_HYPER = re.compile(rf"hyper ({_NAME}) = ({_NUMBER}) ({_NAME})", re.ASCII)
_SLOT = re.compile(rf"slot ({_NAME}) = ({_NUMBER}|{_NAME}) ({_NAME})", re.ASCII)
_STATEMENT = re.compile(rf"({_NAME}) = ({_NAME})\((.*)\)", re.ASCII)
_UPDATE = re.compile(r"update (\S+)")
_NEXT = re.compile(rf"next ({_NAME}) = (\S+)", re.ASCII)
_REGISTER = re.compile(r"x([0-9]{1,7})", re.ASCII)
_LONGEST_LINE = 400


def parse_program(text: str) -> Program:
    """Read a program from its text form.

    Raises:
        ProgramError: on anything malformed, naming the line and its text; in time linear in the text, and without
            ever evaluating any of it.
    """
    if not isinstance(text, str):
        raise ProgramError(f"expected text, got {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise ProgramError(f"program text has {len(text)} characters; at most {MAX_CHARACTERS} are allowed")
    lines: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.split("#", 1)[0].strip()
        if len(line) > _LONGEST_LINE:
            raise ProgramError(f"line {number}: longer than {_LONGEST_LINE} characters: {_shown(line, 60)}…")
        if line:
            lines.append((number, line))
        if len(lines) > 3 * MAX_INSTRUCTIONS:
            raise ProgramError(f"more than {3 * MAX_INSTRUCTIONS} lines; programs are much smaller")
    if not lines or lines[0][1] != f"optforge {VERSION}":
        got = _shown(lines[0][1], 60) if lines else "nothing"
        raise ProgramError(f"expected the first line to be 'optforge {VERSION}', got {got}")
    marks = [i for i, (_, line) in enumerate(lines) if line == "fallback"]
    if len(marks) > 1:
        raise ProgramError(f"line {lines[marks[1]][0]}: a program has at most one fallback")
    if not marks:
        return _parse_lines(lines[1:], None)
    return _parse_lines(lines[1 : marks[0]], _parse_lines(lines[marks[0] + 1 :], None))


def _parse_lines(lines: list[tuple[int, str]], fallback: Program | None) -> Program:
    hypers: list[Hyper] = []
    slots: list[Slot] = []
    body: list[Instr] = []
    update: Arg | None = None
    following: dict[str, Arg] = {}
    for number, line in lines:
        try:
            if found := _HYPER.fullmatch(line):
                hypers.append(Hyper(found[1], float(found[2]), found[3]))
                if any(hyper.name == found[1] for hyper in hypers[:-1]):
                    raise ProgramError(f"hyper {found[1]!r} is named twice")
            elif found := _SLOT.fullmatch(line):
                slots.append(Slot(found[1], _parse_kind(found[3]), _parse_init(found[2])))
                if any(slot.name == found[1] for slot in slots[:-1]):
                    raise ProgramError(f"slot {found[1]!r} is named twice")
            elif found := _UPDATE.fullmatch(line):
                if update is not None:
                    raise ProgramError("update is given twice")
                update = _parse_arg(found[1])
            elif found := _NEXT.fullmatch(line):
                if found[1] in following:
                    raise ProgramError(f"the next value of slot {found[1]!r} is given twice")
                following[found[1]] = _parse_arg(found[2])
            elif found := _STATEMENT.fullmatch(line):
                if found[1] != f"x{len(body)}":
                    raise ProgramError(
                        f"this statement's result must be called x{len(body)}, got {_shown(found[1], 40)}"
                    )
                args = [a.strip() for a in found[3].split(",")] if found[3].strip() else []
                body.append(Instr(found[2], tuple(_parse_arg(a) for a in args)))
            else:
                raise ProgramError("expected 'hyper', 'slot', 'xN = op(…)', 'update', 'next' or 'fallback'")
        except ProgramError as error:
            raise ProgramError(f"line {number}: {_shown(line, 80)}: {error}") from None
    if update is None:
        raise ProgramError("the program has no update line (is the file truncated?)")
    missing = [s.name for s in slots if s.name not in following]
    if missing:
        raise ProgramError(f"slot {missing[0]!r} has no next line (is the file truncated?)")
    if unknown := following.keys() - {s.name for s in slots}:
        raise ProgramError(f"next {sorted(unknown)[0]}: there is no such slot")
    next_state = tuple(following[s.name] for s in slots)
    return Program(tuple(slots), tuple(hypers), tuple(body), update, next_state, fallback)


def _parse_kind(text: str) -> Kind:
    names = [kind.name.lower() for kind in Kind]
    if text not in names:
        raise ProgramError(f"unknown kind {_shown(text, 40)}; choose one of {', '.join(names)}")
    return Kind[text.upper()]


def _parse_init(text: str) -> float | str:
    return text if text in ("p", "g") else _number(text)


def _parse_arg(text: str) -> Arg:
    if not _WORD.fullmatch(text):
        raise ProgramError(f"{_shown(text, 40)} is neither a register, a name nor a number")
    if register := _REGISTER.fullmatch(text):
        return int(register[1])
    if text[0].isalpha() or text[0] == "_":
        if text in ("nan", "inf"):
            raise ProgramError(f"constant {text} is not a finite float")
        return text
    return Const(_number(text) + 0.0)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ProgramError(f"{_shown(text, 40)} is not a number") from None


def _shown(text: str, width: int) -> str:
    """The beginning of a hostile text in quotes, at most twice `width` long however its characters are escaped."""
    shown = repr(text[:width])
    return shown if len(shown) <= 2 * width else f"{shown[: 2 * width - 2]}…{shown[0]}"
