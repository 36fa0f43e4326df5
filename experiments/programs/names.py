"""Programs by name: how the command line finds the program that an argument means, and what it tells of
one."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from optforge.baselines import BASELINES, NAMED
from optforge.experiments.errors import UserError, nearest
from optforge.experiments.rundirs import existing_run_dir
from optforge.primitives import Program, ProgramError, parse_program
from optforge.primitives.analysis.cost import cost
from optforge.primitives.export.pseudocode import pseudo_code
from optforge.primitives.program import show_arg
from optforge.primitives.text import MAX_CHARACTERS

HALL_OF_FAME = "hall_of_fame.json"
"""In a search's run directory: a list of objects with `rank` (from 1) and `program` (its text), in rank
order."""


def known_ops() -> dict[str, int]:
    """How often each op occurs in the live statements of all baselines' programs."""
    programs = [p for row in BASELINES.values() for p in (row.program, row.program.fallback) if p is not None]
    return dict(Counter(program.body[i].op for program in programs for i in program.live.instructions))


def resolve_program(text: str) -> tuple[str, Program]:
    """The program that an argument means, and a short name for it.

    Args:
        text: a baseline's name (``adamw``), a program file (``mine.txt``), or ``RUN_DIR#RANK``
            (``runs/first#1``), the program of that rank in a search's hall of fame.

    Raises:
        UserError: if there is no such thing, with the nearest valid names.
        ProgramError: if a file or hall of fame holds text that is no program; it names the file and the line.
    """
    if not text.strip():
        raise UserError(
            f"a PROGRAM is missing; name an optimizer ({', '.join([*BASELINES, *NAMED])}), a file or RUN_DIR#RANK"
        )
    if (row := (BASELINES | NAMED).get(text)) is not None:
        return text, row.program
    path = Path(text)
    if _is(path.is_file):
        return path.stem, _parse(_read(path, 4 * MAX_CHARACTERS), text)
    folder, mark, rank = text.rpartition("#")
    if mark:
        return _from_hall_of_fame(Path(folder), rank)
    if _is(path.is_dir):
        raise UserError(f"{text} is a directory; name one of its programs, as in {text.rstrip('/')}#1")
    if path.suffix or "/" in text:
        raise UserError(f"there is no program file {text if text.isprintable() else repr(text)}"[:300])
    raise UserError(
        f"unknown optimizer {text[:80]!r}{nearest(text, [*BASELINES, *NAMED])} "
        f"(optimizers: {', '.join([*BASELINES, *NAMED])}; or name a program file, or RUN_DIR#RANK)"
    )


def usual_rate(text: str) -> float:
    """The learning rate of an optimizer, where none is given.

    Of a baseline the middle of its usual range on a log scale, to one digit; of ``RUN_DIR#RANK`` the one that was tuned
    at the end of its search; else 0.001.
    """
    folder, mark, rank = text.rpartition("#")
    if mark:
        return _tuned_rate(Path(folder) / HALL_OF_FAME, rank)
    if text not in BASELINES:
        return 1e-3
    return float(f"{math.sqrt(math.prod(BASELINES[text].lr_range)):.0e}")


def _tuned_rate(file: Path, rank: str) -> float:
    try:
        rates = {str(row["rank"]): float(row["lr"]) for row in json.loads(_read(file, 100 * MAX_CHARACTERS))}
    except (UserError, ProgramError, ValueError, TypeError, KeyError):  # naming the program will say what is wrong
        return 1e-3
    rate = rates.get(rank.lstrip("0"), 1e-3)
    return rate if math.isfinite(rate) and rate > 0 else 1e-3


def baseline_name(program: Program) -> str | None:
    """Name of the baseline that a program is, in whatever words; None if it is none."""
    return _baseline_names().get(program.key)


@cache
def _baseline_names() -> dict[str, str]:
    return {baseline.program.key: name for name, baseline in BASELINES.items()}


def describe(name: str, program: Program) -> dict[str, Any]:
    """What `optforge show --json` prints: statements, state, cost, hyperparameters, key and pseudo-code of a program.

    ``cost`` is that of a matrix of 1024 by 1024 (see `primitives.analysis.cost`).
    """
    live, live_slots = set(program.live.instructions), set(program.live_state)
    return {
        "name": name,
        "key": program.key,
        "statements": {
            "live": len(live),
            "all": len(program.body),
            "body": [{"name": f"x{i}", "text": str(instr), "live": i in live} for i, instr in enumerate(program.body)],
        },
        "update": show_arg(program.update),
        "state": [
            {
                "name": slot.name,
                "kind": slot.kind.name,
                "init": slot.init,
                "live": slot in live_slots,
                "next": show_arg(arg),
            }
            for slot, arg in zip(program.state, program.next_state, strict=True)
        ],
        "cost": asdict(cost(program)),
        "pseudo_code": pseudo_code(program),
        "hyperparameters": [{"name": h.name, "default": h.default, "scale": h.scale} for h in program.hypers],
        "fallback": None if program.fallback is None else describe(f"{name} fallback", program.fallback),
    }


def _from_hall_of_fame(folder: Path, rank: str) -> tuple[str, Program]:
    file = existing_run_dir(folder) / HALL_OF_FAME
    if not file.is_file():
        raise UserError(f"{folder} has no hall of fame yet ({HALL_OF_FAME}); is it the run directory of a search?")
    try:
        entries = {int(entry["rank"]): entry["program"] for entry in json.loads(_read(file, 100 * MAX_CHARACTERS))}
    except ProgramError as error:
        raise UserError(str(error)) from None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        raise UserError(f"{file} is not a list of ranked programs; was it edited or cut off?") from None
    if not entries:
        raise UserError(f"the hall of fame of {folder} is empty")
    if not (rank.isascii() and rank.isdigit() and len(rank) < 10 and int(rank) in entries):
        raise UserError(f"{folder} has programs #{min(entries)} to #{max(entries)}, not #{rank[:20]}")
    return f"{folder.name}#{int(rank)}", _parse(entries[int(rank)], f"{file}, rank {int(rank)}")


def _read(path: Path, limit: int) -> str:
    """Text of a file of at most `limit` bytes, so that naming the wrong file cannot fill the memory.

    No more than that is ever read: what a file says of its size (nothing, in /proc) is not relied on.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise ProgramError(f"{path} is too large for a program (more than {limit} bytes)")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ProgramError(f"{path} is not a text file (byte {error.start} is not UTF-8)") from None


def _is(question: Callable[[], bool]) -> bool:
    """The answer, and no for what cannot be a path at all (too long, with NUL bytes)."""
    try:
        return question()
    except (OSError, ValueError):
        return False


def _parse(text: str, source: str) -> Program:
    try:
        return parse_program(text)
    except ProgramError as error:
        raise ProgramError(f"{source}: {error}") from None


def unique_names(names: Sequence[str]) -> list[str]:
    """The names in order; one that occurred before gets the first free number: ``adamw``, ``adamw (2)``."""
    taken: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name} ({number})"
        taken.append(candidate)
    return taken
