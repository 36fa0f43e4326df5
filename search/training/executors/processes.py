"""Do batches of work in local processes, one torch thread each, or in this one."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from optforge.search.training.executors.pool import LIMIT, Died, Pool, Work, Worker

MEMORY = 0.9  # of the machine's: what one worker may ask for


class Workers(Pool["_Process | _Here"]):
    """Processes on this machine, which see to it that none outlives the driver. They share GPUs evenly.

    Args:
        work: what they do.
        count: number of processes; 0 works in this process, without bounds, for tests and debugging.
        limit: seconds for a batch, see `Pool`.
        memory: bytes that a process may ask for, by default most of the machine's; more is an exception inside it.
    """

    def __init__(self, work: Work, count: int, *, limit: float = LIMIT, memory: int | None = None) -> None:
        super().__init__(work, max(1, count), limit=limit)
        self.here = count == 0
        self.memory = _physical_memory() if memory is None else memory

    @property
    def pids(self) -> list[int]:
        """Ids of the processes."""
        processes = [w.process for w in (*self.idle, *self.busy) if isinstance(w, _Process)]
        return [p.pid for p in processes if p.pid is not None]

    def _make(self) -> _Process | _Here:
        if self.here:
            return _Here(self.work)
        taken = Counter(w.gpu for w in (*self.idle, *self.busy) if isinstance(w, _Process))
        return _Process(
            self.work._replace(encode=_unchanged), self.memory, min(visible_gpus(), key=taken.__getitem__, default=None)
        )

    def _wait(self, busy: Sequence[_Process | _Here], timeout: float) -> Sequence[_Process | _Here]:
        processes = {w.connection: w for w in busy if isinstance(w, _Process)}
        if not processes:
            return busy
        return [processes[c] for c in multiprocessing.connection.wait(list(processes), timeout)]  # type: ignore[index]


def _unchanged(item: Any) -> Any:
    """Encoding happens in the driver; what it needs must not travel."""
    return item


class _Here:
    """A worker that is this process: it works when it is asked for its answer."""

    def __init__(self, work: Work) -> None:
        self.worker = Worker(work)
        self.items: Sequence[Any] = ()
        self.number = 0

    def start(self, items: Sequence[Any], number: int) -> None:
        self.items, self.number = items, number

    def answer(self) -> list[Any]:
        return self.worker.answer(self.items, self.number)

    def kill(self) -> None:
        pass


class _Process:
    """A worker process at the other end of a pipe."""

    def __init__(self, work: Work, memory: int, gpu: str | None) -> None:
        self.gpu = gpu
        context = _context()
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, memory, gpu), daemon=True)
        try:
            self.process.start()
        except KeyboardInterrupt:  # while processes start: what they were asked for must not start after all
            _kill_forkserver()
            raise
        theirs.close()  # or its end would not be noticed

    def start(self, items: Sequence[Any], number: int) -> None:
        try:
            self.connection.send((items, number))
        except OSError:
            raise Died from None

    def answer(self) -> list[Any]:
        try:
            answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(1)
            raise Died(f"exit code {self.process.exitcode}") from None
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    def kill(self) -> None:
        self.process.kill()
        self.connection.close()
        self.process.join(5)


def _context() -> SpawnContext | ForkServerContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["optforge.search.training.population.members"]
    )  # import torch and lightning once, not per worker
    if threading.current_thread() is threading.main_thread():
        _start_forkserver()
    return context


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


def visible_gpus() -> list[str]:
    """Names of this machine's GPUs, as ``CUDA_VISIBLE_DEVICES`` takes them."""
    count, names = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[:count] if names else list(map(str, range(count)))


def _serve(connection: Connection, work: Work, memory: int, gpu: str | None) -> None:
    """What a worker process does: an empty answer when it is ready, then one for each batch."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # heard if CUDA has not been used yet, as in a process that begins
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what an interrupt means
    parent = multiprocessing.parent_process()
    if parent is not None:  # a killed driver must not leave workers behind
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    bound_memory(memory)
    worker = Worker(work)
    items, number = list[Any](), 0
    with contextlib.suppress(EOFError, OSError):  # the driver has hung up
        while True:
            try:
                answer: list[Any] | Exception = worker.answer(items, number)
            except Exception as error:
                answer = error
            connection.send(answer)
            items, number = connection.recv()


def bound_memory(limit: int) -> None:
    """Make this process fail to allocate more than `limit` bytes, and the first to go if memory runs out altogether.

    Where the system offers neither (outside Linux), it does nothing.
    """
    with contextlib.suppress(ImportError, OSError, ValueError, AttributeError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if most < 0 else min(limit, most), most))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _physical_memory() -> int:
    try:
        return int(MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return 2**62


def _follow(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
