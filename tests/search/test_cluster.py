"""Ray: the contract of all executors on a real cluster of two nodes on this machine, one of which is killed."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.executors import Make, ProcessContract
from support.searches import run, toy_factory

pytest.importorskip("ray", reason="the extra cluster is not installed")
import ray
from ray.cluster_utils import Cluster as LocalCluster

from optforge.experiments.errors import UserError
from optforge.experiments.searching.options import SearchOptions
from optforge.experiments.searching.run import digest, run_search
from optforge.search.fitness.evaluator import Fitness, evaluating
from optforge.search.training.executors.cluster import Cluster, connect
from optforge.search.training.executors.pool import Job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # Ray's processes are nice, and starve beside other work
    pytest.mark.xdist_group("ray"),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning:ray", "ignore::FutureWarning:ray", "ignore::ResourceWarning"
    ),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[LocalCluster]:
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
    memory = 100 * 2**20  # bytes for objects on each node; batches are a few kilobytes
    cluster = LocalCluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": memory, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1, object_store_memory=memory)
    connect(cluster.address)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    patch.undo()
    gc.collect()


def test_no_cluster_is_a_sentence(tmp_path: Path) -> None:
    assert not ray.is_initialized()  # hence before the tests that are
    with pytest.raises(UserError, match="there is no Ray cluster at nowhere:1"):
        run_search(SearchOptions(run_dir=tmp_path, ray="nowhere:1"))
    assert not any(tmp_path.iterdir())  # so that the next attempt may use it


class TestRay(ProcessContract):
    @pytest.fixture
    def make(self, nodes: LocalCluster) -> Iterator[Make]:
        made: list[Cluster] = []

        def make(factory: Any, **options: Any) -> Cluster:
            made.append(Cluster(evaluating(factory), **options))
            return made[-1]

        yield make
        for cluster in made:
            cluster.close()

    def test_there_is_an_actor_for_each_cpu_of_each_node(self, make: Make) -> None:
        cluster = make(toy_factory)
        assert isinstance(cluster, Cluster) and cluster.count == 2

    def test_a_node_killed_in_the_middle_changes_nothing(self, make: Make, nodes: LocalCluster, tmp_path: Path) -> None:
        whole = run(tmp_path / "whole", 96)
        cluster = make(functools.partial(toy_factory, 1.5))  # a node takes a while to die, which the batch must outlast
        assert isinstance(cluster, Cluster)
        while len(cluster.idle) < 2:  # an actor on each node
            cluster._advance(0.5)
        (victim,) = nodes.worker_nodes

        class Killing:
            """The cluster, which loses a node while both have a batch, from the fourth on."""

            batches = 0
            submit = staticmethod(cluster.submit)

            def result(self, job: Job) -> list[Fitness]:
                self.batches += 1
                if self.batches >= 4 and len(cluster.busy) == 2 and victim in nodes.worker_nodes:
                    nodes.remove_node(victim, allow_graceful=False)
                return cluster.result(job)

        assert run(tmp_path / "killed", 96, Killing()) == whole  # type: ignore[arg-type]
        assert cluster.deaths >= 1
        assert victim not in nodes.worker_nodes
        nodes.add_node(num_cpus=1)  # for tests that come after


def test_search_on_a_cluster_gives_the_ledger_of_this_machine(nodes: LocalCluster, tmp_path: Path) -> None:
    tiny = {"programs": 32, "batch": 16, "steps": 4, "population": 8, "tournament": 2}
    for name, where in (("here", {"workers": 0}), ("ray", {"ray": nodes.address})):
        (tmp_path / name).mkdir()
        assert run_search(SearchOptions(run_dir=tmp_path / name, **tiny, **where))  # type: ignore[arg-type]
    assert digest(tmp_path / "ray") == digest(tmp_path / "here")
