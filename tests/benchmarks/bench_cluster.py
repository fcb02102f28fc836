"""N adapters on a local cluster of two nodes against the same tasks one after another, one thread each."""

from __future__ import annotations

import importlib.util
import os

import torch

from dlm_tui.progress import Progress
from dlm_tui.training.adapter_work import AdapterWork, train_adapter
from dlm_tui.training.cluster import Cluster
from dlm_tui.training.plan import plan_training
from dlm_tui.training.rows import AdapterRows
from tests.benchmarks.bench_training import short_rows
from tests.benchmarks.harness import Row, faster, paired, pocket_base, skipped
from tests.cluster_nodes import local_cluster

ADAPTERS, BATCH = 4, 8
NAME, GOAL = f"{ADAPTERS} adapters on two nodes", 1.7


def rows(quick: bool) -> list[Row]:
    """One row: nodes, processes and the base are there before the clock starts, as on a cluster that is in use."""
    alone = "the same tasks one after another"
    if importlib.util.find_spec("ray") is None:
        return [skipped(NAME, alone, f"≥ {GOAL}×", "Ray is not installed")]
    if (os.cpu_count() or 1) < 2:
        return [skipped(NAME, alone, f"≥ {GOAL}×", "one core")]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [_measured(quick, alone)]
    finally:
        torch.set_num_threads(threads)


def _measured(quick: bool, alone: str) -> Row:
    base, works = pocket_base(), _works(24 if quick else 96)
    here: dict[str, bytes] = {}
    there: dict[str, bytes] = {}

    def one_after_another() -> None:
        for work in works:
            here[work.adapter.name] = _bytes(train_adapter(base, work, lambda step: None).tensors)

    with local_cluster() as (cluster, _), Cluster.connect(cluster.address, base) as joined:

        def on_the_cluster() -> None:
            for work, trained in joined.train(works, _quiet):
                there[work.adapter.name] = _bytes(trained.result.tensors)

        timing = paired(on_the_cluster, one_after_another, rounds=1 if quick else 3, warmup=1)
    if here != there:
        raise AssertionError("the adapters differ")
    return faster(NAME, timing, alone, GOAL, "the weights are the same bytes")


def _works(count: int) -> list[AdapterWork]:
    from dlm_tui.document import parse_bytes

    names = [f"a{number}" for number in range(ADAPTERS)]
    declared = ", ".join(f"{name}: {{}}" for name in names)
    body = "".join(f"::instruction#{name}::\n### Q\na\n### A\nb\n" for name in names)
    text = f"""---
dlm_id: 01KTESTTESTTESTTESTTESTTES
base_model: pocket
training: {{num_epochs: 3, micro_batch_size: {BATCH}, adapters: {{{declared}}}}}
---
{body}"""
    plan = plan_training(parse_bytes(text.encode()), base_modules=pocket_base().source.target_modules)
    vocabulary = pocket_base().vocab_size
    given = AdapterRows(train=[[token % vocabulary for token in row] for row in short_rows(count)])
    return [AdapterWork(plan=plan, adapter=adapter, rows=given) for adapter in plan.adapters]


def _bytes(tensors: dict[str, torch.Tensor]) -> bytes:
    return b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))


def _quiet(step: Progress) -> None:
    """Nobody listens."""
