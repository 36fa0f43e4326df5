"""`make bench`: how fast the search and the optimizers are, as ratios measured in one run; writes ``bench.json``.

Each figure is a median of several repeats in which both sides of a ratio take turns, because a shared machine drifts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from optforge.experiments.bench.children import children
from optforge.experiments.bench.figures import Figure
from optforge.experiments.bench.monitor import monitor
from optforge.experiments.bench.step import step
from optforge.experiments.bench.throughput import throughput
from optforge.experiments.bench.workers import workers
from optforge.experiments.files import write_atomic
from optforge.experiments.provenance import provenance

SUITES: dict[str, Callable[[int], list[Figure]]] = {
    suite.__name__: suite for suite in (throughput, children, workers, step, monitor)
}


def main() -> None:
    """Run the chosen suites, print a table and write the figures with versions and hardware."""
    parser = argparse.ArgumentParser(prog="python -m optforge.experiments.bench", description=__doc__)
    parser.add_argument("suites", nargs="*", help=f"any of {', '.join(SUITES)}; all by default")
    parser.add_argument("--repeats", type=int, default=7, help="repeats of each measurement (default: 7)")
    parser.add_argument("--json", type=Path, default=Path("bench.json"), help="where to write (default: bench.json)")
    arguments = parser.parse_args()
    if unknown := set(arguments.suites) - set(SUITES):
        parser.error(f"unknown suite {sorted(unknown)[0]!r}; choose from {', '.join(SUITES)}")
    torch.set_num_threads(1)
    figures: list[Figure] = []
    for name in arguments.suites or SUITES:
        for figure in SUITES[name](arguments.repeats):
            figures.append(figure)
            verdict = "met" if figure.met else "MISSED"
            target = "" if figure.target is None else f"   target {figure.target:g}: {verdict}"
            print(f"{figure.name:48} {figure.value:12,.2f} {figure.unit:22}{target}", flush=True)
    source = provenance()
    rows = [asdict(figure) | source for figure in figures]
    write_atomic(arguments.json, json.dumps(rows, indent=1) + "\n")
    print(f"written to {arguments.json}")


if __name__ == "__main__":
    main()
