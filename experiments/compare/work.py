"""Doing the jobs of a comparison, in any number of processes that meet in one storage."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from optforge.experiments.compare.batches import Results, train_all
from optforge.experiments.compare.comparison import Protocol, finite_or_null
from optforge.experiments.compare.costs import measure_costs
from optforge.experiments.compare.plan import Job, Plan, block_size, pending, rule
from optforge.experiments.compare.spaces import RATE
from optforge.experiments.compare.statistics import censor
from optforge.experiments.compare.tuning import Jobs
from optforge.experiments.errors import UserError
from optforge.experiments.tasks import get_task
from optforge.search.training.task import parameter_count

IDLE = 0.5
"""Seconds between looks while others have everything that can be done."""

Report = Callable[[str, int, int], None]
"""Called with what is being done, how many jobs are finished, and how many are known to be needed."""


def study_name(plan: Plan) -> str:
    """The same for equal plans of equal tasks, so that machines which are told the same work together."""
    told = plan.as_json()
    if not plan.fingerprints:  # begun before plans had any
        del told["fingerprints"]
    return "optforge-" + hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def work(url: str | Path, plan: Plan, report: Report = lambda what, done, total: None) -> None:
    """Take and do jobs of `plan` from the storage at `url` until all are done, here or elsewhere.

    `url` is an address, or the path of an SQLite file; `report` is called before each job. A process that was started
    by another one ends with it.
    """
    torch.set_num_threads(1)  # processes share the cores; within one, members are stacked
    jobs = Jobs(url, study_name(plan))
    parent = multiprocessing.parent_process()
    blocks = {name: block_size(plan, parameter_count(get_task(name))) for name in plan.tasks}
    while parent is None or parent.is_alive():
        results = jobs.results()
        waiting = {job.name: job for job in pending(plan, results, blocks)}
        if not waiting:
            return
        claimed = jobs.claim(waiting)
        if claimed is None:
            report("waiting for jobs that others do", len(results), len(results) + len(waiting))
            jobs.release_dead()
            time.sleep(IDLE)
            continue
        name, claim = claimed
        report(f"{waiting[name].task}: {_WORDS[waiting[name].kind]}", len(results), len(results) + len(waiting))
        begin = time.perf_counter()
        with jobs.alive(claim):
            result = run_job(plan, waiting[name])
        jobs.finish(claim, finite_or_null(result), time.perf_counter() - begin)


_WORDS = {"tune": "tuning", "final": "reported runs", "rates": "learning rates", "costs": "costs"}


def work_together(url: str | Path, plan: Plan, workers: int, report: Report, *, alone: bool) -> dict[str, Any]:
    """`work` in this process and in `workers` − 1 more; returns all results.

    With `alone`, no other machine uses the storage, so that claims from before are of processes that have died. If a
    process dies meanwhile, the others do its jobs, and a sentence on standard error says so.
    """
    if alone:
        Jobs(url, study_name(plan)).release()
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=work, args=(url, plan), daemon=True) for _ in range(workers - 1)]
    for process in others:
        process.start()
    try:
        work(url, plan, report)
        for process in others:
            process.join()
        if failed := [process.exitcode for process in others if process.exitcode]:
            what = f"{len(failed)} of {workers} processes died (exit code {failed[0]})"
            print(f"optforge: note: {what}; the others did all jobs, so that nothing is missing", file=sys.stderr)
    finally:
        for process in others:
            process.terminate()
    return Jobs(url, study_name(plan)).results()


def run_job(plan: Plan, job: Job) -> dict[str, Any]:
    """Train what a job asks for, and tell what came of it in JSON's own types; the same wherever it is done.

    Raises:
        UserError: for a loss before training that is not finite, which failed runs could not count as.
    """
    task = get_task(job.task)
    if job.kind == "costs":
        program = rule(plan, job, job.configurations[0])
        costs = measure_costs(task, program, job.configurations[0][RATE], job.task == plan.tasks[0])
        return {name: getattr(costs, name) for name in costs.__dataclass_fields__}
    protocol = plan.protocol(task, job.horizon)
    members = [(protocol.rule(rule(plan, job, c)), c[RATE]) for c in job.configurations]
    final = job.kind == "final"
    seeds, splits = (protocol.seeds, ("valid", "test")) if final else (protocol.tune_seeds, ("valid",))
    size = parameter_count(task)
    results = train_all(protocol, members, seeds, splits, size, "", _silent, watch=final, room=plan.room)
    if not np.isfinite(results.start).all():
        raise UserError(f"the validation loss of {job.task} before training is not finite; mend its data or its loss")
    return _final(results) if final else {"trials": _trials(job, protocol, results)}


def _silent(what: str, done: int, total: int) -> None:
    """Jobs are what is reported."""


def _trials(job: Job, protocol: Protocol, results: Results) -> list[dict[str, Any]]:
    counted, failed = censor(results.losses["valid"], results.diverged_at >= 0, results.start)
    return [
        {
            "values": configuration,
            "loss": float(np.mean(counted[k])),
            "losses": results.losses["valid"][k].tolist(),
            "counted": counted[k].tolist(),
            "failed": failed[k].tolist(),
            "at": list(job.points[k]) if job.points else [],
        }
        for k, configuration in enumerate(job.configurations)
    ]


def _final(results: Results) -> dict[str, Any]:
    arrays = {"start": results.start, "diverged_at": results.diverged_at, "curve": results.curve}
    found = {name: array.tolist() for name, array in arrays.items()} | {"valid_curve": results.valid_curve.tolist()}
    for kind in ("losses", "accuracy"):
        found[kind] = {name: array.tolist() for name, array in getattr(results, kind).items()}
    return found


def final_results(found: dict[str, Any]) -> Results:
    """What `run_job` told of reported runs, as it was trained; null is NaN."""

    def array(value: Any) -> np.ndarray:
        return np.array(value, dtype=np.float64)  # None becomes NaN

    return Results(
        losses={name: array(value) for name, value in found["losses"].items()},
        accuracy={name: array(value) for name, value in found["accuracy"].items()},
        start=array(found["start"]),
        diverged_at=np.array(found["diverged_at"]),
        curve=array(found["curve"]),
        valid_curve=array(found["valid_curve"]),
    )
