"""The command line in surroundings that are not ours: encodings, a notebook's variables, odd paths, other processes;
and what it leaves behind for scripts, its exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optforge.experiments.cli import app
from optforge.search.training.store import Store

OPTFORGE = [sys.executable, "-m", "optforge.experiments.cli"]


def run(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.run([*OPTFORGE, *words], cwd=folder, env=environment, capture_output=True, timeout=150)


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_characters_that_a_terminal_has_not_are_replaced(tmp_path: Path, encoding: str) -> None:
    variables = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "PYTHONIOENCODING": encoding}
    done = run(tmp_path, "show", "lion", "--pseudo", **variables)
    assert done.returncode == 0, done.stderr
    assert "m ? lerp(m, g, 1 - beta2)" in done.stdout.decode(encoding)
    assert run(tmp_path, "show", "αβγ", **variables).returncode == 2


def test_the_drawing_backend_of_a_notebook_is_not_needed(tmp_path: Path) -> None:
    done = run(tmp_path, "train", "--steps", "2", MPLBACKEND="module://a_notebook_elsewhere.backend")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["which?best", "x%41y", "a{b}", "a#b", "a b&c=d"])
def test_storages_are_where_their_path_says(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    Store(folder / "trials.sqlite").close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [path.name for path in folder.iterdir()] == ["trials.sqlite"]
    Store(folder / "trials.sqlite", read_only=True).close()


def test_a_comparison_stays_in_its_directory(tmp_path: Path) -> None:
    words = ["compare", "adamw", "--task", "quadratic", "--steps", "5", "--trials", "2", "--seeds", "2"]
    assert run(tmp_path, *words, "--run-dir", "100%41?").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["100%41?"]
    assert (tmp_path / "100%41?" / "store.sqlite").is_file()


def test_processes_that_create_one_storage_at_once_all_get_it(tmp_path: Path) -> None:
    script = "import sys, pathlib, optforge.search.training.store as s; s.Store(pathlib.Path(sys.argv[1]))"
    for attempt in range(3):
        command = [sys.executable, "-c", script, str(tmp_path / f"{attempt}.sqlite")]
        processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
        said = [process.communicate(timeout=150)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0, 0], said


def test_exit_codes_tell_what_became_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 done, 1 diverged or failed, 2 misuse; 130 is in the tests of interrupts."""
    (tmp_path / "wild.txt").write_text("optforge 1\nx0 = mul(g, 1e20)\nupdate x0\n")
    codes = {
        ("train", "--steps", "2"): 0,
        ("train", "--steps", "9", "--lr", "1e20"): 1,
        ("train", "--steps", "9", "--lr", "1e20", "--checkpoint-every", "3", "--run-dir", "kept"): 1,
        ("train", "--task", "none"): 2,
        ("train", "--steps", "0"): 2,
        ("ablate", "wild.txt", "--steps", "9", "--seeds", "2"): 1,
        ("tune", "wild.txt", "--task", "quadratic", "--trials", "1", "--steps", "9"): 1,
        ("equivalent", "adam", "adam"): 0,
        ("equivalent", "adam", "lion"): 1,
        ("report", "nowhere"): 2,
    }
    monkeypatch.chdir(tmp_path)
    assert {words: CliRunner().invoke(app, words).exit_code for words in codes} == codes
    said = " ".join(re.sub("[^a-z0-9;]+", " ", CliRunner().invoke(app, ["--help"]).output.lower()).split())
    assert "0 done; 1 diverged or failed; 2 what" in said and "130 interrupted" in said
