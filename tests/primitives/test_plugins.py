"""Ops from other distributions, found through the metadata of what is installed, without pip."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from optforge.primitives import OPS, Builder, Instr, Program, ProgramError, parse_program, print_program, subset
from optforge.primitives.ops import get_op, load_plugins
from optforge.primitives.testing import check_op

ROW = """
from optforge.primitives import Op

ROW = Op("{name}", 1, "torch.sinc({{0}})", None, domain=("real",), source="sin(pi x) / (pi x)", flops=20)
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, as site-packages is, into which `install` puts distributions."""
    known = dict(OPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(OPS, "failures", None)
    yield tmp_path
    for name in OPS.keys() - known.keys():
        del OPS[name]
    for module in [m for m in sys.modules if m.startswith("plugin_of_")]:
        del sys.modules[module]


def install(site: Path, name: str, code: str, target: str = "ROW") -> None:
    """A distribution `name` with one module and one entry point."""
    module = "plugin_of_" + name.replace("-", "_")
    (site / f"{module}.py").write_text(code)
    info = site / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[optforge.ops]\nrow = {module}:{target}\n")


def test_first_unknown_op_loads_the_plugins(site: Path) -> None:
    install(site, "cardinal-sine", ROW.format(name="sinc"))
    assert "sinc" not in OPS
    program = parse_program("optforge 1\nx0 = sinc(g)\nupdate x0\n")
    assert program == Program((), (), (Instr("sinc", ("g",)),), 0, ())
    assert parse_program(print_program(program)).key == program.key
    check_op(OPS["sinc"])


def test_known_ops_load_nothing(site: Path) -> None:
    install(site, "never-loaded", "raise SystemExit('imported')")
    parse_program("optforge 1\nx0 = sign(g)\nupdate x0\n")
    assert OPS.failures is None


def test_builder_and_subsets_know_the_rows(site: Path) -> None:
    install(site, "cardinal-sine", ROW.format(name="sinc"))
    assert subset("elementwise")[-1] == subset("all")[-1] == "sinc"
    b = Builder()
    assert b.build(b.sinc(b.g)).body == (Instr("sinc", ("g",)),)
    with pytest.raises(AttributeError, match=r"'sinq'.*did you mean .*sinc"):
        b.sinq  # noqa: B018


def test_several_rows(site: Path) -> None:
    code = ROW.format(name="sinc") + "import dataclasses\n" + (
        "def rows():\n    yield ROW\n    yield dataclasses.replace(ROW, name='sinc2', torch='torch.sinc({0} * 2)')\n"
        "ROWS = rows()\n"
    )  # fmt: skip
    install(site, "two-rows", code, "ROWS")
    load_plugins()
    assert {"sinc", "sinc2"} <= OPS.keys()
    load_plugins(again=True)  # the generator is used up, which is no mistake


def test_loading_again_registers_nothing_twice(site: Path) -> None:
    install(site, "cardinal-sine", ROW.format(name="sinc"))
    load_plugins()
    install(site, "another", ROW.format(name="sinc3"))
    load_plugins()
    assert "sinc3" not in OPS
    load_plugins(again=True)
    assert "sinc3" in OPS


BROKEN = {
    # name: (code, target, what the sentence says besides the distribution)
    "raises": ("1 / 0", "ROW", "cannot be loaded: ZeroDivisionError"),
    "syntax": ("def", "ROW", "cannot be loaded: SyntaxError"),
    "no-such-name": ("", "ROW", "cannot be loaded: AttributeError"),
    "no-row": ("ROW = 7", "ROW", "must be an Op or several, not int"),
    "text": ("ROW = 'add'", "ROW", "must be an Op or several, not str"),
    "no-rows": ("ROW = [7]", "ROW", "is refused: expected an Op, got int"),
    "clash": (ROW.format(name="add"), "ROW", "is refused: op 'add' is already in the table"),
    "bad-name": (ROW.format(name="not a name"), "ROW", "is refused: op name 'not a name' is reserved or not"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_plugins_are_told_in_one_sentence(site: Path, name: str) -> None:
    code, target, sentence = BROKEN[name]
    install(site, name, code, target)
    install(site, "working", ROW.format(name="sinc"))
    for _ in range(2):  # and not forgotten the second time
        with pytest.raises(ProgramError, match=f"'{name}' {sentence}") as caught:
            load_plugins()
        assert "\n" not in str(caught.value)
    with pytest.raises(ProgramError, match=f"unknown op 'sing'; did you mean .*sin.*; the plug-in 'row' .*'{name}'"):
        get_op("sing")
    assert get_op("sinc").name == "sinc", "the others still work"
    assert get_op("add").torch == "{0} + {1}"


def test_a_pickled_program_finds_its_plugin_in_another_process(site: Path) -> None:
    install(site, "cardinal-sine", ROW.format(name="sinc"))
    data = pickle.dumps(parse_program("optforge 1\nx0 = sinc(g)\nupdate x0\n"))
    code = (
        f"import sys, pickle; sys.path.insert(0, {str(site)!r}); import torch; p = pickle.loads({data!r})\n"
        "from optforge.primitives import execute\nprint(execute(p, {'g': torch.zeros(2)}).update.tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[1.0, 1.0]", done.stderr
