"""Evaluate batches in local processes, one torch thread each."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess

from primitives import Program, parse_program, print_program
from search.fitness import Evaluator, Fitness, Status

MAX_ATTEMPTS = 3
_evaluator: Evaluator


@dataclass
class Job:
    """A batch under way."""

    programs: tuple[Program, ...]
    future: Future[list[Fitness]] | None = None
    attempts: int = 0
    done: list[Fitness] = field(default_factory=list)


class Workers:
    """A pool of evaluating processes. A worker that dies costs its batch another attempt, not the search.

    Args:
        factory: makes the evaluator inside each process; must be picklable.
        count: number of processes; 0 evaluates in this process, for tests and debugging.
    """

    def __init__(self, factory: Callable[[], Evaluator], count: int) -> None:
        self.factory, self.count = factory, count
        self.open: list[Job] = []
        self.local = factory() if count == 0 else None
        self.pool = None if count == 0 else self._start()

    def _start(self) -> ProcessPoolExecutor:
        forks = "forkserver" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            context.set_forkserver_preload(["search.population"])  # import torch and lightning once, not per worker
            if threading.current_thread() is threading.main_thread():
                _start_forkserver()
        return ProcessPoolExecutor(self.count, mp_context=context, initializer=_initialise, initargs=(self.factory,))

    def submit(self, programs: Sequence[Program]) -> Job:
        """Begin evaluating a batch."""
        job = Job(tuple(programs))
        self.open.append(job)
        self._send(job)
        return job

    def _send(self, job: Job) -> None:
        if self.pool is not None:
            job.attempts += 1
            try:
                job.future = self.pool.submit(_evaluate, [print_program(p) for p in job.programs])
            except KeyboardInterrupt:  # while processes start: what they were asked for must not start after all
                _kill_forkserver()
                raise

    def result(self, job: Job) -> list[Fitness]:
        """Wait for a batch. Programs whose worker died in every attempt come back as failed."""
        while True:
            try:
                if job.future is not None:
                    job.done = job.future.result()
                elif self.local is not None:
                    job.done = self.local(job.programs)
                break
            except BrokenProcessPool:
                if job.attempts >= MAX_ATTEMPTS:
                    reason = f"the worker process died in {job.attempts} attempts"
                    job.done = [Fitness(math.inf, Status.FAILED, reason) for _ in job.programs]
                    break
                self._restart()
        self.open.remove(job)
        return job.done

    def _restart(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)
        self.pool = self._start()
        for job in self.open:
            if job.future is None or not job.future.done() or job.future.exception() is not None:
                self._send(job)

    def close(self) -> None:
        """End all processes at once, finished or not."""
        if self.pool is not None:
            processes = list((self.pool._processes or {}).values())
            self.pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()


def _start_forkserver() -> None:
    """Start it deaf to Ctrl-C, which reaches every process of a terminal: the driver decides what it means."""
    from multiprocessing import forkserver

    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, previous)


def _kill_forkserver() -> None:
    from multiprocessing import forkserver

    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def _initialise(factory: Callable[[], Evaluator]) -> None:
    global _evaluator
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what an interrupt means
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed driver must not leave workers behind
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    _evaluator = factory()


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _evaluate(texts: list[str]) -> list[Fitness]:
    return _evaluator([parse_program(text) for text in texts])
