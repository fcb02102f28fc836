"""A Ray cluster on this machine: a head that only keeps the books, and nodes of one CPU each."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.free_port import free_port

_OBJECTS = 100 << 20


class LocalCluster:
    """Its nodes, each with changes of its own to the environment of its processes."""

    def __init__(self, ray_cluster: Any, environments: tuple[Mapping[str, str], ...], client_port: int) -> None:
        self._ray, self._environments, self._client_port = ray_cluster, environments, client_port
        self.nodes = [self._add(changes) for changes in environments]
        self._ray.wait_for_nodes()

    @property
    def address(self) -> str:
        """For `--cluster`, of a process on this machine."""
        return str(self._ray.address)

    @property
    def client_address(self) -> str:
        """For `--cluster`, of a process that belongs to no node."""
        return f"ray://127.0.0.1:{self._client_port}"

    def lose(self) -> None:
        """The last node dies with all its processes."""
        self._ray.remove_node(self.nodes.pop(), allow_graceful=False)

    def restore(self) -> None:
        """What was lost comes back."""
        self.nodes += [self._add(changes) for changes in self._environments[len(self.nodes) :]]
        self._ray.wait_for_nodes()

    def _add(self, changes: Mapping[str, str]) -> Any:
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        try:
            return self._ray.add_node(num_cpus=1, object_store_memory=_OBJECTS)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextlib.contextmanager
def local_cluster(*environments: Mapping[str, str]) -> Iterator[LocalCluster]:
    """A cluster with a node for each of `environments`; its head notices a loss in seconds.

    Its processes are as nice as this one: Ray's own default is 15, which is no cluster beside other work.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    settings = {
        "health_check_initial_delay_ms": 2000,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 3,
        "health_check_timeout_ms": 5000,
        "worker_niceness": 0,
    }
    port = free_port()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "object_store_memory": _OBJECTS,
            "ray_client_server_port": port,
            "_system_config": settings,
        },
    )
    try:
        yield LocalCluster(cluster, environments, port)
    finally:
        cluster.shutdown()


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A file system of 16 kB lies over the folder while the block runs. Raises CalledProcessError without the right."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "full", str(folder)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
