"""`optforge train`: one run, its logs, and what is said and written about it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optforge.baselines import BASELINES
from optforge.experiments.errors import UserError, nearest
from optforge.experiments.files import check_can_write, finite_or_null, write_atomic
from optforge.experiments.programs import resolve_program, usual_rate
from optforge.experiments.programs.rules import MetaTrained, base_program
from optforge.experiments.provenance import data_hash, provenance
from optforge.experiments.rundirs import existing_run_dir, new_run_dir, remove_if_empty
from optforge.experiments.tasks import get_task, with_data
from optforge.experiments.training.moves import History
from optforge.experiments.training.train import train, training_of
from optforge.learned.meta.weights import Learned, load, shipped
from optforge.primitives import Program, ProgramError, print_program
from optforge.primitives.analysis.cost import state_bytes
from optforge.primitives.options import with_fallback
from optforge.search.training.lightning.engine import is_first_process
from optforge.search.training.trial import Outcome, Status, Trial

_MOVES = 4  # of what is learned, that the summary mentions
COMMAND = "command.json"
"""In the folder of a run with checkpoints: what was asked for."""


def train_command(asked: dict[str, Any], run_dir: Path | None, json_file: Path | None, *, resume: bool = False) -> str:
    """Train once and print how it went; an optimizer meant for full batches gets them.

    The run directory gets TensorBoard logs, the program as `program.txt`, and `result.json`: the result, the
    program, and where the numbers come from. `json_file` gets a copy of the latter. With checkpoints, it has
    `command.json` from the beginning: what was asked for, for `resume_command`. Of several processes that train
    together one writes and prints.

    Args:
        asked: the options of the command by name: `optimizer`, `task`, `data` (where the task's data lie, or None),
            `lr` (or None for the usual one), `settings` (as in ``["beta1=0.95"]``), and those of `training_of`.
        run_dir: for all that is written; by default a new one in runs/.
        json_file: for a copy of the result.
        resume: whether the run in `run_dir` goes on.

    Returns:
        Why the run has diverged; empty if it has not.

    Raises:
        UserError, ProgramError: before anything is written, if what was asked for does not exist or fit.
    """
    options = dict(asked)
    optimizer, task, data, lr = (options.pop(name) for name in ("optimizer", "task", "data", "lr"))
    settings, seed, steps, learn = (options.pop(name) for name in ("settings", "seed", "steps", "learn"))
    problem = get_task(with_data(task, data and Path(data)))
    name, rule = _resolve(optimizer)
    full_batch = optimizer in BASELINES and BASELINES[optimizer].full_batch
    if full_batch and options["accumulate"] > 1:
        raise UserError(f"{name} sees the whole training set in every step, so that there is nothing to accumulate")
    options["hypers"] = parse_settings(settings, name, rule)
    if lr is None:
        lr = usual_rate(optimizer) if isinstance(rule, Program) else 1.0
    how = {"seed": seed, "steps": steps, "learn": learn, "full_batch": full_batch}
    trial, engine = training_of(problem, rule, lr, **how, **options)
    check_can_write("--json", json_file)
    first = engine.devices == 1 or is_first_process()
    folder = run_dir if resume and run_dir is not None else Path(os.devnull)  # where other processes write nothing
    if first and not resume:
        folder = new_run_dir(run_dir, "train", problem.name)
    try:
        if first and not resume and engine.checkpoint_every:
            text = json.dumps(asked | {"hashes": data_hash(problem.data())}, indent=2) + "\n"
            write_atomic(folder / COMMAND, text)
        history = History()
        outcome = train(trial, engine, folder=folder, history=history, progress=first, resume=resume)
        if not first:
            return outcome.reason
        record = {"optimizer": name, **_record(trial, outcome, history), "learn": list(learn or [])}
        record |= {"full_batch": full_batch, "options": options}
        text = json.dumps(finite_or_null(record), indent=2) + "\n"
        if "program" in record:
            write_atomic(folder / "program.txt", record["program"])
        write_atomic(folder / "result.json", text)
        if json_file is not None:
            write_atomic(json_file, text)
    except (UserError, ProgramError):
        if first and not resume:
            (folder / COMMAND).unlink(missing_ok=True)
        raise
    finally:
        if first:
            remove_if_empty(folder)
    print(_summary(record, outcome, problem.metric, folder))
    return outcome.reason


def resume_command(run_dir: Path | None, json_file: Path | None) -> str:
    """Go on with the run in `run_dir` from its latest checkpoint, or from its start if it has none yet.

    Returns what `train_command` does.

    Raises:
        UserError: if there is no such run, it has ended, or it keeps no checkpoints.
    """
    if run_dir is None:
        raise UserError("--resume needs the --run-dir of the run to go on with")
    folder = existing_run_dir(run_dir)
    if (folder / "result.json").exists():
        raise UserError(f"the run in {folder} has ended; begin another for more steps")
    try:
        asked = json.loads((folder / COMMAND).read_text(encoding="utf-8"))
        task, data, hashes = asked["task"], asked["data"], asked.pop("hashes")
    except FileNotFoundError:
        raise UserError(f"{folder} has no {COMMAND}: runs go on if they were begun with --checkpoint-every") from None
    except (ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{folder / COMMAND} is damaged, so the run cannot go on") from None
    if data_hash(get_task(with_data(task, data and Path(data))).data()) != hashes:
        raise UserError(f"the data of {task} are no longer those that the run in {folder} was begun with")
    return train_command(asked, folder, json_file, resume=True)


def _resolve(optimizer: str) -> tuple[str, Program | Learned]:
    """The program that is meant, or the meta-trained rule: the name of shipped weights, or a file of them."""
    if optimizer in shipped() or optimizer.endswith(".safetensors"):
        return Path(optimizer).stem, load(optimizer)
    return resolve_program(optimizer)


def parse_settings(settings: Sequence[str], name: str, rule: Program | Learned) -> dict[str, float]:
    """Values of hyperparameters from texts like ``beta1=0.95``, for the rule called `name`.

    Raises:
        UserError: for a text of another form, a name given twice, or one that the program does not have.
    """
    parts = with_fallback(rule) if isinstance(rule, Program) else ()
    known = dict.fromkeys(hyper for part in parts for hyper in part.defaults())
    values: dict[str, float] = {}
    for text in settings:
        hyper, mark, number = (part.strip() for part in text.partition("="))
        if hyper == "lr":
            raise UserError("the learning rate has an option of its own: --lr")
        if mark and hyper not in known:
            hint = f"{nearest(hyper, known)} (it has: {', '.join(known) or 'none'})"
            raise UserError(f"--set {text[:80]}: {name} has no hyperparameter {hyper[:40]!r}{hint}")
        try:
            value = float(number)
        except ValueError:
            raise UserError(f"--set {text[:80]!r} is not of the form NAME=NUMBER, as in: --set beta1=0.95") from None
        if hyper in values:
            raise UserError(f"--set gives {hyper} twice")
        values[hyper] = value
    return values


def _record(trial: Trial, outcome: Outcome, history: History) -> dict[str, Any]:
    """What `result.json` says of a run."""
    run = history.run
    record = {
        "task": trial.task.name, "lr": trial.lr, "seed": trial.seed, "status": outcome.status.name.lower(),
        "reason": outcome.reason, "steps": len(run.losses),
        **{f"{name}_loss": loss for name, loss in outcome.loss.items()},
        **{f"{name}_accuracy": outcome.accuracy.get(name) for name in ("valid", "test")},
        "learned": history.learned, "seconds": outcome.seconds, "curve": run.losses, "valid_curve": run.valid_curve,
        "moves": history.moves, "skipped": run.tally.skipped, "clipped": int(run.tally.clipped),
        "provenance": provenance(),
    }  # fmt: skip
    if isinstance(trial.rule, MetaTrained):
        return record | {"rule": trial.rule.weights.rule.name, "card": trial.rule.weights.card}
    program = base_program(trial.rule)
    return record | {
        "program": print_program(program), "key": program.key, "state_bytes_per_parameter": state_bytes(program)
    }  # fmt: skip


def _summary(record: dict[str, Any], outcome: Outcome, metric: str, folder: Path) -> str:
    r, loss, moves = record, outcome.loss, record["moves"]
    batches = " on the whole training set" if r["full_batch"] else ""
    steps = f"{r['steps']} steps{batches} in {outcome.seconds:.1f} s"
    lines = [
        f"{r['optimizer']} on {r['task']}: lr {r['lr']:g}, seed {r['seed']}, {steps}",
        f"  {metric}: train {loss['train']:.4f}, validation {loss['valid']:.4f}, test {loss['test']:.4f}",
    ]
    if outcome.status is Status.OK and outcome.accuracy:
        right = outcome.accuracy
        lines.append(f"  accuracy: validation {right['valid']:.1%}, test {right['test']:.1%}")
    lines += [f"  learned {key}: {value:.3g}" for key, value in r["learned"].items()]
    lines += [f"    step {step}: {sentence}" for step, sentence in moves[-_MOVES:]]
    if len(moves) > _MOVES:
        lines.append(f"    and {len(moves) - _MOVES} large moves before, in result.json and TensorBoard")
    if r["skipped"]:
        lines.append(f"  skipped {r['skipped']} of {r['steps']} steps, whose gradients were not finite")
    if r["clipped"]:
        lines.append(f"  clipped the gradients of {r['clipped']} of {r['steps']} steps")
    if outcome.reason:
        lines.append(f"  {r['status']}: {outcome.reason}; try a smaller lr")
    lines.append("  This is a single run with a single seed; to tell optimizers apart, use: optforge compare")
    lines.append(f"  written to {folder}; to see the curves: tensorboard --logdir {folder.parent}")
    return "\n".join(lines)
