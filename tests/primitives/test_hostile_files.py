"""What the command line reads from disk may hold anything: a sentence comes out, in bounded time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from optforge.baselines import BASELINES
from optforge.experiments.errors import UserError
from optforge.experiments.programs import HALL_OF_FAME, resolve_program
from optforge.primitives import ProgramError, print_program

GOOD = "optforge 1\nx0 = sign(g)\nupdate x0\n"

FILES = {
    # name: (bytes of the file, what the sentence says)
    "not UTF-8": (GOOD.encode() + b"# \xff\xfe", r"not a text file \(byte 36 is not UTF-8\)"),
    "UTF-16": (GOOD.encode("utf-16"), "not a text file"),
    "NUL bytes": (GOOD.replace("sign", "si\0gn").encode(), r"line 2: 'x0 = si\\x00gn\(g\)'"),
    "NUL bytes only": (b"\0" * 100_000, "expected the first line|longer than"),
    "nothing": (b"", "got nothing"),
    "truncated": (GOOD.encode()[:25], "line 3: 'u'|no update line|truncated|line 2"),
    "truncated in a letter": ("optforge 1\n# é".encode()[:-1], "not a text file"),
    "wrong version": (GOOD.replace("1", "2", 1).encode(), "got 'optforge 2'"),
    "a pickle": (b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94", "not a text file"),
    "too large": (b"#" * 4_000_001, "too large for a program"),
    "too many characters": (b"#\n" * 500_001, "at most 1000000 are allowed"),
    "a million instructions": (
        b"optforge 1\n" + b"".join(b"x%d = neg(g)\n" % i for i in range(10**6)) + b"update g\n", "too large"),
    "deep nesting": (b"optforge 1\nx0 = " + b"neg(" * 10**5 + b"g" + b")" * 10**5, "line 2: longer than 400"),
    "huge constant": (b"optforge 1\nx0 = mul(g, 1e99999)\nupdate x0", "line 2: .*is neither"),
    "long constant": (b"optforge 1\nx0 = mul(g, " + b"9" * 350 + b")\nupdate x0", "constant inf is not a finite float"),
    "huge default": (b"optforge 1\nhyper a = 1e9999 linear\nupdate g", "line 2: .*inf is outside"),
    "quotes": (b"optforge 1\nhyper a\"b = 1 linear\nupdate g", "line 2: .*expected 'hyper'"),
    "code as a name": (b"optforge 1\nslot __import__('os').system('touch x') = 0 tensor\nupdate g", "line 2: "),
    "dunder": (b"optforge 1\nslot __class__ = 0 tensor\nupdate g\nnext __class__ = g", "is not a lower-case"),
    "code as an op": (b"optforge 1\nx0 = exec(g)\nupdate x0", "unknown op 'exec'"),
    "format string": (b"optforge 1\nx0 = mul(g, {0.__class__})\nupdate x0", "line 2: "),
    "terminal codes": (b"optforge 1\nupdate \x1b[2J", r"line 2: 'update \\x1b\[2J'"),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", FILES)
def test_hostile_program_files(tmp_path: Path, name: str) -> None:
    data, message = FILES[name]
    file = tmp_path / "program.txt"
    file.write_bytes(data)
    with pytest.raises(ProgramError, match=message) as caught:
        resolve_program(str(file))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500 + len(str(file))
    assert list(tmp_path.iterdir()) == [file], "nothing was executed"


HALLS = {
    "not UTF-8": b"\xff",
    "deep nesting": b"[" * 100_000,
    "huge number": b'[{"rank": 1e999, "program": ""}]',
    "long number": b'[{"rank": ' + b"9" * 5000 + b', "program": ""}]',
    "no list": b"7",
    "empty": b"[]",
    "no text": b'[{"rank": 1, "program": 7}]',
    "no program": json.dumps([{"rank": 1, "program": "import os"}]).encode(),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HALLS)
def test_hostile_halls_of_fame(tmp_path: Path, name: str) -> None:
    (tmp_path / HALL_OF_FAME).write_bytes(HALLS[name])
    for rank in ("1", "", "x", "-1", "9" * 5000, "¹"):
        with pytest.raises((UserError, ProgramError)) as caught:
            resolve_program(f"{tmp_path}#{rank}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["a" * 5000, "x/" * 3000, "a\0b", "a\nb.txt", "\x1b[2J.txt", "#", "##1", ".", "/", ""])
def test_hostile_arguments(text: str) -> None:
    with pytest.raises((UserError, ProgramError)) as caught:
        resolve_program(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 700


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs /dev/zero")
def test_endless_files_are_not_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no program file /dev/zero"):
        resolve_program("/dev/zero")


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Four million instructions are refused by a process that may have little more memory than importing takes."""
    file = tmp_path / "large.txt"
    with file.open("wb") as out:
        out.write(b"optforge 1\n")
        for _ in range(40):
            out.write(b"x0 = neg(g)\n" * 100_000)
    code = (
        "import resource\nfrom optforge.experiments.programs import resolve_program\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try:\n    resolve_program({str(file)!r})\nexcept Exception as error:\n    print(type(error).__name__)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    name, kilobytes = done.stdout.split()
    assert name == "ProgramError", done.stderr
    assert int(kilobytes) < 32_000


def test_a_byte_order_mark_as_editors_write_it_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "lion.txt"
    path.write_bytes(b"\xef\xbb\xbf" + print_program(BASELINES["lion"].program).encode())
    assert resolve_program(str(path)) == ("lion", BASELINES["lion"].program)
