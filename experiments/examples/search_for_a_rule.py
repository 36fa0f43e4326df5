"""Search for an update rule in a few lines: evolve programs from AdamW on handwritten digits, then use the best one.

``python experiments/examples/search_for_a_rule.py``; `optforge search` is the same with everything around it.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import closing
from pathlib import Path

import torch

from optforge.baselines import BASELINES
from optforge.experiments.tasks import get_task
from optforge.primitives import Program, ProgramOptimizer, subset
from optforge.primitives.export.pseudocode import pseudo_code
from optforge.search.engine import Budget, Search
from optforge.search.evolution.evolution import Evolution
from optforge.search.fitness.evaluator import evaluating
from optforge.search.fitness.sweep import Sweep
from optforge.search.ledger import Ledger
from optforge.search.space.draft import Space
from optforge.search.training.executors.processes import Workers


def search(programs: int, steps: int) -> Program:
    """The best of so many programs, each trained for so many steps at three learning rates."""
    protocol = Sweep(get_task("digits"), rates=(1e-3, 1e-2, 1e-1), seeds=(0,), steps=steps)
    evolution = Evolution(start=(BASELINES["adamw"].program,), space=Space(subset("lion45")), population=50, batch=16)
    with tempfile.TemporaryDirectory() as folder, closing(Ledger.create(Path(folder), {})) as ledger:
        run = Search(evolution, ledger, Workers(evaluating(lambda: protocol), 0))  # 0: in this process
        for _ in run.run(Budget(programs=programs)):
            print(f"{len(run.history):4} programs, best validation loss {run.best[0].fitness.score:.4f}")
        return run.best[0].program


def main() -> None:
    """Search, show what was found, and train something with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    found = search(arguments.programs, arguments.steps)
    print(pseudo_code(found))

    model = torch.nn.Linear(64, 10)
    optimizer = ProgramOptimizer(model.parameters(), found, lr=0.01)
    inputs, targets = get_task("digits").data().train.batch(torch.arange(64))
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
    print(f"a linear model of 64 digits trained with it: loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
