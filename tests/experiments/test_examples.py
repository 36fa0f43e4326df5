"""The examples run, with small budgets, and the pages for beginners say what works."""

from __future__ import annotations

import random
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from support.strategies import random_gradients
from typer.testing import CliRunner

from optforge.baselines import BASELINES
from optforge.experiments.cli import app
from optforge.primitives import ProgramOptimizer, parse_program, subset
from optforge.search.space.draft import Space

ROOT = Path(__file__).resolve().parents[2]
DOCS, EXAMPLES = ROOT / "docs", ROOT / "experiments" / "examples"
SMALL = {
    "search_for_a_rule.py": (["--programs", "32", "--steps", "10"], r"32 programs, best[^\0]*\np ← p - lr \* update\n"),
    "compare_optimizers.py": (["--seeds", "2", "--steps", "10"], r"On digits, [^\0]*\nadamw +test loss \d.* 8 B/par"),
}


@pytest.mark.parametrize("name", SMALL)
def test_examples_run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words, said = SMALL[name]
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    out = capsys.readouterr().out
    assert re.search(said, out), out


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_examples_are_named() -> None:
    page = (DOCS / "quickstart.md").read_text(encoding="utf-8")
    for file in EXAMPLES.glob("*.py"):
        assert file.name == "__init__.py" or f"`{file.name}`" in page, f"name {file.name} in docs/quickstart.md"


@pytest.mark.slow
def test_the_quick_start_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line of it, at a small length; its search is as long as it says, in programs."""
    monkeypatch.chdir(tmp_path)
    for code in blocks("quickstart.md", "python"):
        exec(code, scope := dict[str, Any]())
        assert isinstance(scope["optimizer"], ProgramOptimizer)
    (rule,) = blocks("quickstart.md", "text")
    Path("mine.txt").write_text(rule)
    short = ["--tasks", "proxy-teacher,proxy-curves", "--programs", "32", "--steps", "10", "--workers", "0"]
    few = {"train": ["--steps", "5"], "search": short}
    commands = [line for part in blocks("quickstart.md", "sh") for line in part.splitlines()]
    for command in commands:
        words = shlex.split(command.split(" # ")[0])
        if words[0] == "optforge":
            done = CliRunner().invoke(app, [*words[1:], *few.get(words[1], [])])
            assert done.exit_code == 0, (command, done.output)
    assert len(commands) > 8 and Path("best.py").exists()


def test_a_rule_of_yours_trains() -> None:
    """The pages' programs: what they are, and that they move against the gradient."""
    scope: dict[str, Any] = {}
    for code in blocks("extending.md", "python"):
        exec(code, scope)
    rules = [scope["program"](), parse_program(blocks("quickstart.md", "text")[0])]
    for rule in rules:
        p = random_gradients((5, 3), 0, 0)[0]
        before = float(p.square().sum())
        p.requires_grad_()
        optimizer = ProgramOptimizer([p], rule, lr=0.01)
        for _ in range(20):
            optimizer.zero_grad()
            p.square().sum().backward()
            optimizer.step()
        assert float(p.detach().square().sum()) < before


def test_the_mutation_of_the_page_mutates() -> None:
    scope: dict[str, Any] = {}
    for code in blocks("extending.md", "python"):
        exec(code, scope)
    program, space = BASELINES["adamw"].program, Space(subset("all"))
    child = scope["halve"](program, space, random.Random(0))
    assert child != program and [i.op for i in child.body] == [i.op for i in program.body]
    assert scope["halve"](parse_program("optforge 1\nupdate g\n"), space, random.Random(0)) is None


def test_what_a_page_for_contributors_names_is_there() -> None:
    page = (DOCS / "extending.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:\w+/)+\w+\.py)`", page):
        assert (ROOT / path).is_file(), path
