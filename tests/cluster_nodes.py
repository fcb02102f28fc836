"""A Ray cluster on this machine: a head that only keeps the books, and nodes of one CPU each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

_OBJECTS = 100 << 20


@contextlib.contextmanager
def local_cluster(nodes: int = 2, **changes: str) -> Iterator[tuple[Any, list[Any]]]:
    """The cluster and its nodes, whose processes have the environment `changes`; its head notices a loss in seconds."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    health = {
        "health_check_initial_delay_ms": 2000,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 3,
        "health_check_timeout_ms": 5000,
    }
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": _OBJECTS, "_system_config": health},
    )
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        added = [cluster.add_node(num_cpus=1, object_store_memory=_OBJECTS) for _ in range(nodes)]
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    try:
        cluster.wait_for_nodes()
        yield cluster, added
    finally:
        cluster.shutdown()
