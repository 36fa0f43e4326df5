"""Shared by tests of several files."""

from __future__ import annotations

from html.parser import HTMLParser

import numpy as np

from optforge.baselines import BASELINES
from optforge.experiments.compare.comparison import Comparison, Entry, Protocol, Run, Tuning
from optforge.experiments.compare.statistics import compare_pairs, mean_interval
from optforge.experiments.compare.verdict import verdict_sentence
from optforge.experiments.programs import baseline_name
from optforge.experiments.tasks import TASKS

NASTY = "mine<script>alert(1)</script>|`*"


def comparison(names: tuple[str, ...] = (NASTY, "adamw", "lion"), seeds: int = 4, fails: int = 0) -> Comparison:
    """A comparison with made-up losses; the first `fails` runs of the first optimizer failed."""
    protocol = Protocol(TASKS["digits"], (1e-4, 1e-3, 1e-2), (1, 2), tuple(range(10, 10 + seeds)), 200)
    rng = np.random.default_rng(0)
    entries = []
    for index, name in enumerate(names):
        program = BASELINES["adamw" if name == "adamw" else "lion"].program
        if index == 0 and name not in BASELINES:
            program = program.with_defaults(beta1=0.5)
        losses = (index + 1) * 0.1 + 0.01 * rng.random(seeds)
        runs = tuple(
            Run(
                10 + k, 2.3, float(loss), float(loss), 0.9, 0.8, None, index == 0 and k < fails, (2.0, 1.0, float(loss))
            )
            for k, loss in enumerate(losses)
        )
        table = ((2.0, 2.1), (0.2 * (index + 1), 0.3), (2.3, 2.3))
        failed = ((False, False), (False, False), (True, True))
        tuning = Tuning((1e-4, 1e-3, 1e-2), table, table, failed, 1e-3, False)
        counted = [run.counted for run in runs]
        mean = float(np.mean(counted))
        known = baseline_name(program) is not None
        numbers = (mean, mean_interval(counted), mean, 0.8, 4, 7, 7)
        entries.append(Entry(name, program, tuning, runs, *numbers, reference=known))
    pairs = compare_pairs({e.name: [r.counted for r in e.runs] for e in entries})
    return Comparison(protocol, tuple(entries), pairs, verdict_sentence(protocol, entries, pairs), {"commit": "abc"})


class Page(HTMLParser):
    """Collects ids, the tags seen, and the text outside of styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data
