"""The commands that look at one program: what they print and write, their exit codes, and what they refuse."""

from __future__ import annotations

import ast
import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from optforge.baselines import BASELINES, NAMED
from optforge.experiments.cli import app
from optforge.primitives import Builder, Kind, parse_program, print_program
from optforge.primitives.analysis.formula import latex, unicode_text
from optforge.primitives.analysis.simplify import simplify
from optforge.primitives.export.pseudocode import pseudo_code

PROGRAMS = {name: row.program for name, row in (BASELINES | NAMED).items()}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Call the command line in an empty folder; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout, result.stderr

    return call


def refused(outcome, *parts):
    code, out, err = outcome
    assert (code, out) == (2, "") and err.startswith("optforge: ") and err.count("\n") == 1
    return all(part in err for part in parts)


@pytest.fixture
def rows_and_columns(tmp_path):
    b = Builder()
    rows = b.slot("rows", Kind.ROW)
    rows.next = b.lerp(rows, b.row_mean(b.square(b.g)), 0.1)
    program = b.build(b.g / (b.sqrt(rows.next) + 1e-8), PROGRAMS["lion"])
    (tmp_path / "mine.txt").write_text(print_program(program))
    return program


@pytest.mark.parametrize("command", ["simplify", "export", "certify", "equivalent"])
def test_help_has_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0 and f"optforge {command} " in out.split("Usage:")[1].split("Example")[1]


# show


@pytest.mark.parametrize("name", PROGRAMS)
def test_show_in_every_form(run, name):
    program = PROGRAMS[name]
    assert run("show", name, "--latex") == (0, latex(program) + "\n", "")
    assert run("show", name, "--unicode") == (0, unicode_text(program) + "\n", "")
    assert run("show", name, "--pseudo") == (0, pseudo_code(program) + "\n", "")
    code, out, _ = run("show", name)
    assert code == 0 and parse_program(out) == program
    assert all(f"#   {line}" in out.splitlines() for line in pseudo_code(program).splitlines())


def test_show_tells_the_cost(run, rows_and_columns):
    _, out, _ = run("show", "lion")
    assert "# 4 bytes of state" in out and "# 11 flops, and 20 bytes that must move (68 if" in out
    about = json.loads(run("show", "mine.txt", "--json")[1])
    assert about["cost"]["state_bytes"] == 4 / 1024 and about["fallback"]["cost"]["state_bytes"] == 4
    assert about["pseudo_code"] == pseudo_code(rows_and_columns)


def test_show_takes_one_form(run):
    assert refused(run("show", "lion", "--latex", "--json"), "--json and --latex cannot be had together")


# simplify


def test_the_raw_find_becomes_lion(run):
    code, out, err = run("simplify", "lion-raw-ablated", "--json", "-")
    found = json.loads(out)
    assert (code, err) == (0, "")
    ops = Counter(text.split(" = ")[1].partition("(")[0] for text in found["statements"])
    assert ops["sign"] == 1 and ops["lerp"] == 2 and not ops.keys() & {"div", "sqrt", "cosh", "square"}
    assert [s["name"] for s in found["state"]] == ["v"]
    assert any("0.99699" in text for text in found["statements"])
    assert found["before"]["slots"] == 2 and found["after"]["slots"] == 1
    assert found["before"]["key"] == PROGRAMS["lion-raw-ablated"].key != found["after"]["key"]
    assert parse_program(found["program"]) == simplify(PROGRAMS["lion-raw-ablated"])
    assert {"left": "sqrt(square(x))", "right": "abs(x)", "times": 1} in found["rules"]


def test_simplify_for_people_can_be_read_back(run, tmp_path):
    code, out, _ = run("simplify", "lion-raw", "--json", "out.json")
    assert code == 0 and parse_program(out) == simplify(PROGRAMS["lion-raw"])
    assert "# lion-raw: 11 statements before, 8 after; 2 slots before, 1 after" in out
    assert "# sqrt(square(x)) = abs(x)" in out and "#   v ← lerp(" in out
    assert json.loads((tmp_path / "out.json").read_text())["name"] == "lion-raw"


def test_simplify_refuses_what_it_cannot_write(run, tmp_path):
    assert refused(run("simplify", "lion", "--json", "none/out.json"), "--json none/out.json", "there is no folder")
    assert refused(run("simplify", "lino"), "did you mean lion")
    assert list(tmp_path.iterdir()) == []


# export


@pytest.mark.parametrize("to", ["torch", "optax"])
def test_export_to_a_file(run, tmp_path, to):
    code, out, _ = run("export", "lion-raw", "--to", to, "--output", "raw.py")
    source = (tmp_path / "raw.py").read_text()
    names = {n.name for n in ast.parse(source).body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    assert code == 0 and "raw.py" in out and {"torch": "LionRaw", "optax": "lion_raw"}[to] in names
    assert "# exported from: lion-raw" in source and "# by: optforge " in source


def test_export_to_the_terminal(run):
    code, out, err = run("export", "adamw", "--to", "text")
    assert (code, err) == (0, "") and parse_program(out) == PROGRAMS["adamw"]
    assert r"\theta &\leftarrow" in run("export", "adamw", "--to", "latex")[1]
    assert "class Adamw(Optimizer):" in run("export", "adamw")[1]


def test_export_of_a_program_with_a_hostile_file_name(run, tmp_path):
    name = 'x"""; import os; os.system("touch hacked") #.txt'
    (tmp_path / name).write_text(print_program(PROGRAMS["lion"]))
    code, out, _ = run("export", name)
    body = ast.parse(out).body
    assert code == 0 and not any(isinstance(n, ast.Expr) for n in body)
    assert {a.name for n in body if isinstance(n, ast.Import) for a in n.names} == {"difflib", "math", "torch"}


def test_export_refuses_other_formats_and_places(run):
    assert refused(run("export", "lion", "--to", "keras"), "choose one of torch, optax, latex, text")
    assert refused(run("export", "lion", "--output", "."), "--output . cannot be written")


# certify


def test_certify(run, rows_and_columns):
    code, out, _ = run("certify", "lion")
    assert code == 0 and "does not change the update" in out and PROGRAMS["lion"].key in out
    found = json.loads(run("certify", "mine.txt", "--json")[1])
    assert found["scaling"] == "invariant" and found["bounded_state"] and found["key"] == rows_and_columns.key
    assert found["state_bytes"] == 4 / 1024 and found["fallback"]["state_bytes"] == 4
    assert len(found["sentences"]) == 7
    assert "mine, for parameters without rows and columns" in run("certify", "mine.txt")[1]


# equivalent


def test_equivalent_says_which_of_three(run, tmp_path):
    begin = "optforge 1\nslot v = 0.0 tensor\nx0 = lerp(g, v, 0.996991)\nx1 = lerp(g, v, 0.899)\nx2 = sign(x1)\n"
    end = "x3 = mul(p, 0.4602)\nx4 = add(x2, x3)\n{}next v = x0\n"
    (tmp_path / "lion.txt").write_text(begin + end.format("x5 = mul(x4, 0.0002)\nupdate x5\n"))
    (tmp_path / "scaled.txt").write_text(begin + end.format("update x4\n"))
    code, out, _ = run("equivalent", "lion-raw-ablated", "lion.txt")
    assert code == 0 and out.startswith("lion-raw-ablated and lion are the same rule, in exact arithmetic: ")
    assert out.count("\n") == 1
    code, out, _ = run("equivalent", "lion-raw-ablated", "scaled.txt")
    assert code == 1 and " are not the same rule: on probe " in out
    code, out, _ = run("equivalent", "lion-raw-ablated", "scaled.txt", "--up-to-rate")
    assert code == 0 and "up to the learning rate, in exact arithmetic: " in out and "1 : 5000" in out


def test_equivalent_may_not_know(run, tmp_path):
    for name, text in {"one": "exp(x0)", "two": "square(x1)"}.items():
        lines = f"x0 = add(g, g)\nx1 = exp(g)\nx2 = {text}\nupdate x2\n"
        (tmp_path / f"{name}.txt").write_text(f"optforge 1\n{lines}")
    code, out, _ = run("equivalent", "one.txt", "two.txt")
    assert code == 3 and out.startswith("it is not decided whether one and two are the same rule: ")


def test_equivalent_refuses_unknown_programs(run):
    assert refused(run("equivalent", "lion", "lino"), "did you mean lion")
