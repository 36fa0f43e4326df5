"""Mutations of other packages: found by entry point, bounded by the space, and unable to end a search."""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from support.searches import run

from optforge.baselines import BASELINES
from optforge.experiments.errors import UserError
from optforge.experiments.examples.ask_a_model import ask
from optforge.experiments.searching.options import SearchOptions, configuration
from optforge.primitives import Builder, Program, print_program, subset
from optforge.search.space import plugins
from optforge.search.space.draft import MIX, Space
from optforge.search.space.mutation import mutate
from optforge.search.space.plugins import GROUP, with_mutations

ADAMW, LION = BASELINES["adamw"].program, BASELINES["lion"].program
SPACE = Space(subset("lion45", "protected"), weights=(("mine", 1.0),))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], None]]:
    """Makes something the mutation ``mine``."""

    def install(found: Any) -> None:
        monkeypatch.setattr(f"{__name__}.found", found, raising=False)
        point = EntryPoint("mine", f"{__name__}:found", GROUP)
        monkeypatch.setattr(plugins, "entry_points", lambda group: [point] if group == GROUP else [])

    for cached in (plugins.mutation_of_others, plugins._tell):
        cached.cache_clear()
    yield install
    plugins.mutation_of_others.cache_clear()


def test_mutation_of_a_package_makes_children(installed: Callable[[Any], None]) -> None:
    installed(lambda program, space, rng: LION)
    assert mutate(ADAMW, SPACE, random.Random(0)) == (LION, "mine")
    assert with_mutations(["mine=2.5"]) == (*MIX, ("mine", 2.5))
    assert with_mutations(["mine"])[-1] == ("mine", 1.0)
    assert dict(with_mutations(["insert=7"]))["insert"] == 7.0


@pytest.mark.parametrize("outside", ["ops", "statements", "slots", "type"])
def test_children_outside_the_space_are_left_out(installed: Callable[[Any], None], outside: str) -> None:
    b = Builder()
    x = b.g
    for _ in range(50 if outside == "statements" else 1):
        x = b.orthogonalise(x) if outside == "ops" else b.sign(x) + b.g
    slots = [b.slot(f"s{i}") for i in range(5)] if outside == "slots" else []
    for slot in slots:
        slot.next = slot + b.g
    child = b.build(x)
    installed(lambda program, space, rng: "adamw" if outside == "type" else child)
    with pytest.raises(RuntimeError, match="no mutation of mine changed the program"):
        mutate(ADAMW, SPACE, random.Random(0))


def test_a_mutation_that_raises_is_named_once_and_the_search_goes_on(
    installed: Callable[[Any], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def broken(program: Program, space: Space, rng: random.Random) -> Program | None:
        raise OSError("nobody answers")

    installed(broken)
    space = Space(subset("lion45", "protected"), weights=with_mutations(["mine=20"]))
    monkeypatch.setattr("support.searches.SPACE", space)
    with caplog.at_level(logging.WARNING, "optforge"):
        assert run(tmp_path, 24)
    assert [r.getMessage() for r in caplog.records] == [
        "the mutation mine failed, and the search goes on with others: OSError: nobody answers"
    ]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("other", "unknown mutation 'other'; choose from .*mine"),
        ("mine=often", "positive number, as in mine=2; got 'mine=often'"),
        ("mine=-1", "positive number"),
        ("mine=nan", "positive number"),
    ],
)
def test_what_makes_no_mix_is_refused(installed: Callable[[Any], None], tmp_path: Path, text: str, match: str) -> None:
    installed(lambda program, space, rng: None)
    with pytest.raises(UserError, match=match):
        configuration(SearchOptions(tmp_path, mutations=text, tasks="digits"))


def test_what_cannot_be_loaded_or_called_is_refused(installed: Callable[[Any], None]) -> None:
    installed(3)
    with pytest.raises(ValueError, match="'mine' must be a function, not int"):
        with_mutations(["mine"])


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A fake endpoint: ``say`` is its answer, ``asked`` the last question, ``key`` what was sent along."""
    state: dict[str, Any] = {"say": ""}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            state["asked"] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state["key"] = self.headers.get("Authorization")
            body = json.dumps({"choices": [{"message": {"content": state["say"]}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("OPTFORGE_MODEL_URL", f"http://127.0.0.1:{server.server_port}/v1/chat/completions")
    monkeypatch.setenv("OPTFORGE_MODEL", "small")
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_example_asks_a_model_and_reads_its_answer_as_data(
    model: dict[str, Any], installed: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTFORGE_MODEL_KEY", "secret")
    installed(ask)
    model["say"] = f"Take signs:\n```\nnot a rule\n```\nor rather\n```text\n{print_program(LION)}```\nGood luck."
    assert mutate(ADAMW, SPACE, random.Random(0)) == (LION, "mine")
    (message,) = model["asked"]["messages"]
    assert print_program(ADAMW) in message["content"] and "sign" in message["content"]
    assert model["asked"]["model"] == "small" and model["key"] == "Bearer secret"
    for answer in ("I would rather not.", "```python\nimport os\nos.abort()\n```"):
        model["say"] = answer
        assert ask(ADAMW, SPACE, random.Random(0)) is None
