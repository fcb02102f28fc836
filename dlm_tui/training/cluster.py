"""A thin launcher over Ray: the same functions as here, on whichever nodes have room. Needs the extra `[cluster]`.

Ray pickles what it sends, so a cluster is trusted; what comes from elsewhere, the base's files, travels as bytes, once
per node, and is read there as it is read here: safetensors and JSON, never unpickled. A task whose process or node is
lost runs again on another node; one that a node has no room for on its disk runs again on the others. Nothing is
written to the store by anybody but the process that asked, once all is there.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import sysconfig
import threading
import time
import warnings
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from dlm_tui.errors import DlmTuiError, UsageError
from dlm_tui.gate.embedding import length_batches, prompt_tokens
from dlm_tui.model.environment import CHILD_ENVIRONMENT
from dlm_tui.model.weights_plan import DTYPES
from dlm_tui.progress import WARNING, Progress, Report, warn
from dlm_tui.store.trained_on import base_record
from dlm_tui.system_errors import cause, system_sentence
from dlm_tui.training.adapter_work import AdapterWork, Trained
from dlm_tui.training.checkpoints import fingerprint
from dlm_tui.training.cluster_board import Board, Teller
from dlm_tui.training.cluster_node import (
    NodeFailed,
    SharedRows,
    Shipped,
    embed_here,
    fold_here,
    shipped_files,
    train_here,
    without_rows,
)
from dlm_tui.training.held_out import FoldResult, FoldWork, JudgedRow
from dlm_tui.training.memory import activation_bytes
from dlm_tui.training.phases import Step

if TYPE_CHECKING:
    from dlm_tui.model import Base, MixedModel

_RETRIES = 3
_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 5.0
_SETTINGS = b"\x04"
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"
"""What a client of gRPC says first, and its settings, which are none; a server tells its own (RFC 9113, 3.4)."""


class ClusterError(DlmTuiError):
    """The cluster cannot be reached, has no node for a task, or lost it again and again."""


@dataclass(frozen=True)
class _Task:
    """What to call with what; `rows` is a reference to what tasks have in common, or None. `label` names it in progress
    and errors, `tokens` are of its largest step."""

    label: str
    function: Callable[..., Any]
    payload: Any
    rows: Any
    tokens: int
    checkpointing: bool


class Cluster:
    """The nodes that work for one command. Bytes are those of a run here with `threads` threads on such a machine."""

    def __init__(self, ray: Any, base: Base) -> None:
        self._ray, self._base = ray, base
        self.threads = torch.get_num_threads()
        self._heard = Progress("cluster")
        self._board, self._runs = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote(), 0
        dtype = next(name for name, kind in DTYPES.items() if kind == base.dtype)
        source = msgspec.structs.replace(base.source, path=None, gguf=None)
        files = {name: ray.put(data) for name, data in shipped_files(base).items()}
        self._shipped = Shipped(source, base_record(base.identity), dtype, files)
        self._rows: dict[str, Any] = {}
        self._gpus = 1 if ray.cluster_resources().get("GPU", 0) >= 1 else 0

    @classmethod
    @contextlib.contextmanager
    def connect(cls, address: str, base: Base) -> Iterator[Cluster]:
        """Join the cluster at `auto`, at `host:port` or through the client server at `ray://host:port` while the block
        runs. Raises UsageError, ClusterError."""
        try:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            import ray
        except ImportError:
            raise UsageError("--cluster needs Ray: pip install 'dlm-tui[cluster]'") from None
        place = _place(address)
        _knock(place)
        with _stdout_without_ray():
            with _own_sigterm():
                _join(ray, place)
            try:
                yield cls(ray, base)
            finally:
                ray.shutdown()

    def train(self, works: Sequence[AdapterWork], report: Report) -> Iterator[tuple[AdapterWork, Trained]]:
        """Every adapter as a task of its own, each as soon as it is trained.

        Raises Diverged, ClusterError, and whatever `report` raises; what still runs is then ended.
        """
        tasks = [self._task(work.adapter.name, train_here, without_rows(work), work, []) for work in works]
        for index, (result, steps, seconds) in self._run(tasks, report):
            yield works[index], Trained(result, steps, seconds)

    def judge(
        self, base: Base, works: list[FoldWork], report: Report, done: Callable[[FoldWork, FoldResult | str], None]
    ) -> None:
        """The work of a sweep, as `sweep_document` wants it executed."""
        tasks = [
            self._task(
                fold.name, fold_here, replace(fold, work=without_rows(fold.work), judged=[]), fold.work, fold.judged
            )
            for fold in works
        ]
        for number, (index, (result, _, _)) in enumerate(self._run(tasks, report), start=1):
            done(works[index], result)
            report(Progress("trial", number, len(works), scope=works[index].name))

    def embed(self, model: MixedModel, prompts: Sequence[str]) -> Generator[Progress, None, torch.Tensor]:
        """Embeddings float32 [n, H], sharded between batches, so that every batch is the one that it is here."""
        lengths = [len(prompt_tokens(self._base, prompt).ids) for prompt in prompts]
        shards = _shards(lengths, max(1, self._slots()))
        tasks = [
            _Task("embedding", embed_here, [prompts[index] for index in shard], None, 512, True) for shard in shards
        ]
        found = torch.zeros(len(prompts), self._base.hidden_size, dtype=torch.float32)
        done, told = 0, list[Progress]()
        yield Progress("embed", 0, len(prompts))
        for index, (rows, _, _) in self._run(tasks, told.append):
            yield from (step for step in told if step.stage == WARNING)
            told.clear()
            found[shards[index]] = torch.from_numpy(rows.copy())  # what Ray hands out may not be written to
            done += len(shards[index])
            yield Progress("embed", done, len(prompts))
        return found

    def _task(
        self, label: str, function: Callable[..., Any], payload: Any, work: AdapterWork, judged: list[JudgedRow]
    ) -> _Task:
        """A training; its rows are put where every node fetches them once, however many trials have the same."""
        rows = SharedRows(work.adapter.rows, work.rows, judged)
        key = fingerprint(rows)
        if key not in self._rows:
            self._rows[key] = self._ray.put(rows)
        checkpointing = work.plan.trainer.activation_checkpointing
        return _Task(
            label, function, payload, self._rows[key], work.plan.micro_batch * work.rows.longest, checkpointing
        )

    def _run(self, tasks: Sequence[_Task], report: Report) -> Iterator[tuple[int, Any]]:
        """Results as they come, with the index of their task; `report` hears of steps and may end all of it."""
        ray = self._ray
        self._runs += 1
        remote = ray.remote(_on_node)
        failed: dict[str, str] = {}
        pending = {self._submit(remote, task, failed): index for index, task in enumerate(tasks)}
        try:
            while pending:
                ready, _ = ray.wait(list(pending), timeout=_POLL_SECONDS)
                self._tell(report)
                for ref in ready:
                    index = pending.pop(ref)
                    task, result = tasks[index], self._result(ref, tasks[index])
                    if isinstance(result, NodeFailed):
                        new = result.node not in failed
                        failed[result.node] = result.text
                        if failed.keys() >= self._fitting(self._memory(task)):
                            raise ClusterError(f"{task.label}: no node can do it: {'; '.join(failed.values())}")
                        if new:
                            warn(report, f"{result.text}; meanwhile its work goes to the other nodes")
                        pending[self._submit(remote, task, failed)] = index
                    else:
                        yield index, result
        finally:
            for ref in pending:
                ray.cancel(ref, force=True)

    def _submit(self, remote: Any, task: _Task, failed: Collection[str]) -> Any:
        from ray.util.scheduling_strategies import NodeLabelSchedulingStrategy, NotIn

        need = self._memory(task)
        self._fitting(need)
        options: dict[str, Any] = {
            "num_cpus": self.threads,
            "num_gpus": self._gpus,
            "memory": need,
            "max_retries": _RETRIES,
            "runtime_env": {
                "env_vars": {name: os.environ.get(name, CHILD_ENVIRONMENT[name]) for name in CHILD_ENVIRONMENT}
            },
        }
        if failed:
            elsewhere = {"ray.io/node-id": NotIn(*sorted(failed))}
            options["scheduling_strategy"] = NodeLabelSchedulingStrategy(hard=elsewhere)
        told = self._board, self._runs, task.label
        what = task.function, task.payload, task.rows
        return remote.options(**options).remote(self._shipped, self.threads, *what, *told)

    def _result(self, ref: Any, task: _Task) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            return self._ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, DlmTuiError):
                raise error.cause from None
            raise ClusterError(f"{task.label}: {type(error.cause).__name__}: {error.cause}") from error
        except RayError as error:
            raise ClusterError(f"{task.label} was lost {_RETRIES + 1} times: {_reason(error)}") from error

    def _tell(self, report: Report) -> None:
        from ray.exceptions import RayError

        try:
            news = self._ray.get(self._board.take.remote(self._runs), timeout=_POLL_SECONDS)
        except (RayError, TimeoutError):
            news = []  # the node with the board is gone or busy; the results come another way
        if not news:  # the same again, which may still end the work
            report(self._heard)
        for step in news:
            if step.stage != WARNING:
                self._heard = Progress(step.stage, scope=step.scope)
            report(step)

    def _memory(self, task: _Task) -> int:
        """Bytes that a task needs: the weights twice while they are read, and the activations of its largest step."""
        weights = sum(parameter.nbytes for parameter in self._base.model.parameters())
        item = self._base.dtype.itemsize
        kept = activation_bytes(self._base.config, task.tokens, item=item, checkpointing=task.checkpointing)
        return 2 * weights + kept

    def _fitting(self, memory: int) -> set[str]:
        """The nodes that are large enough for a task. Raises ClusterError where it would wait for ever."""
        alive = [node for node in self._ray.nodes() if node["Alive"]]
        wide = [node for node in alive if node["Resources"].get("CPU", 0) >= self.threads]
        if not wide:
            largest = max((node["Resources"].get("CPU", 0) for node in alive), default=0)
            raise ClusterError(
                f"no node has {self.threads} CPUs, as many as this process has threads; the largest has {largest:g}: "
                f"set OMP_NUM_THREADS={max(1, int(largest))}"
            )
        found = {str(node["NodeID"]) for node in wide if node["Resources"].get("memory", 0) >= memory}
        if not found:
            raise ClusterError(f"no node has the {memory / 1e9:.1f} GB of memory that a task needs")
        return found

    def _slots(self) -> int:
        return sum(int(node["Resources"].get("CPU", 0) // self.threads) for node in self._ray.nodes() if node["Alive"])


@contextlib.contextmanager
def _stdout_without_ray() -> Iterator[None]:
    """Ray prints on stdout whatever befalls a node, also without `log_to_driver`. What matters of it comes by the
    board, and nothing of ours stands on stdout before the work is done."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """What this process does at SIGTERM stays: Ray's own answers abort it with a dump, or with another exit code."""
    before = signal.getsignal(signal.SIGTERM)
    asked_to_end = False
    try:
        yield
    except SystemExit:  # Ray's answer, which stands from the beginning of `ray.init`
        asked_to_end = True
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    if asked_to_end:
        signal.raise_signal(signal.SIGTERM)


def _place(address: str) -> str:
    """HOST:PORT or ray://HOST:PORT; where Ray finds one, for `auto`. Raises ClusterError."""
    if address != "auto":
        return address
    from ray._private import services

    try:
        return str(services.get_ray_address_from_environment(address, None))
    except ConnectionError as error:
        raise _nobody_answers(address, _reason(error)) from None


def _knock(place: str) -> None:
    """Raises ClusterError where no server of gRPC answers in time. Ray itself would go on trying, deaf to Ctrl+C: also
    at the address that a killed head has left behind."""
    host, _, port = place.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return
            connection.sendall(_HELLO)
            kind = connection.recv(9)[3:4]
    except (OSError, OverflowError, ValueError) as error:
        raise _nobody_answers(place, cause(error)) from None
    if kind != _SETTINGS:
        raise _nobody_answers(place, "what listens there is no Ray")


def _nobody_answers(place: str, reason: str) -> ClusterError:
    return ClusterError(f"no Ray cluster answers at {place} (`ray start --head` begins one): {reason}")


def _join(ray: Any, address: str) -> None:
    """Connect this process. Raises UsageError, ClusterError.

    A head starts a process for everybody who comes by `ray://`, and under load that process may die as it forks
    (gRPC); the next one is another try. Ray puts the folder that this process is in first on the path of every worker,
    where `forget_working_folder` does not reach: meanwhile it is in the standard library's.
    """
    for tries_left in (2, 1, 0):
        try:
            with warnings.catch_warnings(), contextlib.chdir(sysconfig.get_path("stdlib")):
                # of an address that does not answer, which is told here
                warnings.simplefilter("ignore", UserWarning)
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            return
        except ConnectionAbortedError as error:
            if tries_left == 0:
                raise ClusterError(
                    f"the cluster at {address} starts no process for a client: {_reason(error)}"
                ) from None
        except ImportError:
            raise UsageError("--cluster ray://… needs Ray's client: pip install 'dlm-tui[cluster]'") from None
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise _nobody_answers(address, _reason(error)) from None


def _reason(error: Exception) -> str:
    """The first line of what Ray says, and the next where that one only announces it."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _shards(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Prompt indices in about `count` parts of like size, cut between the batches that all of them would make."""
    batches = list(length_batches(lengths))
    size = [sum(lengths[index] + 1 for index in batch) for batch in batches]
    goal = max(1, math.ceil(sum(size) / count))
    shards: list[list[int]] = []
    filled = goal
    for batch, tokens in zip(batches, size, strict=True):
        if filled >= goal:
            shards.append([])
            filled = 0
        shards[-1] += batch
        filled += tokens
    return shards


def _on_node(
    shipped: Shipped,
    threads: int,
    function: Callable[..., Any],
    payload: Any,
    rows: Any,
    board: Any,
    run: int,
    label: str,
) -> tuple[Any, list[Step], float] | NodeFailed:
    """A task: load the base where this process has not yet, then the same function as at home."""
    import ray

    from dlm_tui.training.cluster_node import base_here

    context = ray.get_runtime_context()
    node = context.get_node_id()
    board.begin.remote(run, context.get_task_id(), label)
    torch.set_num_threads(threads)
    began = time.monotonic()
    steps: list[Step] = []
    teller = Teller(lambda batch: board.tell.remote(run, batch))

    def on_step(step: Step) -> None:
        steps.append(step)
        teller.tell(
            Progress(step.phase, step.step, scope=label, loss=step.loss, look=step.look, loss_kind=step.loss_kind)
        )

    try:
        base = base_here(shipped, lambda ref: ray.get(ref))
        result = function(base, payload, rows, on_step)
    except OSError as error:
        return NodeFailed(node, f"on {socket.gethostname()} (node {node[:8]}) {system_sentence(error)}")
    teller.flush()
    return result, steps, time.monotonic() - began
