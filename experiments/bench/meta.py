"""Meta-trained optimizers beside tuned Adam, RMSProp and momentum: a part of `make bench-learned`.

The protocol of docs/meta.md: the problems of Andrychowicz et al. 2016 (arXiv:1606.04474, §3.1 and §3.2) within their
100 steps, from starts and functions that no rule was trained on, and the same with one thing changed. Learning rates
of the others are tuned on other seeds of the very case; the learned rules have nothing to tune.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from optforge.experiments.compare.statistics import mean_interval
from optforge.experiments.errors import UserError
from optforge.experiments.files import write_atomic
from optforge.experiments.provenance import provenance
from optforge.experiments.report.markdown import markdown_table
from optforge.experiments.training.meta_problems import digit_images
from optforge.learned.meta.models import flatten
from optforge.learned.meta.tasks import Problem, classifier, quadratics
from optforge.learned.meta.training import begin, unroll_all
from optforge.learned.meta.weights import load

SEEDS, TUNING = range(1000, 1010), range(2000, 2003)
FUNCTIONS = 100  # quadratics of a seed
FINAL = 4096  # training examples, at most, on which the loss at the end is measured
FINE = tuple(10 ** (k / 4) for k in range(-16, 5))  # rates of the main cases, and every other one of the rest

METHODS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "Adam": torch.optim.Adam,
    "RMSProp": torch.optim.RMSprop,
    "momentum 0.9": partial(torch.optim.SGD, momentum=0.9),
    "Nesterov 0.9": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
}


class Case(NamedTuple):
    """`family` names the weights; `functions` are instances of a seed; `main` cases are those of the paper."""

    problem: Callable[[], Problem]
    family: str
    functions: int = 1
    main: bool = False


def _mlp(side: int, horizon: int = 100, **how: Any) -> Callable[[], Problem]:
    return lambda: classifier("mnist" if side == 28 else "digits", *digit_images(side), horizon=horizon, **how)


CASES: dict[str, Case] = {
    "quadratics": Case(quadratics, "quadratics", FUNCTIONS, True),
    "MLP on MNIST": Case(_mlp(28), "classifiers", 1, True),
    "quadratics, 300 steps": Case(lambda: replace(quadratics(), horizon=300), "quadratics", FUNCTIONS),
    "quadratics, 20 dimensions": Case(lambda: quadratics(20), "quadratics", FUNCTIONS),
    "MLP on digits": Case(_mlp(8), "classifiers"),
    "MLP on digits, 300 steps": Case(_mlp(8, 300), "classifiers"),
    "MLP on digits, ReLU": Case(_mlp(8, activation="relu"), "classifiers"),
    "MLP on digits, 40 units": Case(_mlp(8, hidden=(40,)), "classifiers"),
    "MLP on digits, two layers": Case(_mlp(8, hidden=(20, 20)), "classifiers"),
}


class Runs(NamedTuple):
    """`finals` of each seed: mean loss at the end, infinite where it is not finite; `curve`: mean over all, by step."""

    finals: list[float]
    curve: list[float]


def drawn(problem: Problem, seeds: Sequence[int], count: int) -> tuple[Any, Any, Tensor]:
    """Instances, starts and batches of each seed, ``[seeds · count, …]``."""
    found = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        found.append((*problem.draw(generator, count), problem.batches(generator, count, problem.horizon)))
    instances, params, batches = zip(*found, strict=True)
    together = [{k: torch.cat([part[k] for part in parts]) for k in parts[0]} for parts in (instances, params)]
    return together[0], together[1], torch.cat(batches)


def _runs(problem: Problem, instances: Any, params: Any, curve: list[float], seeds: Sequence[int]) -> Runs:
    """Measure trained parameters: on the functions themselves, or on a fixed part of the training examples."""
    total = len(next(iter(params.values())))
    batch = torch.arange(min(FINAL, problem.examples)).expand(total, -1)
    with torch.no_grad():
        finals = _losses(problem, instances, params, batch).view(len(seeds), -1).mean(1)
    return Runs(torch.where(torch.isfinite(finals), finals, math.inf).tolist(), curve)


def _losses(problem: Problem, instances: Any, params: Any, batch: Tensor) -> Tensor:
    return vmap(problem.loss, in_dims=(0, 0 if instances else None, 0))(params, instances, batch)


def hand_made(method: str, lr: float, problem: Problem, seeds: Sequence[int], count: int) -> Runs:
    """All seeds at once under a torch optimizer; its rule is elementwise, so that runs do not mix."""
    instances, params, batches = drawn(problem, seeds, count)
    params = {name: p.clone().requires_grad_() for name, p in params.items()}
    optimizer, curve = METHODS[method](params.values(), lr=lr), []
    for step in range(problem.horizon):
        optimizer.zero_grad()
        losses = _losses(problem, instances, params, batches[:, step])
        curve.append(float(losses.detach().mean()))
        losses.sum().backward()
        optimizer.step()
    return _runs(problem, instances, params, curve, seeds)


def meta_trained(name: str, problem: Problem, seeds: Sequence[int], count: int) -> Runs:
    """The same under shipped weights; one seed at a time where there is but one run of each, for memory."""
    rule, weights, _ = load(name)
    theta, found = flatten(weights, rule), []
    for some in [seeds] if count > 1 else [[seed] for seed in seeds]:
        instances, params, batches = drawn(problem, some, count)
        with torch.no_grad():
            start = begin(rule, params)
            _, losses, carry = unroll_all(rule, problem, theta, start, instances, batches, 0)
        found.append(_runs(problem, instances, carry.params, losses.mean(0).tolist(), some))
    return Runs([x for runs in found for x in runs.finals], np.mean([runs.curve for runs in found], 0).tolist())


LEARNED = ("meta-lstm", "meta-mlp")


def measure(name: str, case: Case, method: str, seeds: Sequence[int]) -> dict[str, Any]:
    """One method on one case: tuned if there is something to tune, then run on `seeds`."""
    problem, lr, edge = case.problem(), None, False
    if method in LEARNED:
        runs = meta_trained(f"{method.removeprefix('meta-')}-{case.family}", problem, seeds, case.functions)
    else:
        rates = FINE if case.main else FINE[::2]
        tuned = [np.mean(hand_made(method, r, problem, TUNING, case.functions).finals) for r in rates]
        lr = rates[int(np.argmin(tuned))]
        edge = lr in (rates[0], rates[-1])
        runs = hand_made(method, lr, problem, seeds, case.functions)
    curve = runs.curve if case.main else []
    return {"case": name, "method": method, "lr": lr, "edge": edge, "finals": runs.finals, "curve": curve}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Results in Markdown: mean final loss with its interval, and the paired difference to the best tuned method."""
    header, lines = ["case", "method", "lr", "final loss", "95 % interval", "less the best tuned", ""], []
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case]
        best = min((r for r in own if r["lr"] is not None), key=lambda r: np.mean(r["finals"]), default=None)
        for row in own:
            finals = np.array(row["finals"])
            cells = [case, row["method"], "–" if row["lr"] is None else f"{row['lr']:.3g}", f"{finals.mean():.4g}"]
            if np.isfinite(finals).all():
                interval = mean_interval(finals)
                cells.append(f"{interval.low:.4g} to {interval.high:.4g}")
            else:
                cells.append(f"{(~np.isfinite(finals)).sum()} of {len(finals)} diverged")
            words = ""
            if row["lr"] is None and best is not None and np.isfinite(finals).all():
                difference = finals - np.array(best["finals"])
                interval = mean_interval(difference)
                words = "better" if interval.high < 0 else "worse" if interval.low > 0 else "not told apart"
                cells.append(f"{difference.mean():+.3g} ({interval.low:+.3g} to {interval.high:+.3g})")
            else:
                cells.append("best tuned" if row is best else "")
            lines.append([*cells, words])
    return markdown_table(header, lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Mean loss over steps of the paper's two cases."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from optforge.experiments.colours import COLOURS, DASHES

    styles = dict(zip((*METHODS, *LEARNED), zip(COLOURS, (*DASHES, "-"), strict=False), strict=True))
    cases = [name for name, case in CASES.items() if case.main]
    figure, axes = plt.subplots(1, len(cases), figsize=(9.4, 3.4), layout="constrained")
    for ax, case in zip(axes, cases, strict=True):
        own = [row for row in rows if row["case"] == case and row["curve"]]
        for row in own:
            colour, dash = styles[row["method"]]
            label = row["method"] + ("" if row["lr"] is None else f", lr {row['lr']:.2g}")
            ax.plot(row["curve"], color=colour, linestyle=dash, label=label, linewidth=1.2)
        ax.set(yscale="log", xlabel="step", title=case)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=7)
    axes[0].set_ylabel("loss before the step, mean over seeds")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Measure the cases that the file does not have yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench-meta.json"))
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--methods", nargs="*", default=[*METHODS, *LEARNED], choices=[*METHODS, *LEARNED])
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--plot", type=Path, help="write the picture of docs/meta.md there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record = json.loads(options.json.read_text()) if options.json.exists() else {"rows": []}
    done = {(row["case"], row["method"]) for row in record["rows"]}
    source, places = provenance(), list(itertools.product(CASES, (*METHODS, *LEARNED)))
    for name, method in itertools.product(options.cases, options.methods):
        if (name, method) in done:
            continue
        try:
            row = measure(name, CASES[name], method, SEEDS[: options.seeds])
        except UserError as error:
            print(f"{name} is skipped: {error}")
            continue
        record["rows"].append(row | {"commit": source["commit"]})
        record["rows"].sort(key=lambda row: places.index((row["case"], row["method"])))
        record["provenance"] = source
        write_atomic(options.json, json.dumps(record, indent=1) + "\n")
    print(table(record["rows"]))
    if options.plot:
        draw(record["rows"], options.plot)


if __name__ == "__main__":
    main()
