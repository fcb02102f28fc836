"""N adapters on a local cluster of two nodes against the same tasks one after another, one thread each."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable

import psutil
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
    """One row: nodes, processes and the base are there before the clock starts, as on a cluster that is in use.

    A task lasts seconds, as the shortest trainings do. Processor time is that of all processes of the cluster and of
    this one, its daemons among them: other load on the machine does not change it much.
    """
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
    base, works, warm = pocket_base(), _works(48 if quick else 96), _works(BATCH)
    here: dict[str, bytes] = {}
    there: dict[str, bytes] = {}
    here_cpu: list[float] = []
    there_cpu: list[float] = []

    def one_after_another() -> None:
        for work in works:
            here[work.adapter.name] = _bytes(train_adapter(base, work, lambda step: None).tensors)

    with local_cluster({}, {}) as cluster, Cluster.connect(cluster.address, base) as joined:

        def on_the_cluster() -> None:
            for work, trained in joined.train(works, _quiet):
                there[work.adapter.name] = _bytes(trained.result.tensors)

        for work in warm:  # the libraries' first step is slow, in every process
            train_adapter(base, work, lambda step: None)
        list(joined.train(warm, _quiet))
        timing = paired(
            _with_cpu(on_the_cluster, there_cpu),
            _with_cpu(one_after_another, here_cpu),
            rounds=1 if quick else 3,
            warmup=0,
        )
    if here != there:
        raise AssertionError("the adapters differ")
    cpu = f"processor time {sum(there_cpu) / len(there_cpu):.1f} s there, {sum(here_cpu) / len(here_cpu):.1f} s here"
    return faster(NAME, timing, alone, GOAL, f"the weights are the same bytes; {cpu}")


def _with_cpu(work: Callable[[], None], found: list[float]) -> Callable[[], None]:
    """`work`, which notes the processor seconds of this process and all that it began, however they began others."""

    def measured() -> None:
        before = _cpu_seconds()
        work()
        found.append(sum(spent - before.get(process, 0.0) for process, spent in _cpu_seconds().items()))

    return measured


def _cpu_seconds() -> dict[psutil.Process, float]:
    found = {}
    own = psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue  # it has ended
        found[process] = times.user + times.system
    return found


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
