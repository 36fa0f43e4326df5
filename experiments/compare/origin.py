"""Where a discovered program comes from: what its search cost, and by which tasks it was chosen.

A program from a search was chosen among thousands on the search's tasks, where it cannot be compared fairly any more.
Where the stages of its funnel chose by another task, that one is no fairer than the search's own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optforge.experiments.compare.spaces import spaces
from optforge.experiments.errors import UserError
from optforge.experiments.programs import HALL_OF_FAME
from optforge.experiments.rundirs import FUNNEL_RESULT
from optforge.primitives import OPS, Program

ANY_DATA = ("text", "arrays")
"""Tasks identified by their data path."""

DRAWN = 1000


def origin(text: str, name: str) -> dict[str, Any] | None:
    """What is known of a program given as ``RUN_DIR#RANK``; None for any other.

    Keys: ``name``, ``run_dir``, ``task`` of the search, ``chosen_by``, further tasks by which its funnel chose,
    ``strategy``, ``programs`` trained, ``seconds`` of evaluation, ``steps`` of training in all (None where that is not
    known), and ``lr``, the rate that the search found.
    """
    folder, mark, rank = text.rpartition("#")
    if not mark or Path(text).is_file() or not (Path(folder) / HALL_OF_FAME).is_file():
        return None
    try:
        config, programs, seconds = _search(Path(folder))
        chosen_by = _chosen_by(Path(folder))
        fame = json.loads((Path(folder) / HALL_OF_FAME).read_text(encoding="utf-8"))
        rate = next((float(row["lr"]) for row in fame if int(row["rank"]) == int(rank)), 0.0)
        tasks, steps = search_tasks(config), steps_each(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is not a search that can be read: {error}") from None
    return {
        "name": name,
        "run_dir": folder,
        "task": str(config["task"]),
        "chosen_by": [n for n in dict.fromkeys([*tasks, *chosen_by]) if task_key(n) != task_key(str(config["task"]))],
        "strategy": str(config.get("strategy", "evolution")),
        "programs": programs,
        "seconds": round(seconds, 1),
        "steps": None if steps is None else programs * steps,
        "lr": rate,
    }


def search_tasks(config: Mapping[str, Any]) -> list[str]:
    """Names of the tasks that a search scores on, from its configuration."""
    return list(config.get("tasks") or [str(config["task"])])


def steps_each(config: Mapping[str, Any]) -> int | None:
    """Training steps of each program of a search, over all its tasks, rates and seeds.

    None where they are a task's own and the task is not known here.
    """
    from optforge.experiments.tasks import get_task

    try:
        tasks = search_tasks(config)
        steps = sum(int(config.get("steps") or get_task(name, ready=False).steps) for name in tasks)
    except (UserError, KeyError):
        return None
    return steps * len(config.get("ladder", ())) * len(config.get("seeds", (0,)))


def _search(run_dir: Path) -> tuple[dict[str, Any], int, float]:
    """Configuration, programs trained and seconds of a search; from what it wrote last if the ledger is of old."""
    from optforge.search.ledger import Ledger
    from optforge.search.training.store import StoreError

    try:
        ledger = Ledger.open(run_dir, read_only=True)
    except StoreError as error:
        if not (run_dir / "search.json").is_file():
            raise ValueError(str(error)) from None
        found = json.loads((run_dir / "search.json").read_text(encoding="utf-8"))["search"]
        return found["config"], int(found["programs"]), float(found["seconds"])
    try:
        return dict(ledger.config), sum(1 for _ in ledger), ledger.seconds()
    except StoreError as error:
        raise ValueError(str(error)) from None
    finally:
        ledger.close()


def _stages(run_dir: Path) -> list[dict[str, Any]]:
    """The stages of the funnel over a search, if it got to its end."""
    file = run_dir / FUNNEL_RESULT
    return list(json.loads(file.read_text(encoding="utf-8"))["stages"]) if file.is_file() else []


def _chosen_by(run_dir: Path) -> list[str]:
    """Tasks by which a search's funnel chose: those of all its stages but the last, meta-validation."""
    return list(dict.fromkeys(str(task) for stage in _stages(run_dir)[:-1] for task in stage["tasks"]))


def task_key(text: str) -> str:
    """Canonical key of a task: file-backed tasks are identified by path, others by name without size and data path."""
    from optforge.experiments.tasks.transformers import SIZES

    if text.endswith(".py"):
        return str(Path(text).expanduser().resolve())
    name, _, path = text.partition("@")
    data = f"@{Path(path).expanduser().resolve()}" if path and name.partition(":")[0] in ANY_DATA else ""
    return name.removesuffix(f":{next(iter(SIZES))}") + data


def bred_on(origins: Sequence[dict[str, Any]]) -> set[str]:
    """Keys of the tasks by which these programs were chosen: by their searches, and by the funnels over them."""
    return {task_key(task) for row in origins for task in (row["task"], *row.get("chosen_by", ()))}


def _by_search(origins: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The programs of each search together, in whatever words its folder was named."""
    found: dict[Path, list[dict[str, Any]]] = {}
    for row in origins:
        found.setdefault(Path(row["run_dir"]).resolve(), []).append(row)
    return list(found.values())


def origin_sentences(origins: Sequence[dict[str, Any]], tasks: Sequence[str]) -> list[str]:
    """What a reader has to know of discovered programs, for the notes of a comparison."""
    found = []
    for rows in _by_search(origins):
        row, names = rows[0], ", ".join(r["name"] for r in rows)
        chosen_by = row.get("chosen_by", ())
        where = f"found by a search ({row['strategy']}) on {row['task']}"
        where += f", and chosen by its funnel on {', '.join(chosen_by)}" if chosen_by else ""
        unfair = bred_on([row])
        flattering = [task for task in tasks if task_key(task) in unfair]
        if flattering:
            where += f"; to be compared on {', '.join(flattering)} all the same flatters it"
        elif chosen_by:
            where += "; all these are left out"
        else:
            where += ", which is left out"
        cost = f"{row['steps']:,} steps and " if row["steps"] else ""
        cost += f"{row['seconds']:,.0f} seconds"
        found.append(f"{names}: {where}. The search trained {row['programs']:,} programs in {cost}.")
    return found


def random_control(program: Program, seed: int = 0) -> Program:
    """A random program like `program`: of `DRAWN` with as many statements and slots, the largest that could train.

    They come from the control strategy ``random`` of searches, and have to pass what is asked of every candidate before
    it is trained: to read the gradient, be finite on probes, keep state bounded, and go downhill on simulated
    quadratics. Of those with as many live statements, the one with more hyperparameters to tune comes first, up to two.

    Raises:
        UserError: if none does.
    """
    from optforge.search.duplicates.cache import DuplicateCache, Verdict
    from optforge.search.evolution.strategies import STRATEGIES
    from optforge.search.space.draft import Space

    rng = random.Random(seed)
    space = Space(tuple(name for name, op in OPS.items() if not op.needs_matrix))
    cache = DuplicateCache(check_descent=True)
    like = program.pruned()
    drawn = (STRATEGIES["random"].child(like, space, rng, lambda: like)[0] for _ in range(DRAWN))

    def size(candidate: Program) -> tuple[int, int]:
        return len(candidate.live.instructions), min(2, len(spaces([candidate], [1.0], 3)[0].dimensions) - 1)

    for candidate in sorted(drawn, key=size, reverse=True):
        if cache.identify(candidate).verdict is Verdict.NEW:
            return replace(candidate.pruned(), fallback=None)  # of what it is like, and never needed
    raise UserError(f"none of {DRAWN} random programs of this size could train; leave out --control")
