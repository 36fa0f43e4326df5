"""Compare a rule of yours with AdamW and Lion: all tuned on the same learning rates, reported on fresh seeds.

``python experiments/examples/compare_optimizers.py``; `optforge compare` is the same with everything around it.
"""

from __future__ import annotations

import argparse

from optforge.baselines import BASELINES
from optforge.experiments.compare import compare
from optforge.experiments.tasks import get_task
from optforge.primitives import Builder, Program
from optforge.primitives.blocks import debias, momentum


def sign_of_average() -> Program:
    """The sign of an unbiased average of gradients, shrunk where neighbours in time disagree."""
    b = Builder()
    beta = b.hyper("beta", 0.9, "unit")
    average = debias(b, momentum(b, b.slot("m"), b.g, beta), beta)
    size = debias(b, momentum(b, b.slot("n"), b.abs(b.g), beta), beta)
    return b.build(b.safe_div(average, size))


def main() -> None:
    """Compare, and print the verdict and a row for each optimizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    rules = [("mine", sign_of_average())] + [(name, BASELINES[name].program) for name in ("adamw", "lion")]
    seeds = range(100, 100 + arguments.seeds)
    found = compare(rules, get_task("digits"), ladder=(1e-3, 1e-2, 1e-1), seeds=seeds, steps=arguments.steps)
    print(found.verdict)
    for entry in found.entries:
        print(f"{entry.name:8} test loss {entry.mean:.4f} at lr {entry.tuning.lr:g}, {entry.state_bytes:g} B/parameter")


if __name__ == "__main__":
    main()
