"""What `make docs` writes is current, complete, readable on GitHub, and its examples work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from optforge.baselines import BASELINES, NAMED
from optforge.experiments.cli import app
from optforge.experiments.docs import __main__ as written
from optforge.experiments.docs import language, optimizers, tasks
from optforge.experiments.docs.rendering import linked
from optforge.experiments.report.listings import named_programs
from optforge.experiments.report.markdown import math_block
from optforge.experiments.tasks import TASKS
from optforge.experiments.tasks.file_tasks import FILE_TASKS
from optforge.experiments.tasks.transformers import SIZES
from optforge.primitives import OPS, SCALES, SIGNALS, Builder, Op, ProgramOptimizer, parse_program
from optforge.primitives.analysis.rules import RULES
from optforge.primitives.export.pseudocode import pseudo_code
from optforge.primitives.lion45 import LION45
from optforge.primitives.testing import check_op

PAGE = language.PAGE.read_text(encoding="utf-8")
OPTIMIZERS = optimizers.PAGE.read_text(encoding="utf-8")


def test_the_pages_are_current_whatever_the_hash_seed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "optforge.experiments.docs", "--check"],
        capture_output=True, text=True, timeout=120, cwd=language.PAGE.parent.parent,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr}; run: make docs"


def test_everything_is_there() -> None:
    for op in language.BUILTIN:
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
    assert PAGE.count("```math\n") == PAGE.count("As a file:")


def test_files_in_the_page_are_programs() -> None:
    files = re.findall(r"^```\n(optforge 1\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(files) == 1 + len(BASELINES) + len(NAMED)
    programs = [row.program for row in (BASELINES | NAMED).values()]
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
    monkeypatch.setattr(written, "pages", lambda: {tmp_path / "language.md": language.language_page()})
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    with pytest.raises(SystemExit, match="make docs"):
        written.main()
    monkeypatch.setattr(sys, "argv", ["docs"])
    written.main()
    assert (tmp_path / "language.md").read_text(encoding="utf-8") == language.language_page()
    (tmp_path / "language.md").write_text("something else")
    monkeypatch.setattr(sys, "argv", ["docs", "--check"])
    with pytest.raises(SystemExit, match="is stale"):
        written.main()


# optimizers


def sections() -> dict[str, str]:
    """The part of the page that each optimizer has."""
    parts = re.split(r"^### (.*)\n", OPTIMIZERS, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_optimizer_has_a_section_with_everything() -> None:
    assert list(sections()) == [*BASELINES, *NAMED]
    for name, text in sections().items():
        program = named_programs()[name]
        assert len(re.findall(r"^```math\n\\begin.*?^```$", text, re.MULTILINE | re.DOTALL)) == 1
        assert f"```\n{pseudo_code(program)}\n```\n" in text
        assert "**When to use:** " in text and "\n- State: " in text and "\n- Source: " in text
        assert len(text.split("**When to use:**")[0]) > 60, f"{name} has no idea"
        assert f"| [{name}](#{name}) |" in OPTIMIZERS
        row = BASELINES.get(name)
        assert row is None or "- Usual learning rate: {:g} to {:g}.".format(*row.lr_range) in text


@pytest.mark.parametrize("page", [PAGE, OPTIMIZERS], ids=["language", "optimizers"])
def test_formulas_are_shown_by_github(page: str) -> None:
    """It refuses some macros, and in a block between dollars it eats double backslashes within a line."""
    formulas = re.findall(r"^```math\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(formulas) == len(BASELINES) + len(NAMED) and "$$" not in page
    for text in formulas:
        assert not re.search(r"\\(operatorname|mbox|phantom|def|newcommand|DeclareMathOperator)\b", text)
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
        assert text.count(r"\left") - text.count(r"\leftarrow") == text.count(r"\right")


def test_names_of_several_letters_are_set_apart() -> None:
    b = Builder()
    speed, size = b.hyper("speed", 1.0), b.hyper("size", 1.0)
    m = b.slot("total")
    m.next = b.rms(b.g) * size * speed * (m + b.g)
    text = math_block(b.build(m.next))
    product = text.split("\n")[2].split(r"\leftarrow")[1]
    assert r"\mathrm{size} \, \mathrm{speed} \, \left(" in product
    assert r"\mathop{\mathrm{rms}}\nolimits\left(g\right)" in product
    assert r"\, \right" not in text and r"\, +" not in text and r"\, \leftarrow" not in text


def test_pictures_are_there_and_small() -> None:
    shown = re.findall(r"!\[[^]]+\]\((.*?)\)", OPTIMIZERS)
    assert len(shown) == 3
    for name in shown:
        size = (optimizers.PAGE.parent / name).stat().st_size
        assert size < (1_000_000 if name.endswith("gif") else 200_000)


def test_the_example_of_the_page_runs() -> None:
    code = re.search(r"^```python\n(.*?)^```$", OPTIMIZERS, re.MULTILINE | re.DOTALL)
    assert code is not None
    scope: dict[str, Any] = {}
    exec(code[1], scope)
    assert isinstance(scope["optimizer"], ProgramOptimizer)


def test_sources_become_links() -> None:
    assert linked("A 1964, doi:10.1016/0041-5553(64)90137-5; B, arXiv:1711.05101, § 2") == (
        "A 1964, [doi:10.1016/0041-5553(64)90137-5](https://doi.org/10.1016/0041-5553%2864%2990137-5); "
        "B, [arXiv:1711.05101](https://arxiv.org/abs/1711.05101), § 2"
    )
    assert linked("C, https://x.org/y.pdf; D") == "C, [x.org/y.pdf](https://x.org/y.pdf); D"


# tasks


def test_every_task_has_a_row_with_everything() -> None:
    page = tasks.PAGE.read_text(encoding="utf-8")
    for name, task in TASKS.items():
        (row,) = re.findall(rf"^\| `{name}` \|.*\|$", page, re.MULTILINE)
        target = "–" if task.target is None else f"{task.target:g}"
        for cell in (task.summary, task.metric, target, str(task.steps), str(task.batch_size), task.licence):
            assert f"| {cell} |" in row
        assert name not in FILE_TASKS or row.endswith(f"| `{FILE_TASKS[name].place.where}` |")
    sizes = re.findall(r"^\| `(\w+)` \| \d+ \| .* ([0-9,]+) \| [0-9,]+ \|$", page, re.MULTILINE)
    assert [name for name, _ in sizes] == list(SIZES) and sizes[-1][1] == "124,439,808"  # GPT-2's smallest
    assert "<" not in page.replace("<|endoftext|>", "")  # whatever a template would have left


def test_the_task_of_the_page_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tasks.PAGE.read_text(encoding="utf-8")
    code = re.search(r"^```python\n# sines.py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    commands = re.findall(r"^optforge (.* --task sines.py)$", page, re.MULTILINE)
    assert code is not None and len(commands) == 2
    monkeypatch.chdir(tmp_path)
    Path("sines.py").write_text(code[1])
    for command in commands:
        few = (
            ["--steps", "20", "--seeds", "2", "--tune-seeds", "1", "--trials", "1"]
            if command.startswith("compare")
            else []
        )
        done = CliRunner().invoke(app, [*command.split(), *few])
        assert done.exit_code == 0, done.output
    result = json.loads(Path("runs/train-sines-1/result.json").read_text())
    assert result["valid_loss"] < 0.1  # the variance of a sine is about a half


# commands

ROOT = language.PAGE.parent.parent


def commands(text: str) -> list[str]:
    """What stands after `optforge` in code, in lines or in blocks, without comments and line breaks."""
    text = text.replace("\\\n", " ")
    lines = re.findall(r"^(?:\$ )?optforge ([a-z].*)$", text, re.MULTILINE)
    return [line.split("  #")[0] for line in [*lines, *re.findall(r"`optforge ([a-z][^`]*)`", text)]]


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.stem)
def test_commands_are_spelled_as_they_are(page: Path) -> None:
    """Every command in a page is one, and has the options that it is given there; nothing is run."""
    known = get_command(app)
    for command in commands(page.read_text(encoding="utf-8")):
        name, *words = command.split()
        assert name in known.commands, command  # type: ignore[attr-defined]
        try:
            known.commands[name].make_context(name, words or [])  # type: ignore[attr-defined]
        except Exception as error:  # of the command line's own copy of click
            incomplete = ("MissingParameter", "NoArgsIsHelpError", "BadOptionUsage")  # spoken of, not to be typed
            assert type(error).__name__ in incomplete, f"{page.name}: optforge {command}: {error}"
