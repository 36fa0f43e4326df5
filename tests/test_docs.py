"""docs/language.md is current, complete, and its examples work."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from baselines import BASELINES, NAMED
from experiments import docs
from primitives import OPS, SCALES, SIGNALS, Op, parse_program
from primitives.lion45 import LION45
from primitives.rules import RULES
from primitives.testing import check_op

PAGE = docs.PAGE.read_text(encoding="utf-8")


def test_the_page_is_current_whatever_the_hash_seed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.docs", "--check"],
        capture_output=True, text=True, timeout=120, cwd=docs.PAGE.parent.parent,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr}; run: make docs"


def test_everything_is_there() -> None:
    for op in docs.BUILTIN:
        assert len(re.findall(rf"^\| `{op.name}\([wxyz, ]*\)`(?: ⇄)? \| (?:any|.*→.*) \|", PAGE, re.MULTILINE)) == 1, (
            op.name
        )
    for name in (*SIGNALS, *SCALES):
        assert f"\n| `{name}` |" in PAGE
    for name in LION45:
        assert f"\n| {name} |" in PAGE
    for rule in RULES:
        assert f"\n| `{rule.left}` | `{rule.right}` |" in PAGE
    for name in (*BASELINES, *NAMED):
        assert f"\n### {name}\n" in PAGE
    assert PAGE.count("$$") == 2 * PAGE.count("As a file:")


def test_files_in_the_page_are_programs() -> None:
    files = re.findall(r"^```\n(optforge 1\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(files) == 1 + len(BASELINES) + len(NAMED)
    programs = [row.program for row in BASELINES.values()] + [make() for make in NAMED.values()]
    assert [parse_program(text) for text in files[1:]] == programs


def test_the_example_of_an_op_passes_the_checks() -> None:
    code = re.search(r"^```python\n(# my_package/ops.py\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert code is not None
    scope: dict[str, object] = {}
    exec(code[1], scope)
    row = scope["SMOOTH_SIGN"]
    assert isinstance(row, Op)
    assert row.name not in OPS
    check_op(row)


def test_a_stale_page_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "PAGE", tmp_path / "language.md")
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    with pytest.raises(SystemExit, match="make docs"):
        docs.main()
    monkeypatch.setattr(sys, "argv", ["docs"])
    docs.main()
    assert (tmp_path / "language.md").read_text(encoding="utf-8") == docs.language_page()
    (tmp_path / "language.md").write_text("something else")
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    with pytest.raises(SystemExit, match="is stale"):
        docs.main()


def test_the_study_of_fingerprints_is_published() -> None:
    text = (docs.PAGE.parent / "fingerprints.md").read_text(encoding="utf-8")
    drawn = re.search(r"^\| programs drawn \|.*\| ([0-9,]+) \|$", text, re.MULTILINE)
    assert drawn is not None and int(drawn[1].replace(",", "")) >= 20_000
    assert "python -m experiments.fingerprint_study" in text
