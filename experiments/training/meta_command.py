"""`optforge meta-train`: the run directory, what is shown, and what is written."""

from __future__ import annotations

import io
import json
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from optforge.experiments.errors import UserError, unknown
from optforge.experiments.files import check_can_write, write_atomic
from optforge.experiments.progress import progress_bar
from optforge.experiments.provenance import provenance
from optforge.experiments.rundirs import existing_run_dir, new_run_dir, remove_if_empty
from optforge.experiments.training.meta_problems import PROBLEMS
from optforge.learned.meta.imitation import Imitation
from optforge.learned.meta.models import RULES, LSTMRule, flatten, unflatten
from optforge.learned.meta.trainer import MetaTrainer
from optforge.learned.meta.training import ESTIMATORS, Estimator
from optforge.learned.meta.weights import Learned, card_markdown, load, pack
from optforge.search.training.loop import device

VALIDATE_EVERY = 20  # training runs
SAVE_EVERY = 30.0  # seconds; checkpoints lie between training runs, so that when they are written changes nothing
DEFAULTS: dict[str, Any] = {"problems": ["digits"], "estimator": "bptt", "steps": 300, "seed": 0, "lr": 3e-3}
DEFAULTS |= {"raw": False, "start": None, "curvature": None, "workers": None, "teacher": None}
GIVEN = ("start", "teacher")  # weights that a run may be given
IMITATION = "imitation"  # the estimator that a teacher is for
CONFIG, CHECKPOINT, WEIGHTS = "meta.json", "checkpoint.pt", "weights.safetensors"


@dataclass(frozen=True)
class MetaOptions:
    """Options of `optforge meta-train`; None where they were not given."""

    rule: str | None = None
    problems: Sequence[str] | None = None
    estimator: str | None = None
    steps: int | None = None
    seed: int | None = None
    lr: float | None = None
    raw: bool | None = None
    curvature: float | None = None
    workers: int | None = None
    teacher: str | None = None
    start: str | None = None
    minutes: float | None = None
    run_dir: Path | None = None
    resume: bool = False
    json_file: Path | None = None


def meta_train_command(options: MetaOptions) -> None:
    """Meta-train a rule, and write its weights with their card.

    The run directory gets the configuration, a checkpoint twice a minute, TensorBoard logs, and at the end the weights
    that were best on held-out instances, the card and `result.json`, of which `json_file` is a copy.

    Raises:
        UserError: before anything is written, if what was asked for does not exist or fit.
    """
    check_can_write("--json", options.json_file)
    if options.resume:
        if options.run_dir is None:
            raise UserError("--resume needs the --run-dir of the run to go on with")
        folder = existing_run_dir(options.run_dir)
        config = _agreed(options, folder)
        trainer = build(config, _kept(folder, config))
        seconds = _restore(trainer, folder)
    else:
        config = _config(options)
        trainer = build(config)
        folder = new_run_dir(options.run_dir, "meta-train", config["rule"])
        seconds = 0.0
    try:
        if not options.resume:
            for what in GIVEN:
                if config[what] is not None:  # the run goes on whatever becomes of the file
                    write_atomic(folder / f"{what}.safetensors", pack(load(config[what])))
            write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")
        seconds = train(trainer, config["steps"], folder, options.minutes, seconds)
        record = finish(trainer, config, folder, seconds)
        if options.json_file is not None:
            write_atomic(options.json_file, json.dumps(record, indent=2) + "\n")
    finally:
        remove_if_empty(folder)
    held_out = ", ".join(f"{name} {value:.4g}" for name, value in record["validation"].items())
    asked = f" of {config['steps']}" if trainer.done < config["steps"] else ""
    print(f"{config['rule']}: {trainer.done}{asked} steps in {seconds:.0f} s of CPU; held-out: {held_out}")
    print(f"weights: {folder / WEIGHTS}, as in: MetaOptimizer(model.parameters(), {str(folder / WEIGHTS)!r})")
    if trainer.done < config["steps"]:
        print(f"go on with: optforge meta-train --resume --run-dir {folder}")


def _kept(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Where a run has its copies of the weights that it was given."""
    paths = {what: folder / f"{what}.safetensors" for what in GIVEN if config.get(what) is not None}
    return {what: str(path) for what, path in paths.items() if path.is_file()}


def build(config: dict[str, Any], kept: Mapping[str, str] = MappingProxyType({})) -> MetaTrainer:
    """The trainer that a configuration means; `kept` are places of weights that go before those in it.

    Raises:
        UserError: for names that do not exist, and where data are missing.
    """
    for what, names, known in (
        ("rule", [config["rule"]], RULES), ("problem", config["problems"], PROBLEMS),
        ("estimator", [config["estimator"]], [*ESTIMATORS, IMITATION]),
    ):  # fmt: skip
        for name in names:
            if name not in known:
                raise unknown(what, str(name), known)
    problems = [PROBLEMS[name](device().type) for name in config["problems"]]
    config = {**config, **kept}
    estimator = _estimator(config["estimator"], config.get("curvature"), config.get("teacher"))
    if config["raw"] and config["rule"] != "lstm":
        raise UserError("--raw leaves out the preprocessing of the LSTM; the MLP has features instead")
    rule = LSTMRule(p=None, scale=1.0) if config["raw"] else RULES[config["rule"]]()
    start = None if config["start"] is None else flatten(load(config["start"], rule).weights, rule)
    return MetaTrainer(
        rule, problems, estimator, config["steps"], seed=config["seed"], lr=config["lr"], start=start,
        workers=config.get("workers"), device=device().type,
    )  # fmt: skip


def _estimator(name: str, curvature: float | None, teacher: str | None) -> Estimator:
    if curvature is not None and name not in ("bptt", "tbptt"):
        raise UserError(f"--curvature is a share of backpropagation through training; {name} does none")
    if (name == IMITATION) != (teacher is not None):
        raise UserError(
            f"--estimator {name} needs a --teacher: a file of weights, or shipped ones' name" if teacher is None
            else f"--teacher makes steps to imitate; --estimator {name} looks at losses"
        )  # fmt: skip
    if teacher is not None:
        rule, weights, _ = load(teacher)
        return Imitation(rule, weights)
    found: Estimator = ESTIMATORS[name](**({} if curvature is None else {"curvature": curvature}))
    return found


def train(trainer: MetaTrainer, steps: int, folder: Path, minutes: float | None, seconds: float) -> float:
    """Train until `steps` or `minutes` are over, with checkpoints; returns the seconds of CPU, `seconds` included."""
    from torch.utils.tensorboard import SummaryWriter

    begin, start = time.monotonic(), time.process_time() - seconds
    saved = begin
    if not trainer.done:
        trainer.validate()  # weights to start with may be the best
    with SummaryWriter(str(folder / "tensorboard")) as writer, progress_bar("meta-train", steps) as report:
        while trainer.done < steps and (minutes is None or time.monotonic() - begin < 60 * minutes):
            progress = trainer.run()
            last = progress.losses[-1].item()
            report(trainer.done, f"{progress.problem} {progress.losses[0].item():.3g} to {last:.3g}")
            writer.add_scalar(f"final loss/{progress.problem}", last, trainer.done)
            writer.add_scalar(f"mean loss/{progress.problem}", progress.losses.mean().item(), trainer.done)
            writer.add_scalar("meta-gradient", progress.gradient, trainer.done)
            writer.add_scalar("skipped segments", progress.skipped, trainer.done)
            if trainer.runs % VALIDATE_EVERY == 0:
                for name, value in trainer.validate().items():
                    writer.add_scalar(f"held-out objective/{name}", value, trainer.done)
            if trainer.runs % VALIDATE_EVERY == 0 or time.monotonic() - saved > SAVE_EVERY:
                save(trainer, folder, time.process_time() - start)
                saved = time.monotonic()
    save(trainer, folder, time.process_time() - start)
    return time.process_time() - start


def save(trainer: MetaTrainer, folder: Path, seconds: float) -> None:
    """Write the checkpoint."""
    buffer = io.BytesIO()
    torch.save(trainer.state_dict() | {"seconds": seconds}, buffer)
    write_atomic(folder / CHECKPOINT, buffer.getvalue())


def finish(trainer: MetaTrainer, config: dict[str, Any], folder: Path, seconds: float) -> dict[str, Any]:
    """Write weights, card and result; the trainer's own state stays what going on needs."""
    state = trainer.state_dict()
    trainer.validate()
    theta = trainer.best_theta.cpu()
    trainer.theta.copy_(theta)
    validation = trainer.validate()
    trainer.load_state_dict(state)
    source, cut = provenance(), trainer.estimator.truncation
    curvature = getattr(trainer.estimator, "curvature", None)
    card = {
        "rule": config["rule"],
        "problems": config["problems"],
        "trained on": [p.summary for p in trainer.problems],
        "estimator": f"{config['estimator']}, {f'segments of {cut} steps' if cut else 'whole training runs'}"
        + ("" if curvature is None else f", curvature {curvature:g}"),
        "meta-steps": state["done"],
        "training runs": f"{state['runs']}, of {', '.join(f'{p.workers} workers' for p in trainer.problems)}",
        "CPU seconds": round(seconds),
        "seed": config["seed"],
        "meta learning rate": f"{config['lr']:g}, falling to 0 as a cosine",
        "held-out objective": validation,
        "commit": source["commit"],
        "torch": source["versions"]["torch"],
        "threads": source["hardware"]["threads"],
        "cpu": source["hardware"]["cpu"],
        "gpu": source["hardware"]["gpu"],
    }
    names = ("rule", "trained on", "meta-steps", "CPU seconds", "seed", "meta learning rate", "commit")
    for what, path in _kept(folder, config).items():
        before = load(path).card
        card["started from" if what == "start" else what] = {name: before.get(name) for name in names}
    learned = Learned(trainer.rule, {k: w.clone() for k, w in unflatten(theta, trainer.rule).items()}, card)
    write_atomic(folder / WEIGHTS, pack(learned))
    write_atomic(folder / "card.md", card_markdown(learned, f"{config['rule']} on {', '.join(config['problems'])}"))
    record = {**config, "done": state["done"], "validation": validation, "seconds": seconds, "provenance": source}
    write_atomic(folder / "result.json", json.dumps(record, indent=2) + "\n")
    return record


def _given(options: MetaOptions) -> dict[str, Any]:
    names = ("rule", "problems", "estimator", "steps", "seed", "lr", "raw", "curvature", "workers", "teacher", "start")
    found = {n: v for n in names if (v := getattr(options, n)) is not None}
    return {"estimator": IMITATION, **found} if "teacher" in found else found


def _config(options: MetaOptions) -> dict[str, Any]:
    given = _given(options)
    if "rule" not in given:
        raise UserError(f"a RULE is missing; name one of: {', '.join(RULES)}")
    return DEFAULTS | given


def _agreed(options: MetaOptions, folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder} is no run directory of meta-train: it has no readable {CONFIG}") from None
    for name, value in _given(options).items():
        if value != config.get(name):
            raise UserError(f"{folder} has {name} {config.get(name)!r}, not {value!r}; a run goes on as it began")
    return config


def _restore(trainer: MetaTrainer, folder: Path) -> float:
    path = folder / CHECKPOINT
    if not path.is_file():
        return 0.0  # interrupted before the first checkpoint
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        trainer.load_state_dict(state)
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is no checkpoint of this run: {str(error).splitlines()[0][:200]}") from None
    return float(state["seconds"])
