"""How much the result of training depends on the initial learning rate: `make bench-learned`.

The protocol of the table in docs/learned.md: initial rates 1e-6, 1e-5, … 10, no weight decay, no warm-up, no clipping
beside a method's own, constant outer schedule. S is the mean over rates of min(final validation loss, loss at start)
less the reference, AdamW at the best of its rates and schedules; a loss that is not finite counts as that at start.

Further parts: AdamW with a learned rate beside the plain one on every task that needs no files, and the cost of a step.
Every run is a cell in the file, which the next call goes on from.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from optforge.baselines import BASELINES
from optforge.experiments.bench.learned_suite import OFFLINE, cost, not_worse
from optforge.experiments.bench.learned_tables import insert, tables
from optforge.experiments.files import write_atomic
from optforge.experiments.provenance import provenance
from optforge.experiments.tasks.models import MLP
from optforge.experiments.tasks.places import data_folder
from optforge.experiments.tasks.transformers import GPT
from optforge.learned import learn

RATES = tuple(10.0**k for k in range(-6, 2))
TUNED = tuple(10 ** (k / 2) for k in range(-8, -3))  # of the reference, half a decade apart
TEXT = data_folder() / "tinyshakespeare" / "input.txt"
CONTEXT = 48
PARTS = ("sweep", "suite", "cost")


class Problem(NamedTuple):
    """`batches(seed)` gives index tensors, `sample(indices)` and `valid` inputs and targets."""

    model: Callable[[], nn.Module]
    batches: Callable[[int], Tensor]
    sample: Callable[[Tensor], tuple[Tensor, Tensor]]
    valid: tuple[Tensor, Tensor]
    seeds: int


def digits() -> Problem:
    """An MLP 64-128-128-10 on 80 % of scikit-learn's digits, 920 batches of 64."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    train_x, valid_x, train_y, valid_y = train_test_split(x / 16, y, test_size=0.2, stratify=y, random_state=0)
    mean, std = train_x.mean(axis=0), train_x.std(axis=0) + 0.01
    inputs, others = (torch.tensor((a - mean) / std, dtype=torch.float32) for a in (train_x, valid_x))
    targets = torch.tensor(train_y)

    def batches(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        order = torch.cat([torch.randperm(len(inputs), generator=generator) for _ in range(41)])
        return order[: 920 * 64].view(920, 64)

    return Problem(
        lambda: MLP(64, 128, 128, 10), batches, lambda i: (inputs[i], targets[i]), (others, torch.tensor(valid_y)), 3
    )


def charlm() -> Problem:
    """A 2-layer GPT of width 64 on tiny-shakespeare, 300 batches of 32 windows of 48 characters.

    Raises:
        FileNotFoundError: where the text is not.
    """
    text = TEXT.read_text()
    codes = {c: i for i, c in enumerate(sorted(set(text)))}
    data = torch.tensor([codes[c] for c in text])
    train, valid = data[: int(0.9 * len(data))], data[int(0.9 * len(data)) :]

    def window(part: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        found = part[at[:, None] + torch.arange(CONTEXT + 1)]
        return found[:, :-1], found[:, 1:]

    def batches(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(len(train) - CONTEXT, (300, 32), generator=generator)

    held_out = window(valid, torch.linspace(0, len(valid) - CONTEXT - 1, 256).long())
    return Problem(
        lambda: GPT(len(codes), CONTEXT, width=64, heads=4, depth=2), batches, lambda i: window(train, i), held_out, 3
    )


_ADAMW = BASELINES["adamw"].program.with_defaults(weight_decay=0.0)
PROBLEMS = {"digits": digits, "charlm": charlm}


def _learned(**options: Any) -> Callable[..., Any]:
    return lambda params, lr: learn(params, _ADAMW, lr, compile=True, **options)


def _peer(module: str, name: str) -> Callable[..., Any]:
    return lambda params, **options: getattr(importlib.import_module(module), name)(params, **options)


def _estimating(module: str, name: str) -> Callable[..., Any]:
    """The estimate's first value is swept, as the rate of Prodigy and D-Adaptation is 1."""
    return lambda params, lr: _peer(module, name)(params, lr=1.0, d0=lr)


def _dog(name: str) -> Callable[..., Any]:
    """The size of the first step is swept; evaluated at the averaged iterate, as in the paper."""

    def make(params: Any, lr: float) -> Any:
        from dog import PolynomialDecayAverager

        params = nn.ParameterList(params)
        optimizer = _peer("dog", name)(params, lr=1.0, reps_rel=lr)
        optimizer.averager = PolynomialDecayAverager(params)
        return optimizer

    return make


def _mechanic(params: Any, lr: float) -> Any:
    from mechanic_pytorch import mechanize

    return mechanize(torch.optim.AdamW)(params, lr=lr, weight_decay=0.0)


def _momo(params: Any, lr: float) -> Any:
    optimizer = _peer("momo", "MomoAdam")(params, lr=lr)
    optimizer.takes_loss = True
    return optimizer


METHODS: dict[str, Callable[..., Any]] = {
    "optforge": _learned(),
    "optforge, lr and beta1": _learned(what=("lr", "beta1")),
    "LDoG": _dog("LDoG"),
    "DoG": _dog("DoG"),
    "Mechanic": _mechanic,
    "MoMo-Adam": _momo,
    "Prodigy": _estimating("prodigyopt", "Prodigy"),
    "D-Adaptation": _estimating("dadaptation", "DAdaptAdam"),
    "Schedule-Free AdamW": _peer("schedulefree", "AdamWScheduleFree"),
    "AdamW": lambda params, lr: torch.optim.AdamW(params, lr=lr, weight_decay=0.0),
}


def train(problem: Problem, make: Callable[..., Any], lr: float, seed: int, cosine: bool = False) -> dict[str, float]:
    """Validation loss at the start and at the end of one run."""
    torch.manual_seed(seed)
    model = problem.model()
    optimizer = make(model.parameters(), lr=lr)
    order = problem.batches(seed)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(order)) if cosine else None

    def loss_of(pair: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(pair[0]).flatten(0, -2), pair[1].flatten())

    with torch.no_grad():
        start = loss_of(problem.valid).item()
    for indices in order:
        getattr(optimizer, "train", lambda: None)()
        optimizer.zero_grad()
        loss = loss_of(problem.sample(indices))
        if not math.isfinite(loss.item()):
            return {"start": start, "final": math.nan}
        loss.backward()
        optimizer.step(loss=loss.detach()) if getattr(optimizer, "takes_loss", False) else optimizer.step()
        if averager := getattr(optimizer, "averager", None):
            averager.step()
        if schedule is not None:
            schedule.step()
    getattr(optimizer, "eval", lambda: None)()
    with torch.no_grad():
        if averager := getattr(optimizer, "averager", None):
            for p, average in zip(model.parameters(), averager.averaged_model.parameters(), strict=True):
                p.copy_(average)
        return {"start": start, "final": loss_of(problem.valid).item()}


def sweep(
    task: str, methods: Sequence[str], seeds: int | None, done: set[tuple[str, str, float, int]]
) -> Iterator[dict[str, Any]]:
    """The reference of a task and methods from every rate, a cell for each run; those in `done` are left out."""
    problem = PROBLEMS[task]()
    plan = [(f"AdamW tuned, {kind}", METHODS["AdamW"], TUNED) for kind in ("constant", "cosine")]
    for name, make, rates in plan + [(name, METHODS[name], RATES) for name in methods]:
        for lr, seed in product(rates, range(seeds or problem.seeds)):
            if (task, name, lr, seed) not in done:
                found = train(problem, make, lr, seed, name.endswith("cosine"))
                yield {"task": task, "method": name, "lr": lr, "seed": seed, **found}


def main() -> None:
    """Measure what was asked for and is not in the file yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("bench-learned.json"))
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--tasks", nargs="*", default=list(PROBLEMS), choices=list(PROBLEMS), help="of the sweep")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), help="of the sweep")
    parser.add_argument("--seeds", type=int, help="number of seeds")
    parser.add_argument("--plot", type=Path, help="write the picture of docs/learned.md there")
    parser.add_argument("--docs", type=Path, help="put the tables into this page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    record = {part: record.get(part, []) for part in PARTS} | {"provenance": record.get("provenance", provenance())}
    for part, cells in _measure(options, record):
        where = provenance()
        for cell in cells:
            record[part].append(cell | {"commit": where["commit"]})
            record["provenance"] = where
            write_atomic(options.json, json.dumps(record, indent=1) + "\n")
    text = tables(record)
    print(text)
    if options.docs:
        insert(options.docs, text)
    if options.plot:
        from optforge.experiments.bench.learned_plot import draw

        draw(record["sweep"], options.plot)


def _measure(options: argparse.Namespace, record: dict[str, Any]) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    if "sweep" in options.parts:
        done = {(c["task"], c["method"], c["lr"], c["seed"]) for c in record["sweep"]}
        for task in options.tasks:
            if task == "charlm" and not TEXT.exists():
                print(f"charlm is skipped: tiny-shakespeare is not at {TEXT}; OPTFORGE_DATA may name another folder")
                continue
            yield "sweep", sweep(task, options.methods, options.seeds, done)
    if "suite" in options.parts:
        known = {(c["task"], c["method"], c["seed"]) for c in record["suite"]}
        yield "suite", not_worse(OFFLINE, options.seeds or 3, known)
    if "cost" in options.parts and not record["cost"]:
        yield "cost", cost()


if __name__ == "__main__":
    main()
