"""`optforge score`: the search's own score of any programs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optforge.baselines import BASELINES
from optforge.experiments.cli.commands import app
from optforge.experiments.searching.run import evaluator

SHORT = ["--tasks", "proxy-teacher,proxy-curves", "--steps", "20", "--workers", "0"]


def test_scores_are_the_evaluators_with_standard_errors(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    result = CliRunner().invoke(app, ["score", "lion", *SHORT, "--seeds", "2", "--json", str(file)])
    assert result.exit_code == 0, result.output
    written = json.loads(file.read_text())
    lion, adamw = written["programs"]
    assert (lion["name"], adamw["name"], adamw["score"], adamw["se"]) == ("lion", "adamw", 0.0, 0.0)
    suite = evaluator(("proxy-teacher", "proxy-curves"), steps=20)
    rules = [BASELINES["lion"].program, BASELINES["adamw"].program]
    seeds = [suite(rules, generation)[0] for generation in (-1, -2)]
    assert lion["by_seed"] == pytest.approx([f.score for f in seeds], rel=1e-6)
    first, second = lion["by_seed"]
    assert lion["score"] == pytest.approx((first + second) / 2)
    assert lion["se"] == pytest.approx(abs(first - second) / 2)  # of two: their distance over √2, over √2
    assert lion["tasks"]["proxy-curves"]["rates"] == pytest.approx([f.parts[1].lr for f in seeds], rel=1e-6)
    assert f"{lion['score']:.3f} ± {lion['se']:.3f}" in result.stdout


def test_one_seed_has_no_standard_error_and_a_diverged_program_is_shown_as_such(tmp_path: Path) -> None:
    program = tmp_path / "bad.txt"
    program.write_text("optforge 1\nx0 = mul(g, -1e30)\nx1 = square(x0)\nx2 = mul(x1, x0)\nupdate x2\n")
    file = tmp_path / "scores.json"
    words = ["score", str(program), "adamw", *SHORT, "--seeds", "1", "--json", str(file)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    bad, adamw = json.loads(file.read_text())["programs"]
    assert bad["score"] is None and adamw["se"] is None and math.isclose(adamw["score"], 0)
    assert "diverged" in result.stdout and "nan" not in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "lyon", *SHORT], "unknown optimizer 'lyon'"),
        (["score", "lion", "--tasks", "proxy-teachers"], "unknown task 'proxy-teachers'"),
        (["score", "lion", *SHORT, "--json", "/no/such/folder/x.json"], "--json"),
    ],
)
def test_bad_requests_get_a_sentence(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and message in result.stderr and "Traceback" not in result.output
