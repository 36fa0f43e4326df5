"""Optuna tunes the numbers in a program: literals, hyperparameters and the learning rate, each on its own scale.

Evolution moves constants too, but blindly and rarely; the finalists of a search, and whatever they are compared with,
get the same number of trials here. A trial is one training run from each seed, on the same batches for all; those of a
batch train together. What is hopelessly behind the untuned program is dropped (`search.training.race`), and Optuna is
told that the trial was pruned, with the loss it had. Trials are kept in a study of Optuna's own storage, so that an
interrupted tuning goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from optforge.experiments.compare.batches import Progress
from optforge.experiments.compare.fingerprints import task_fingerprint
from optforge.experiments.compare.tuning import alone_with, open_storage, quiet
from optforge.experiments.errors import UserError
from optforge.primitives import Const, Hyper, Program, print_program
from optforge.search.space.draft import Draft, nudged
from optforge.search.training import Task
from optforge.search.training.race import NO_RACE, Race

if TYPE_CHECKING:
    from optforge.search.training.population.members import Outcome

SAMPLERS = ("tpe", "cmaes")
SEEDS = (100, 101)
"""Seeds of the trials: neither those of searches and funnels (below) nor of comparisons (above)."""

BATCH = 16
"""Trials that train together; each is proposed without knowing the others of its batch."""

RACE = Race()
FACTOR = 4.0
"""How far a number may move: by this factor either way, of its distance from 1 if it is a share near 1."""

_TRAINED = "trained"


class Place(NamedTuple):
    """A number that is tuned: where it is (statement and argument, or index of a hyperparameter), and its scale."""

    where: tuple[int, int] | int
    value: float
    scale: str

    def moved(self, away: float) -> float:
        """The number at a coordinate from -1 to 1, to four digits; at 0 it is what it was."""
        if away == 0:
            return self.value
        if self.scale == "linear":
            return float(f"{self.value + away * (abs(self.value) or 0.5):.4g}")
        found = nudged(abs(self.value), self.scale, away * math.log(FACTOR))
        near = self.scale == "unit" and found > 0.5  # its distance from 1 is what counts
        found = 1 - float(f"{1 - found:.4g}") if near else float(f"{found:.4g}")
        return math.copysign(found, self.value)


@dataclass(frozen=True)
class TunedConstants:
    """What tuning gave.

    Attributes:
        program, lr: with the numbers of the best trial; the first trial is the program as it was.
        loss, before: validation loss of that trial and of the first one, mean over the seeds; infinite if it diverged.
        trials, pruned, failed: how many were finished, and of these broken off, or diverged.
        numbers: how many were tuned, the learning rate included.
        sampler, seeds: how they were proposed, and the seeds of the runs.
    """

    program: Program
    lr: float
    loss: float
    before: float
    trials: int
    pruned: int
    failed: int
    numbers: int
    sampler: str
    seeds: tuple[int, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it, the program as text."""
        return asdict(replace(self, program=None)) | {"program": print_program(self.program)}  # type: ignore[arg-type]


def places(program: Program) -> tuple[Place, ...]:
    """The numbers of a program: literals but 0, 1 and -1, which are structure, and hyperparameters not switched off."""
    draft = Draft(program)
    found = []
    for where in draft.places():
        value = getattr(draft.get(where), "value", 0.0)
        if value not in (0.0, 1.0, -1.0):
            found.append(Place(where, value, "unit" if 0.5 < value < 1 else "log"))
    for index, hyper in enumerate(draft.hypers):
        if hyper.default or hyper.scale == "linear":
            found.append(Place(index, hyper.default, hyper.scale))
    return tuple(found)


def number_at(program: Program, where: tuple[int, int] | int) -> float:
    """The number that `program` has in a place."""
    draft = Draft(program)
    return (
        draft.hypers[where].default if isinstance(where, int) else float(getattr(draft.get(where), "value", math.nan))
    )


def with_numbers(program: Program, where: Sequence[Place], values: Sequence[float]) -> Program:
    """`program` with other numbers in these places."""
    draft = Draft(program)
    for place, value in zip(where, values, strict=True):
        if isinstance(place.where, int):
            old = draft.hypers[place.where]
            draft.hypers[place.where] = Hyper(old.name, value, old.scale)
        else:
            draft.put(place.where, Const(value))
    built = draft.build()
    return Program(built.state, built.hypers, built.body, built.update, built.next_state, program.fallback)


def tune_constants(
    program: Program,
    task: Task,
    lr: float,
    *,
    trials: int,
    seeds: Sequence[int] = SEEDS,
    steps: int | None = None,
    sampler: str = "tpe",
    seed: int = 0,
    storage: Path | None = None,
    report: Progress | None = None,
    what: str = "constants",
    source: str = "",
) -> TunedConstants:
    """Tune the numbers of `program` and its learning rate on `task`, by validation loss at the end of the run.

    Args:
        program: the update rule; dead code is left out first.
        task: what is trained.
        lr: learning rate of the first trial.
        trials: how many there are in all, the first included; those that `storage` has already count.
        seeds: of initial weights and batches, the same for all trials.
        steps: length of a run; the task's own by default.
        sampler: ``"tpe"`` (tree-structured Parzen estimator) or ``"cmaes"`` (covariance matrix adaptation).
        seed: of the sampler.
        storage: SQLite file for the study; kept in memory by default. A study belongs to the program, the task as it
            is, and all other arguments but the number of trials: with others, another one is begun in the same file.
            Of two processes with one file, the second waits.
        report: called after each batch.
        what: name of the stage in `report`, and the beginning of the study's name.
        source: hash of what the task is made of beside what it shows, as of its file.

    Raises:
        ValueError: for an unknown sampler or fewer trials than one.
        UserError: if the storage cannot be used.
    """
    from optforge.search.training.population.members import train_members

    if sampler not in SAMPLERS or trials < 1:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)} and trials at least 1; got {sampler}, {trials}")
    program = program.pruned()
    where, steps = places(program), steps or task.steps
    cube: dict[str, BaseDistribution] = {f"x{k}": FloatDistribution(-1, 1) for k in range(len(where) + 1)}

    def member(trial: Trial | FrozenTrial) -> tuple[Program, float]:
        first, *others = (trial.params[name] for name in cube)
        values = [place.moved(x) for place, x in zip(where, others, strict=True)]
        return with_numbers(program, where, values), float(f"{lr * FACTOR**first:.4g}") if first else lr

    said = [print_program(program), task_fingerprint(task), source, lr, steps, list(seeds), sampler, seed]
    name = f"{what} {hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]}"
    # the untuned program, which is also the standard of the race; in a study that goes on it is trained once more
    found = train_members(task, [(program, lr)], seeds, steps=steps, race=RACE.patient())
    standards = [window[..., 0] for window in found.windows]
    race = RACE if len(standards) == len(RACE.looks) and all(s.isfinite().all() for s in standards) else NO_RACE
    with nullcontext() if storage is None else alone_with(storage):
        study = _study(storage, name)
        if not _ended(study):
            study.enqueue_trial(dict.fromkeys(cube, 0.0), skip_if_exists=True)
            _tell(study, [study.ask(cube)], found)
        while (done := len(_ended(study))) < trials:
            if report is not None:
                report(what, done * len(seeds), trials * len(seeds))
            with quiet():
                study.sampler = _sampler(sampler, seed + done)
                batch = [study.ask(cube) for _ in range(min(BATCH, trials - done))]
            options: dict[str, Any] = {"race": race, "standards": standards if race.looks else ()}
            _tell(study, batch, train_members(task, [member(t) for t in batch], seeds, steps=steps, **options))
        ended = _ended(study)[:trials]
    if report is not None:
        report(what, trials * len(seeds), trials * len(seeds))
    losses = [math.inf if t.state is not TrialState.COMPLETE or t.value is None else t.value for t in ended]
    best = losses.index(min(losses))
    tuned, rate = member(ended[best])
    return TunedConstants(
        program=tuned,
        lr=rate,
        loss=losses[best],
        before=losses[0],
        trials=len(ended),
        pruned=sum(t.state is TrialState.PRUNED for t in ended),
        failed=sum(t.state is TrialState.FAIL for t in ended),
        numbers=len(cube),
        sampler=sampler,
        seeds=tuple(seeds),
    )


def _study(storage: Path | None, name: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        kept = None if storage is None else open_storage(storage)
        study = optuna.create_study(storage=kept, study_name=name, load_if_exists=True)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):  # of a process that is no more
            study.tell(trial.number, state=TrialState.FAIL)
    except Exception as error:  # whatever the database says
        raise UserError(f"{storage} cannot be used for trials: {str(error).splitlines()[0][:200]}") from None
    return study


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were trained, in order; not those whose process died."""
    return [t for t in study.trials if t.state.is_finished() and _TRAINED in t.user_attrs]


def _tell(study: optuna.Study, batch: Sequence[Trial], found: Outcome) -> None:
    for trial, behind, losses in zip(batch, found.dropped, found.losses["valid"], strict=True):
        loss = float(losses.mean())
        trial.set_user_attr(_TRAINED, True)
        if behind is not None:
            trial.report(behind.loss, behind.step)
            study.tell(trial, state=TrialState.PRUNED)
        elif math.isfinite(loss):
            study.tell(trial, loss)
        else:
            study.tell(trial, state=TrialState.FAIL)


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    return optuna.samplers.CmaEsSampler(seed=seed)
