"""What Optuna does for a comparison: it proposes configurations, and keeps what was trained where others can see it.

Work is kept as one study, whose trials are jobs: a job is claimed before it is trained and told when it is finished,
with all that came of it. Processes, and machines that share a database, take whatever nobody has claimed. A process
that dies takes its claim with it, and nothing else.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
import uuid
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from optforge.experiments.errors import UserError

HEARTBEAT = 20  # seconds
_LOCK_WAIT = 60  # seconds for which SQLite waits for another process
_CREATION_WAIT = 20  # seconds for which this process waits for the tables that another one is creating

Point = tuple[float, ...]


class Jobs:
    """The jobs of one comparison in an Optuna storage.

    Args:
        url: of the database, as in ``sqlite:///FILE`` or ``postgresql://HOST/NAME``, or the path of an SQLite file.
        study: name of the study; made if there is none.

    Raises:
        UserError: if the database cannot be used.
    """

    def __init__(self, url: str | Path, study: str) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.token = uuid.uuid4().hex
        try:
            with quiet():
                self._storage = open_storage(url, heartbeat_interval=HEARTBEAT)
                weakref.finalize(self, _close, self._storage)
            self._study = optuna.create_study(study_name=study, storage=self._storage, load_if_exists=True)
        except Exception as error:  # whatever the driver of that database raises
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if isinstance(error, ImportError) and str(url).startswith("postgresql"):
                reason = (
                    "PostgreSQL needs a driver: pip install 'psycopg[binary]', and postgresql+psycopg://user@host/name"
                )
            named = f"--storage {url.split('@')[-1]}" if isinstance(url, str) else url
            raise UserError(f"{named} cannot be used: {reason[:200]}") from None

    def results(self) -> dict[str, Any]:
        """What came of each finished job, by its name."""
        return {t.user_attrs["job"]: t.user_attrs["result"] for t in self._trials(TrialState.COMPLETE)}

    def release(self) -> int:
        """Give up every claim, whoever made it, and say how many there were; only while nobody else is at work."""
        claimed = self._trials(TrialState.RUNNING)
        for trial in claimed:
            self._study.tell(trial.number, state=TrialState.FAIL)
        return len(claimed)

    def release_dead(self) -> None:
        """Give up the claims of processes that have not been heard of for a while."""
        with quiet():
            optuna.storages.fail_stale_trials(self._study)

    def claim(self, names: Iterable[str]) -> tuple[str, int] | None:
        """Claim the first job that nobody has, and return it with its claim; None if there is none.

        Whoever wrote a claim first has the job: two that write at once see each other's, and the later one withdraws.
        """
        taken = {trial.user_attrs["job"] for trial in self._trials(TrialState.RUNNING, TrialState.COMPLETE)}
        for name in names:
            if name in taken:
                continue
            mark = {"job": name, "token": self.token}
            self._study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs=mark))
            claims = [
                trial
                for trial in self._trials(TrialState.RUNNING, TrialState.COMPLETE)
                if trial.user_attrs["job"] == name
            ]
            own = max((c for c in claims if c.user_attrs["token"] == self.token), key=lambda c: c.number)
            self._storage.record_heartbeat(own._trial_id)  # a claim without one would never count as dead
            if own.number == min(trial.number for trial in claims):
                return name, own.number
            self._study.tell(own.number, state=TrialState.FAIL)
        return None

    @contextmanager
    def alive(self, claim: int) -> Iterator[None]:
        """Let others see, as long as this lasts, that a claim is worked on."""
        number = next(t._trial_id for t in self._trials(TrialState.RUNNING) if t.number == claim)
        done = threading.Event()

        def beat() -> None:
            while True:
                self._storage.record_heartbeat(number)
                if done.wait(HEARTBEAT):
                    return

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def finish(self, claim: int, result: Any, seconds: float) -> None:
        """Keep the result of a claimed job, and how long it took; once this returns it is on the disk."""
        number = next((t._trial_id for t in self._trials(TrialState.RUNNING) if t.number == claim), None)
        if number is not None:  # otherwise it was taken for dead, and somebody else has the job now
            self._storage.set_trial_user_attr(number, "result", result)
            self._study.tell(claim, seconds)

    def seconds(self) -> float:
        """Time that all finished jobs took together."""
        return sum(trial.value or 0.0 for trial in self._trials(TrialState.COMPLETE))

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states)


def open_storage(where: str | Path, **options: Any) -> RDBStorage:
    """The Optuna storage at an address, or in the SQLite file at a path.

    A path is no part of an address, in which ``?``, ``%`` and braces mean something. Where another process creates the
    tables at the same moment, this one waits until they are there.

    Args:
        where: an address like ``postgresql://HOST/NAME``, or a path.
        options: of Optuna's `RDBStorage`.
    """
    address = str(where)
    engine: dict[str, Any] = {"pool_pre_ping": True}
    if isinstance(where, Path):
        file = where.resolve()
        address = "sqlite:///file"  # which says only what kind it is
        engine = {"creator": lambda: sqlite3.connect(file, timeout=_LOCK_WAIT, check_same_thread=False)}
    elif where.startswith("sqlite"):
        engine = {"connect_args": {"timeout": _LOCK_WAIT}}
    end = time.monotonic() + _CREATION_WAIT
    while True:
        try:
            return RDBStorage(address, engine_kwargs=dict(engine), **options)
        except Exception as error:  # whatever the driver of that database raises
            if not _is_being_created(error) or time.monotonic() > end:
                raise
        time.sleep(0.2)


def _is_being_created(error: Exception) -> bool:
    """Whether another process has made a table or row meanwhile, or some but not all of them."""
    named = {type(e).__name__ for e in (error, error.__cause__)}
    return bool(named & {"IntegrityError", "AssertionError"}) or "already exists" in str(error)


def _close(storage: RDBStorage) -> None:
    """A server keeps connections that nobody closes."""
    storage.remove_session()
    storage.engine.dispose()


def check_storage(url: str) -> None:
    """Raise `UserError` if `url` is not the address of a database, or of one that only one process can see."""
    kind, mark, name = url.partition("://")
    if not mark:
        raise UserError(f"--storage {url[:80]!r} is no address, as in: postgresql://user@host/name")
    if kind.startswith("sqlite") and (not name.strip("/") or ":memory:" in name):
        raise UserError(f"--storage {url[:80]} is only in memory; name a file, as in: sqlite:///jobs.sqlite")


def proposals(
    sampler: str, dimensions: int, count: int, seed: int, tried: Sequence[tuple[Point, float]] = ()
) -> list[Point]:
    """Points of the unit cube that are worth trying.

    Args:
        sampler: ``"qmc"``: the first `count` points of a scrambled Sobol sequence, which begin with those for every
            smaller count; ``"tpe"``: the next `count` from the tree-structured Parzen estimator.
        dimensions: of the cube.
        count: how many.
        seed: of the scrambling or the sampler.
        tried: points with their losses, which ``"tpe"`` learns from.
    """
    cube: dict[str, BaseDistribution] = {f"x{k}": FloatDistribution(0.0, 1.0) for k in range(dimensions)}
    optuna.logging.set_verbosity(optuna.logging.WARNING)

    with quiet():
        if sampler == "tpe":
            chooser: Any = optuna.samplers.TPESampler(
                seed=seed + len(tried), constant_liar=True, n_startup_trials=max(4, dimensions + 1), multivariate=True
            )
        else:
            chooser = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=seed)
        study = optuna.create_study(sampler=chooser)
        # without any trial, QMC would not begin
        for point, loss in tried if sampler == "tpe" and tried else [((0.5,) * dimensions, 0.0)]:
            params = {f"x{k}": x for k, x in enumerate(point)}
            study.add_trial(create_trial(params=params, distributions=cube, value=loss))
        found = [study.ask(cube).params for _ in range(count)]
    return [tuple(params[f"x{k}"] for k in range(dimensions)) for params in found]


@contextmanager
def alone_with(file: Path) -> Iterator[None]:
    """Hold `file` against other processes of this machine that ask for it so; wait for them, and say so.

    The lock is on a file beside it, of the same name and ``.lock``; without effect on systems that have no such locks.

    Raises:
        UserError: if no file can be written there.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        lock = file.with_name(f"{file.name}.lock").open("ab")
    except OSError as error:
        raise UserError(f"{file} cannot be used for trials: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"optforge: note: waiting for another process that uses {file}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's remarks that what is used is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
