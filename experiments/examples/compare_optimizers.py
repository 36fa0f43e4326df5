"""Compare a rule of yours with AdamW and Lion: all tuned on the same learning rates, reported on fresh seeds.

``python experiments/examples/compare_optimizers.py``; `optforge compare` is the same with everything around it.
"""

from __future__ import annotations

import argparse

from optforge.experiments.compare import compare
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
    options = {"trials": 8, "dimensions": 1, "seeds": arguments.seeds, "steps": arguments.steps}
    found = compare(("mine", sign_of_average()), "adamw", "lion", tasks="digits", costs=False, **options)
    print(found.verdict)
    for entry in found.comparisons[0].entries:
        print(f"{entry.name:8} test loss {entry.mean:.4f} at lr {entry.tuning.lr:g}, {entry.state_bytes:g} B/parameter")


if __name__ == "__main__":
    main()
