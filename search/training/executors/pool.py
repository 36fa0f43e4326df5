"""Give batches to workers, whatever these are, so that a worker that dies, hangs or dawdles costs its batch only time.

A batch of items is done by one worker at a time. If that worker dies, another one gets the batch; if it does not answer
within a bound, it is killed. A batch that fails for good is halved, and its halves again, until the item that did it
is alone: that one is answered as failed, its neighbours properly. All this happens while the caller is in `submit`,
`wait` or `result`; there are no threads.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch

MAX_ATTEMPTS = 3
LOOK = 0.05  # seconds between looks for answers while batches are handed in; a look costs some time for each worker
TICK = 0.5  # seconds between looks at the clock
HANGING = 20.0  # times the median time of a batch, ...
LEAST = 60.0  # ... and at least so many seconds, after which a worker counts as hanging
LIMIT = 1800.0  # the same before any batch has been finished


class Died(Exception):
    """A worker ended without an answer."""


class Work(NamedTuple):
    """What workers do with batches of items; all of it can be pickled.

    Attributes:
        make: called once inside each worker; what it returns is called with the items of a batch and a number that
            the caller chooses (such as the generation of a search), and answers in order.
        encode, decode: an item as plain data, and back inside the worker.
        failed: the answer for an item that no worker survives, from the reason.
    """

    make: Callable[[], Callable[[Sequence[Any], int], Sequence[Any]]]
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    failed: Callable[[str], Any]


class Worker:
    """`Work` inside a worker: items come as plain data, and errors bring their traceback along."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.answering: Callable[[Sequence[Any], int], Sequence[Any]] | None = None

    def answer(self, items: Sequence[Any], number: int = 0) -> list[Any]:
        """The answer to each item, in order. The first call sets the worker up."""
        try:
            if self.answering is None:
                torch.set_num_threads(1)
                self.answering = self.work.make()
            return list(self.answering([self.work.decode(x) for x in items], number)) if items else []
        except Exception as error:
            error.add_note("in a worker:\n" + traceback.format_exc())
            raise


class Executor(Protocol):
    """What does batches: `submit` several, then wait for each with `result`, or for any with `wait`."""

    count: int

    def submit(self, items: Sequence[Any], number: int = 0) -> Job:
        """Begin a batch."""

    def wait(self, timeout: float) -> None:
        """Work on what was submitted until something is finished, or for so many seconds."""

    def result(self, job: Job) -> list[Any]:
        """Wait for a batch, and return its answers in order."""

    def close(self) -> None:
        """End all workers at once, finished or not."""


class Place(Protocol):
    """A process, or an actor, that does one batch at a time. When new, it answers with an empty list first."""

    def start(self, items: Sequence[Any], number: int) -> None:
        """Hand it a batch of encoded items; returns at once. Raises `Died` if it has."""

    def answer(self) -> list[Any]:
        """Its answer, once it is there. Raises `Died`, or what the work raised."""

    def kill(self) -> None:
        """End it at once."""


W = TypeVar("W", bound=Place)


@dataclass(eq=False)
class Job:
    """A batch under way."""

    items: tuple[Any, ...]
    number: int = 0
    done: dict[int, Any] = field(default_factory=dict)  # by position in the batch
    error: BaseException | None = None

    @property
    def finished(self) -> bool:
        """Whether `result` would return at once."""
        return self.error is not None or len(self.done) == len(self.items)


@dataclass(eq=False)
class _Part:
    """Those items of a job that are done together: all at first, fewer after failures."""

    job: Job
    positions: Sequence[int]
    attempts: int = 0
    running: int = 0  # copies of it

    @property
    def finished(self) -> bool:
        return self.job.error is not None or self.positions[0] in self.job.done


class Pool(Generic[W]):
    """Keeps `count` workers busy. A subclass says how to make one and how to wait for them.

    Attributes:
        limit: seconds after which a worker without an answer is killed; after some batches, when it is known how long
            they take, `HANGING` times their median (at least `LEAST` seconds) if that is less.
        patience: a batch that takes so many times the median is given to an idle worker, too, and the first answer
            counts. Results are deterministic, so it does not matter whose that is.
        deaths: workers that died, or were killed, while they had a batch.
    """

    def __init__(self, work: Work, count: int, *, limit: float = LIMIT, patience: float = math.inf) -> None:
        self.work = work
        self.count, self.limit, self.patience = count, limit, patience
        self.queue: deque[_Part] = deque()
        self.idle: list[W] = []
        self.busy: dict[W, tuple[_Part | None, float]] = {}  # None: it is starting
        self.seconds: deque[float] = deque(maxlen=100)  # that whole batches took lately
        self.stillborn = 0
        self.deaths = 0
        self.looked = self.watched = -math.inf

    def _make(self) -> W:
        """A new worker; returns at once."""
        raise NotImplementedError

    def _wait(self, busy: Sequence[W], timeout: float) -> Sequence[W]:
        """Those of `busy` that have an answer or have died, as soon as there is one."""
        raise NotImplementedError

    def submit(self, items: Sequence[Any], number: int = 0) -> Job:
        """Begin a batch."""
        job = Job(tuple(items), number)
        if items:
            self.queue.append(_Part(job, range(len(items))))
        self._advance(0.0)
        return job

    def wait(self, timeout: float) -> None:
        """Work on what was submitted until something is finished, or for so many seconds."""
        self._advance(timeout)

    def result(self, job: Job) -> list[Any]:
        """Wait for a batch. Items on which every worker died or hung are answered as failed."""
        while not job.finished:
            self._advance(TICK)
        if job.error is not None:
            raise job.error
        return [job.done[position] for position in range(len(job.items))]

    def close(self) -> None:
        """End all workers at once, finished or not."""
        for worker in [*self.idle, *self.busy]:
            worker.kill()
        self.idle, self.busy = [], {}
        self.queue.clear()

    def _advance(self, timeout: float) -> None:
        while len(self.idle) + len(self.busy) < self.count:
            self.busy[self._make()] = (None, time.monotonic())
        if timeout or time.monotonic() - self.looked > LOOK:
            for worker in self._wait(list(self.busy), timeout):
                self._collect(worker)
            self.looked = time.monotonic()
        if self.looked - self.watched > TICK:
            self._watch()
            self.watched = self.looked
        while self.idle and self.queue:
            self._start(self.idle.pop(), self.queue.popleft())

    def _start(self, worker: W, part: _Part) -> None:
        if part.finished:
            self.idle.append(worker)
            return
        try:
            worker.start([self.work.encode(part.job.items[at]) for at in part.positions], part.job.number)
        except Died:  # idle, hence not the part's fault
            worker.kill()
            self.queue.appendleft(part)
        else:
            part.running += 1
            self.busy[worker] = (part, time.monotonic())

    def _collect(self, worker: W) -> None:
        part, begin = self.busy.pop(worker)
        try:
            answers = worker.answer()
        except Died as error:
            worker.kill()
            if part is None:
                self._stillborn(error)
            else:
                self._failed(part, "died")
            return
        except Exception as error:  # a bug of the work, not a worker's death: whoever waits shall see it
            self.idle.append(worker)
            if part is None:
                raise
            part.job.error = error
            return
        self.idle.append(worker)
        self.stillborn = 0
        if part is not None:
            part.running -= 1
            self.seconds.append(time.monotonic() - begin)
            part.job.done.update(zip(part.positions, answers, strict=True))

    def _stillborn(self, error: Died) -> None:
        self.stillborn += 1
        if self.stillborn >= MAX_ATTEMPTS * self.count:
            raise RuntimeError(f"{self.stillborn} workers in a row died while they started: {error}")

    def _failed(self, part: _Part, how: str) -> None:
        """Try once more, by halves, or not at all. A worker that hung has taken long enough not to be asked again."""
        self.deaths += 1
        part.running -= 1
        part.attempts += 1
        if part.finished or part.running:
            return
        size = len(part.positions)
        if how == "died" and part.attempts < MAX_ATTEMPTS:
            self.queue.appendleft(part)
        elif size > 1:
            halves = part.positions[: size // 2], part.positions[size // 2 :]
            last = MAX_ATTEMPTS - 1  # one attempt for each half
            self.queue.extendleft(_Part(part.job, half, last) for half in reversed(halves))
        else:
            reason = f"the worker {how}" + (f" in {part.attempts} attempts" if how == "died" else "")
            part.job.done[part.positions[0]] = self.work.failed(reason)

    def _watch(self) -> None:
        now = time.monotonic()
        usual = median(self.seconds) if len(self.seconds) >= 5 else None
        limit = self.limit if usual is None else min(self.limit, max(LEAST, HANGING * usual))
        for worker, (part, begin) in list(self.busy.items()):
            if part is None:
                continue  # a cluster may take hours to give a place back
            if now - begin > limit:
                del self.busy[worker]
                worker.kill()
                self._failed(part, f"gave no answer for {limit:.3g} s")
            elif (
                usual is not None
                and now - begin > self.patience * usual
                and self.idle
                and not self.queue
                and part.running == 1
            ):
                self._start(self.idle.pop(), part)
