"""Fuzzing of the text form and of the exporters: ``python tests/support/fuzz.py --cases 1000000``.

Valid texts with stretches changed, lines of the grammar filled with anything, and plain noise. Each ends in a program
that round-trips, or in a `ProgramError` of one line. Whatever else comes out is printed with the text, and fails.
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable

from optforge.baselines import BASELINES, NAMED
from optforge.experiments.programs.random_programs import random_program
from optforge.primitives import OPS, Program, ProgramError, parse_program, print_program, subset
from optforge.primitives.text import MAX_CHARACTERS
from optforge.search.space.mutation import Space, mutate

TOKENS = (
    "optforge 1", "optforge 2", "hyper", "slot", "update", "next", "fallback", "x0", "x1", "x7", "m", "g", "p", "lr",
    "step", "progress", "global_norm", "=", "(", ")", ",", "0.5", "-1e-3", "1e309", "-0.0", "nan", "-inf", "inf",
    "1_000", "0x10", "1e", "٣", "tensor", "row", "col", "scalar", "unit", "log", "linear", "#", "\n", "\r\n", "\r",
    "\t", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\0", "_", "'", '"', '"""', "\\", "\\n", "{0}", "{",
    "%s", "${x}", "`", ";", "__import__('os').system('false')", "__class__", "lambda: 0", "import os", "x99999999",
    "x-1", "9" * 50, " ", "\ufeff", "\ud800", "é", "𝛽", "\u202e", "/", "-", "+", "1.0", "beta", "x", "self", "def",
    "None", *OPS,
)  # fmt: skip

WORD = re.compile(r"([\w.+-]+)")

HOSTILE_NAMES = (
    "", "x", "a\nimport os", 'a"""\nimport os\n"""', "a'); import os #", "__init__", "class", "torch", "{0}", "%s",
    "\\", "\\n", "\r", "\x00", "\u2028import os", "\x85import os", "é", "9lives", "a" * 5000, "../../x",
    "\\end{aligned}", "# -*- coding: utf-7 -*-", "\ud800", "None", "print",
)  # fmt: skip


def corpus(count: int, seed: int) -> list[str]:
    """Valid texts: named programs, mutations of them, and random ones."""
    rng = random.Random(seed)
    named = [row.program for row in (BASELINES | NAMED).values()]
    space = Space(subset("all"))
    programs = list(named)
    while len(programs) < count:
        if rng.random() < 0.5:
            program = rng.choice(named)
            for _ in range(rng.randint(1, 8)):
                program, _ = mutate(program, space, rng)
        else:
            program = random_program(rng, subset("all"), statements=rng.randint(1, 12))
            if rng.random() < 0.2:
                fallback = rng.choice([p for p in named if not p.needs_matrix])
                program = Program(
                    program.state, program.hypers, program.body, program.update, program.next_state, fallback
                )
        programs.append(program)
    return [print_program(p) for p in programs]


def edited(texts: list[str], rng: random.Random) -> str:
    """A valid text with some stretches deleted, repeated, replaced, or exchanged with another text's."""
    text = rng.choice(texts)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at, width = rng.randint(0, len(text)), rng.choice((0, 0, 1, 1, 2, 5, 20, 100))
        how = rng.random()
        if how < 0.5:
            new = rng.choice(TOKENS)
        elif how < 0.6:
            new = text[at : at + width] * rng.choice((2, 2, 3, 50))
        elif how < 0.7:
            new = chr(rng.choice((rng.randrange(128), rng.randrange(0x110000))))
        elif how < 0.85:
            other = rng.choice(texts)
            start = rng.randint(0, len(other))
            new = other[start : start + rng.randint(0, 60)]
        else:
            new = ""
        text = text[:at] + new + text[at + width :]
    return text


def lines_edited(texts: list[str], rng: random.Random) -> str:
    """A valid text with whole lines dropped, repeated, moved, or taken from another text."""
    lines = rng.choice(texts).split("\n")
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(lines))
        how = rng.randrange(4)
        if how == 0 and len(lines) > 1:
            del lines[at]
        elif how == 1:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif how == 2:
            lines.insert(at, rng.choice(rng.choice(texts).split("\n")))
        else:
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
    return "\n".join(lines)


def words_edited(texts: list[str], rng: random.Random) -> str:
    """A valid text with some words exchanged for other words of it: often still a program."""
    words = WORD.split(rng.choice(texts))
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(words))
        words[at] = rng.choice(words)
    return "".join(words)


def grammatical(_: list[str], rng: random.Random) -> str:
    """Lines of the grammar whose places hold any token."""

    def some() -> str:
        return rng.choice(TOKENS)

    def number() -> str:
        return rng.choice(("0.5", "1.0", "1e-8", some(), repr(rng.uniform(-2, 2))))

    shapes: tuple[Callable[[], str], ...] = (
        lambda: f"hyper {rng.choice(('a', 'b', some()))} = {number()} {rng.choice(('unit', 'log', 'linear', some()))}",
        lambda: f"slot {rng.choice(('m', 'v', some()))} = {number()} {rng.choice(('tensor', 'row', some()))}",
        lambda: f"x{rng.randrange(4)} = {rng.choice(tuple(OPS))}({', '.join(some() for _ in range(rng.randrange(4)))})",
        lambda: f"x0 = {rng.choice(tuple(OPS))}({rng.choice(('g', 'p'))})",
        lambda: f"update {rng.choice(('g', 'x0', some()))}",
        lambda: f"next {rng.choice(('m', 'v', some()))} = {rng.choice(('g', 'x0', some()))}",
        lambda: "fallback",
        some,
    )
    body = [rng.choice(shapes)() for _ in range(rng.randint(0, 8))]
    return "\n".join(["optforge 1", *body, "update g"][rng.random() < 0.05 :])


def noise(_: list[str], rng: random.Random) -> str:
    """Tokens or characters in a row."""
    if rng.random() < 0.5:
        return "optforge 1\n" + " ".join(rng.choice(TOKENS) for _ in range(rng.randint(0, 40)))
    return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x110000)))) for _ in range(rng.randint(0, 60)))


MAKERS = (edited, edited, words_edited, lines_edited, grammatical, noise)


def read(text: str) -> Program | None:
    """The program in `text`, or None if it was refused as it should be; `AssertionError` otherwise."""
    try:
        program = parse_program(text)
    except ProgramError as error:
        message = str(error)
        assert len(message) < 500, f"a message of {len(message)} characters"
        assert len(message.splitlines()) == 1, f"a message of several lines: {message!r}"
        return None
    again = print_program(program)
    assert parse_program(again) == program, "does not round-trip"
    assert len(again) <= MAX_CHARACTERS
    assert len(program.key) == 32
    return program


def check_exports(program: Program, name: str) -> None:
    """Whatever the program and its name are, the exported modules have the syntax tree that a plain name gives."""
    from optforge.primitives.export.one_file import export

    for to in ("torch", "optax"):
        try:
            plain, hostile = (export(program, n, to, provenance=n) for n in ("plain", name))
        except ProgramError:
            continue
        trees = [Counter(type(node).__name__ for node in ast.walk(ast.parse(text))) for text in (plain, hostile)]
        assert trees[0] == trees[1], f"the name {name!r} changes the {to} module's syntax tree"
    export(program, name, "latex")
    text = export(program, name, "text", provenance=name)
    assert parse_program(text).key == program.key, f"the name {name!r} changes the exported text"


def run(cases: int, seed: int, exports: int) -> Counter[str]:
    """Run so many cases; every `exports`-th accepted program is exported, too. Returns what became of them."""
    rng = random.Random(seed)
    texts = corpus(3000 if cases > 50_000 else 200, seed)
    outcome: Counter[str] = Counter()
    for _ in range(cases):
        make = rng.choice(MAKERS)
        text = make(texts, rng)
        try:
            program = read(text)
            outcome["refused" if program is None else "accepted"] += 1
            if program is not None and exports and outcome["accepted"] % exports == 0:
                check_exports(program, rng.choice(HOSTILE_NAMES))
                outcome["exported"] += 1
        except Exception as error:
            print(f"{make.__name__}: {type(error).__name__}: {error}\n{text!r}\n", file=sys.stderr)
            outcome["FAILED"] += 1
    return outcome


def main() -> None:
    """Run, print a line, and exit with 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="how many texts to read (default: 100000)")
    parser.add_argument("--seed", type=int, default=0, help="of the texts (default: 0)")
    parser.add_argument(
        "--exports", type=int, default=200, help="export one accepted program in so many (default: 200)"
    )
    arguments = parser.parse_args()
    begin = time.perf_counter()
    outcome = run(arguments.cases, arguments.seed, arguments.exports)
    print(f"{arguments.cases:,} cases in {time.perf_counter() - begin:.0f} s: {dict(outcome)}")
    sys.exit(1 if outcome["FAILED"] else 0)


if __name__ == "__main__":
    main()
