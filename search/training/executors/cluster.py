"""Do batches of work on a Ray cluster: one actor for each GPU, or for each CPU where there is none.

Actors only train; the driver breeds, and alone writes the ledger. A node that dies or is preempted costs its batches
another attempt elsewhere, and its actors start again as soon as the cluster has room. A batch that takes several times
as long as usual is given to an idle actor as well.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from optforge.search.training.executors.pool import LIMIT, Died, Pool, Work, Worker

PATIENCE = 4.0  # times the median time of a batch


def connect(address: str) -> None:
    """Connect this process to a cluster until it ends, unless it is connected already.

    Args:
        address: of a running cluster (``"HOST:6379"``, or ``"auto"`` on one of its nodes), or ``"local"`` to start one
            on this machine.

    Raises:
        ConnectionError: if there is none.
    """
    if ray.is_initialized():
        return
    host, _, port = address.rpartition(":")
    try:
        if host.strip("[]") and port.isdecimal():  # Ray would try for minutes where nobody listens
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError, OSError, RayError) as error:
        raise ConnectionError(str(error).strip().splitlines()[0]) from None


class Cluster(Pool["_Actor"]):
    """Actors of the cluster that `connect` found. optforge, and what the task needs, must be installed on its nodes.

    Args:
        work: what actors do.
        count: number of actors; by default as many as the cluster has GPUs, or CPUs if it has no GPU.
        limit, patience: bounds of time, see `Pool`.
    """

    def __init__(
        self,
        work: Work,
        count: int | None = None,
        *,
        limit: float = LIMIT,
        patience: float = PATIENCE,
    ) -> None:
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 0))
        needs = {"num_cpus": 0, "num_gpus": 1} if gpus else {"num_cpus": 1}
        super().__init__(work, count or gpus or max(1, cpus), limit=limit, patience=patience)
        self.shared = ray.put(work._replace(encode=str))
        remote: Any = ray.remote  # its types know no options from a dictionary
        self.remote = remote(max_restarts=0, **needs)(Worker)

    def _make(self) -> _Actor:
        return _Actor(self.remote.remote(self.shared))

    def _wait(self, busy: Sequence[_Actor], timeout: float) -> Sequence[_Actor]:
        actors = {actor.pending: actor for actor in busy}
        if not actors:
            return []
        ready, _ = ray.wait(list(actors), num_returns=1, timeout=timeout, fetch_local=False)
        if ready:  # take all that are
            ready, _ = ray.wait(list(actors), num_returns=len(actors), timeout=0, fetch_local=False)
        return [actors[reference] for reference in ready]


class _Actor:
    """A worker that is an actor; `pending` is what it works on."""

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.pending = handle.answer.remote([])  # done once it has started

    def start(self, items: Sequence[Any], number: int) -> None:
        self.pending = self.handle.answer.remote(items, number)

    def answer(self) -> list[Any]:
        try:
            return list(ray.get(self.pending))
        except RayTaskError as error:  # the work's own
            raise error.cause from None if isinstance(error.cause, Exception) else error
        except RayError as error:
            raise Died(str(error)) from None

    def kill(self) -> None:
        ray.kill(self.handle)
