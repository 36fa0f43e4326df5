"""`optforge compare`: from what was asked for to a plan, its jobs, and the report."""

from __future__ import annotations

import json as json_format
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from optforge.baselines import BASELINES
from optforge.experiments.compare.comparison import SEEDS, TUNE_SEEDS
from optforge.experiments.compare.fingerprints import changes, fingerprint
from optforge.experiments.compare.origin import bred_on, origin, origin_sentences, random_control, task_key
from optforge.experiments.compare.plan import Plan, check_plan
from optforge.experiments.compare.run import check_rows, conduct, executor, open_store, row_of
from optforge.experiments.compare.verdict import CONTROL
from optforge.experiments.errors import UserError
from optforge.experiments.files import check_can_write, write_atomic
from optforge.experiments.programs import HALL_OF_FAME, unique_names
from optforge.experiments.programs.rules import base_program, resolve_entrant
from optforge.experiments.rundirs import COMPARE_RESULT, existing_run_dir, new_run_dir, remove_if_empty
from optforge.experiments.tasks import TASKS, get_task, task_names
from optforge.search.training.store import STORE_FILE, Store, StoreError, lock
from optforge.search.training.trainer import Trainer
from optforge.search.training.trial import rule_text

ALWAYS = ("adamw", "lion")
"""Baselines that are rows of every comparison on the command line."""

SUITE = (
    "digits", "digits-conv", "digits-autoencoder", "breast-cancer", "mnist1d", "noisy-quadratic", "copy", "charlm",
)  # fmt: skip
"""Tasks that ``suite`` stands for: those that learn from data or noise and need no file."""

QUICK_SUITE = ("digits", "digits-autoencoder", "breast-cancer", "mnist1d")
"""The same with ``--quick``."""

QUICK_TRIALS = 8
"""With ``--quick``, unless a number is given: half as many as otherwise."""

PLAN = "plan.json"


@dataclass(frozen=True)
class Asked:
    """What the command line asks for beside the programs; `experiments.compare.plan.Plan` says what it means.

    What was not given is None, or not among `settings`.
    """

    tasks: str | None = None
    horizons: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    control: bool = False
    quick: bool = False
    workers: int = 1
    storage: str | None = None
    json: Path | None = None
    run_dir: Path | None = None
    resume: bool = False

    @property
    def changes(self) -> dict[str, Any]:
        """What a plan is told: `settings`, and with `quick` fewer trials if those say nothing of them."""
        return {"trials": QUICK_TRIALS, **self.settings} if self.quick else dict(self.settings)


def compare_command(programs: Sequence[str], asked: Asked) -> int:
    """Compare AdamW, Lion and `programs`; prints the verdict and tables, and writes the report.

    Returns the exit code: 1 if all reported runs have failed, else 0.

    Raises:
        UserError: if something named does not exist, or what was asked for makes no comparison.
    """
    check_can_write("--json", asked.json)
    if asked.storage is not None:
        check_storage(asked.storage)
    if asked.workers < 1:
        raise UserError(f"--workers must be at least 1, got {asked.workers}")
    if asked.resume:
        folder, plan = _resumed(programs, asked)
        return _run(plan, folder, asked)
    try:
        plan = make_plan(programs or ALWAYS, asked)
    except ValueError as error:
        raise UserError(str(error)) from None
    folder = new_run_dir(asked.run_dir, "compare", get_task(plan.tasks[0]).name if len(plan.tasks) == 1 else "suite")
    try:
        if asked.storage is not None:
            _store(asked.storage).close()  # one that cannot be used is refused before anything is written
        begun = plan.as_json() | {"storage": _shown(asked.storage)}
        write_atomic(folder / PLAN, json_format.dumps(begun, indent=1, ensure_ascii=False) + "\n")
        return _run(plan, folder, asked)
    finally:
        remove_if_empty(folder)


def make_plan(programs: Sequence[str], asked: Asked) -> Plan:
    """The plan that the command line describes.

    Raises:
        UserError: if something named does not exist.
        ValueError: if a program cannot train a task's model, or the numbers make no comparison.
    """
    given = list(dict.fromkeys(programs))
    found = [(text, *resolve_entrant(text)) for text in given]
    found += [(name, *resolve_entrant(name)) for name in ALWAYS if name not in given]
    first = sorted(found, key=lambda one: one[0] not in BASELINES)  # whose names stay theirs, whatever a file is called
    names = dict(zip([one[0] for one in first], unique_names([one[1] for one in first]), strict=True))
    origins, rows = [], []
    for text, _, rule in found:
        name = names[text]
        known = origin(text, name)
        origins += [known] if known else []
        rows.append(row_of(name, rule, (known and known["lr"]) or None))
    if asked.control:
        like = base_program(next((rule for text, _, rule in found if text not in ALWAYS), found[0][2]))
        rows.append(row_of(CONTROL, random_control(like), control=True))
    tasks = _tasks(asked, bred_on(origins))
    horizons = _horizons("1" if asked.horizons is None else asked.horizons)
    plan = Plan(tuple(rows), tasks, horizons, origins=tuple(origins), **asked.changes)
    check_plan(plan)
    if plan.tune_seeds > SEEDS[0] - TUNE_SEEDS[0]:
        raise UserError(f"--tune-seeds must be at most {SEEDS[0] - TUNE_SEEDS[0]}, got {plan.tune_seeds}")
    check_rows(plan)
    return replace(plan, fingerprints={name: fingerprint(name) for name in tasks})


def _tasks(asked: Asked, unfair: set[str]) -> tuple[str, ...]:
    """Names of tasks; ``suite`` leaves out the `unfair` ones (keys), by which a compared program was chosen."""
    if asked.tasks == "suite":
        suite = QUICK_SUITE if asked.quick else SUITE
        left = tuple(name for name in suite if name in TASKS and task_key(name) not in unfair)
        if not left:
            raise UserError("programs to be compared were chosen by all tasks of the suite; name one with --tasks")
        return left
    return task_names("digits" if asked.tasks is None else asked.tasks)


def _horizons(text: str) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise UserError(f"--horizons takes numbers with commas between them, got {text[:40]!r}") from None


def _resumed(programs: Sequence[str], asked: Asked) -> tuple[Path, Plan]:
    """The comparison to go on with, which must be the one that was asked for, as far as anything was."""
    if asked.run_dir is None:
        raise UserError("--resume needs the --run-dir of the comparison that is to go on")
    folder = existing_run_dir(asked.run_dir)
    try:
        begun = dict(json_format.loads((folder / PLAN).read_text(encoding="utf-8")))
        storage = begun.pop("storage", _shown(asked.storage))
        plan = Plan.from_json(begun)
        fingerprints = {name: dict(was) for name, was in plan.fingerprints.items()}
        check_plan(plan)
    except OSError:
        raise UserError(f"{folder} holds no comparison to resume (there is no {PLAN} in it)") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / PLAN} is not a plan of a comparison: {error}; was it edited?") from None
    if different := ", ".join(_differences(plan, programs, asked)):
        raise UserError(f"{folder} is another comparison: {different}; it goes on only as it began")
    if storage != _shown(asked.storage):
        kept = "has its jobs in itself; leave --storage out" if storage is None else f"needs its --storage {storage}"
        raise UserError(f"{folder} {kept}")
    for name, was in fingerprints.items():
        if changed := changes(was, fingerprint(name)):
            raise UserError(
                f"{name} is another task than {folder} was begun with: its {' and '.join(changed)} changed; "
                "undo that, or begin anew with another --run-dir"
            )
    print(f"going on as begun: {', '.join(row.name for row in plan.rows)} on {', '.join(plan.tasks)}")
    return folder, plan


def _differences(plan: Plan, programs: Sequence[str], asked: Asked) -> Iterator[str]:
    """What was asked for beside --resume, and is not so in the comparison that was begun."""
    texts = {row.text for row in plan.rows}
    yield from (f"no {name} in it" for name in programs if rule_text(resolve_entrant(name)[1]) not in texts)
    if asked.control and not any(row.control for row in plan.rows):
        yield "no random control in it"
    wanted = replace(plan, **asked.changes)
    if asked.tasks is not None:
        wanted = replace(wanted, tasks=_tasks(asked, bred_on(plan.origins)))
    if asked.horizons is not None:
        wanted = replace(wanted, horizons=_horizons(asked.horizons))
    for part in fields(Plan):
        has, other = getattr(plan, part.name), getattr(wanted, part.name)
        if has != other:
            yield f"{part.name} {_listed(has)}, not {_listed(other)}"


def _shown(storage: str | None) -> str | None:
    """The address of a database without its password, which is not for files."""
    return None if storage is None else re.sub("(://[^:@/]*):[^@]*@", r"\1@", storage)


def _listed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_storage(url: str) -> None:
    """Raise `UserError` if `url` is not the address of a database, or of one that only one process can see."""
    kind, mark, name = url.partition("://")
    if not mark:
        raise UserError(f"--storage {url[:80]!r} is no address, as in: postgresql://user@host/name")
    if kind.startswith("sqlite") and (not name.strip("/") or ":memory:" in name):
        raise UserError(f"--storage {url[:80]} is only in memory; name a file, as in: sqlite:///trials.sqlite")


def _store(where: str | Path) -> Store:
    try:
        return open_store(where)
    except StoreError as error:
        raise UserError(f"--storage {error}" if isinstance(where, str) else str(error)) from None


def _run(plan: Plan, folder: Path, asked: Asked) -> int:
    from optforge.experiments.compare.console import runs_progress
    from optforge.experiments.report.command import write_run_report

    try:
        held = lock(folder)
    except StoreError as error:
        raise UserError(str(error)) from None
    store, workers = _store(asked.storage or folder / STORE_FILE), executor(asked.workers)
    try:
        if asked.storage is None:
            store.release()  # nobody else has this folder, so that claims are of processes that died
        with runs_progress() as progress:
            found = conduct(plan, Trainer(store, workers, progress), notes=_notes(plan))
        text = json_format.dumps(found.as_json(), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        write_atomic(folder / COMPARE_RESULT, text)
        if asked.json is not None:
            write_atomic(asked.json, text)
        written = write_run_report([folder])
    except StoreError as error:
        raise UserError(f"{error}; continue with --resume --run-dir {folder}") from None
    finally:
        if workers is not None:
            workers.close()
        store.close()
        held.release()
    written.print()
    return int(all(run.failed for c in found.comparisons for entry in c.entries for run in entry.runs))


def _notes(plan: Plan) -> tuple[str, ...]:
    return tuple(origin_sentences(plan.origins, plan.tasks))


def newest_search(root: Path = Path("runs")) -> str | None:
    """The best program of the newest search under `root`, as ``RUN_DIR#1``; None if there is none."""
    found = sorted(root.glob(f"*/{HALL_OF_FAME}"), key=lambda path: path.stat().st_mtime)
    return f"{found[-1].parent}#1" if found else None
