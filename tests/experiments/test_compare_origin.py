"""What a comparison says of programs that a search found, in whatever words search and tasks are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optforge.baselines import BASELINES
from optforge.experiments.cli.compare_command import QUICK_SUITE, Asked, make_plan
from optforge.experiments.compare.origin import bred_on, origin, origin_sentences, task_key
from optforge.experiments.errors import UserError
from optforge.primitives import print_program


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def search_of(task: str, **config: Any) -> Path:
    """The run directory ``found`` of a search on `task`, as far as comparisons read it."""
    folder = Path("found")
    folder.mkdir()
    programs = [print_program(BASELINES[name].program) for name in ("adam", "lion")]
    fame = [{"rank": rank, "lr": 0.05, "program": text} for rank, text in enumerate(programs, 1)]
    (folder / "hall_of_fame.json").write_text(json.dumps(fame))
    config = {"task": task, "ladder": [0.1, 1.0], "seeds": [0, 1], "steps": 0} | config
    summary = {"config": config, "programs": 30, "seconds": 7}
    (folder / "search.json").write_text(json.dumps({"search": summary}))
    return folder


def origins_of(*texts: str) -> list[dict[str, Any]]:
    return [found for text in texts if (found := origin(text, text))]


def test_a_search_on_a_python_file_is_told_of_without_the_steps_that_nobody_knows() -> None:
    search_of("mine.py")
    (sentence,) = origin_sentences(origins_of("found#1"), ["digits"])
    assert sentence.endswith("mine.py, which is left out. The search trained 30 programs in 7 seconds.")
    with_steps = origin_sentences([origins_of("found#1")[0] | {"steps": 6000}], ["digits"])[0]
    assert with_steps.endswith("30 programs in 6,000 steps and 7 seconds.")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("mine.py", "./mine.py", True),
        ("mine.py", "else/mine.py", False),
        ("mnist", "mnist@data/mnist", True),
        ("tinystories:nano@a.txt", "tinystories", True),
        ("tinystories:micro", "tinystories", False),
        ("text@a.txt", "text:nano@./a.txt", True),
        ("text@a.txt", "text@b.txt", False),
    ],
)
def test_a_task_is_the_same_in_other_words(one: str, other: str, same: bool) -> None:
    assert (task_key(one) == task_key(other)) is same and task_key(task_key(one)) == task_key(one)
    search_of(one)
    found = origins_of("found#1")
    assert (task_key(other) in bred_on(found)) is same
    sentence = origin_sentences(found, [other])[0]
    assert (f"to be compared on {other} all the same flatters it" in sentence) is same
    assert ("left out" in sentence) is not same


def test_a_search_in_other_words_is_one_search() -> None:
    search_of("digits")
    found = origins_of("found#1", "./found#2")
    (said,) = origin_sentences(found, ["copy"])
    assert said.startswith("found#1, ./found#2: found by a search")


def test_a_suite_of_which_nothing_is_left_says_why() -> None:
    folder = search_of("digits")
    stages = [{"tasks": list(QUICK_SUITE), "scores": {}}, {"tasks": ["copy"], "scores": {}}]
    (folder / "funnel.json").write_text(json.dumps({"stages": stages}))
    with pytest.raises(UserError, match="were chosen by all tasks of the suite; name one with --tasks"):
        make_plan(["found#1"], Asked("suite", quick=True))
