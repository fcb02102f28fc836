"""Training and sweeping on a cluster: the bytes of a run here, also when a node is lost; and nothing by halves."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from dlm_tui.cli.main import main
from dlm_tui.document import load, parse_bytes, read_document_bytes
from dlm_tui.errors import Cancelled, UsageError
from dlm_tui.gate.embedding import embed_prompts, length_batches, prompt_tokens
from dlm_tui.model import MixedModel
from dlm_tui.model.base import Base
from dlm_tui.model.environment import CHILD_ENVIRONMENT
from dlm_tui.progress import WARNING, Progress, Report, run_to_end
from dlm_tui.store import MetricsReader, Store, current_version
from dlm_tui.store.checkpoints import interrupted
from dlm_tui.store.trained_on import base_record
from dlm_tui.training import TrainRequest, train_document
from dlm_tui.training.cluster import Cluster, ClusterError, _join, _own_sigterm, _shards, _Task
from dlm_tui.training.cluster_board import Board, Teller
from dlm_tui.training.cluster_node import PLACE, Shipped, base_here, shipped_files
from dlm_tui.training.sweep import SweepRequest, sweep_document
from dlm_tui.training.sweep_grid import parse_grid
from tests.cluster_nodes import LocalCluster, full_disk, local_cluster
from tests.tiny_models import tiny_base
from tests.training_samples import write_document

pytest.importorskip("ray")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tiny_base(tmp_path_factory.mktemp("base") / "m", "llama")
    torch.set_num_threads(threads)


def new_document(folder: Path, **options: Any) -> Path:
    folder.mkdir(parents=True)
    return write_document(folder, **options)


def train(path: Path, base: Base, elsewhere: Cluster | None, report: Report, **more: Any) -> None:
    document = load(path)
    store = Store(path.parent / "home", document.dlm_id)
    request = TrainRequest(document=document, store=store, base=base, elsewhere=elsewhere, **more)
    train_document(request, report)


def quiet(step: Progress) -> None:
    """Nobody listens."""


def learned(path: Path) -> dict[str, Any]:
    """The bytes of the adapters and of the gate, and the numbers of their runs."""
    store = Store(path.parent / "home", load(path).dlm_id)
    found: dict[str, Any] = {}
    for name in ("facts", "manners"):
        version = current_version(store, name)
        assert version is not None
        for file in ("adapter_model.safetensors", "adapter_config.json", "pinned_versions.json"):
            found[f"{name}/{file}"] = (version.path / file).read_bytes()
    found["gate"] = sorted((file.name, file.read_bytes()) for file in store.gate_dir.rglob("*.safetensors"))
    reader = MetricsReader(store)
    for run in (1, 2):
        found[f"steps {run}"] = [(row["step"], row["loss"], row["lr"]) for row in reader.steps(run)]
        found[f"evals {run}"] = [(row["step"], row["val_loss"]) for row in reader.evals(run)]
    return found


def files(path: Path) -> dict[str, Any]:
    """`learned` without the numbers of the runs: those of an interrupted try stand under that one."""
    return {name: value for name, value in learned(path).items() if not name.startswith(("steps", "evals"))}


def store_files(path: Path) -> set[str]:
    """What is in the store, but for the databases and logs that say what was tried."""
    root = path.parent / "home"
    return {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file() and file.suffix == ".safetensors"}


class Shared:
    """Two nodes that keep bases in `folders`, and this process joined to them."""

    def __init__(self, cluster: LocalCluster, joined: Cluster, folders: list[Path]) -> None:
        self.cluster, self.joined, self.folders = cluster, joined, folders


@pytest.fixture(scope="module")
def shared(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folders = [tmp_path_factory.mktemp("node") for _ in range(2)]
    environments = [{PLACE: str(folder)} for folder in folders]
    with local_cluster(*environments) as cluster, Cluster.connect(cluster.address, base) as joined:
        yield Shared(cluster, joined, folders)


@pytest.mark.slow
def test_a_cluster_gives_the_bytes_of_a_run_here(shared: Shared, base: Base, tmp_path: Path) -> None:
    here, there = (new_document(tmp_path / name, sections=7, epochs=3) for name in ("here", "there"))
    train(here, base, None, quiet)
    seen: list[Progress] = []
    train(there, base, shared.joined, seen.append)
    assert learned(there) == learned(here)
    assert {"facts", "manners"} <= {step.scope for step in seen}, "steps are told while they happen"
    counted = [step for step in seen if step.stage == "sft" and step.loss is not None]
    assert [step.done for step in counted] == list(range(1, len(counted) + 1)), "and none is left out"
    assert counted[-1].done == counted[-1].total

    def stop(step: Progress) -> None:
        if step.stage in {"cluster", "sft"}:
            raise Cancelled("cancelled")

    before = store_files(there)
    with pytest.raises(Cancelled):
        train(there, base, shared.joined, stop)
    assert store_files(there) == before


@pytest.mark.slow
def test_a_task_has_the_environment_of_a_run_here(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "64")
    expected = {**CHILD_ENVIRONMENT, "LRU_CACHE_CAPACITY": "64"}

    def environment(base: Base, names: list[str], *_: object) -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in names}

    task = _Task("environment", environment, list(expected), None, 1, False)
    assert [found for _, (found, _, _) in shared.joined._run([task], quiet)] == [expected]


@pytest.mark.slow
def test_a_node_is_lost_and_comes_back(shared: Shared, base: Base, tmp_path: Path) -> None:
    cluster, joined = shared.cluster, shared.joined
    whole, lost, back = (new_document(tmp_path / name, sections=7, epochs=60) for name in ("whole", "lost", "back"))
    train(whole, base, None, quiet)
    seen: list[Progress] = []

    def lose(step: Progress) -> None:
        seen.append(step)
        if step.stage == "sft" and step.scope == "facts" and len(cluster.nodes) == 2:
            cluster.lose()

    train(lost, base, joined, lose)
    assert len(cluster.nodes) == 1, "a node was lost while an adapter was trained"
    assert learned(lost) == learned(whole)
    assert all(step.done <= step.total for step in seen if step.stage == "sft"), "what is done again counts once"
    cluster.restore()
    train(back, base, joined, quiet)
    assert learned(back) == learned(whole), "and with the node that came back"


@pytest.mark.slow
def test_a_training_goes_on_behind_the_adapters_that_were_finished(shared: Shared, base: Base, tmp_path: Path) -> None:
    whole, cut, elsewhere = (
        new_document(tmp_path / name, sections=7, epochs=3) for name in ("whole", "cut", "elsewhere")
    )
    train(whole, base, None, quiet)
    for path in (cut, elsewhere):
        store = Store(path.parent / "home", load(path).dlm_id)

        def stop(step: Progress, store: Store = store) -> None:
            if (left := interrupted(store)) is not None and left.finished:
                raise Cancelled("cancelled")

        with pytest.raises(Cancelled):
            train(path, base, shared.joined, stop)
        assert [file for file in store_files(path) if "versions" in file] == [], "no adapter is there by halves"
        left = interrupted(store)
        assert left is not None and len(left.finished) == 1 and left.adapter is None
        (other,) = {"facts", "manners"} - set(left.finished)
        seen: list[Progress] = []
        train(path, base, shared.joined if path is cut else None, seen.append, resume=True)
        assert {step.scope for step in seen if step.stage == "sft" and step.loss is not None} == {other}
        said = f"{left.finished[0]}: trained to the end before the interruption"
        assert any(step.text == said for step in seen)
        assert files(path) == files(whole)
        assert interrupted(store) is None


@pytest.mark.slow
def test_a_machine_outside_of_the_cluster_comes_by_its_client_server(
    shared: Shared, base: Base, tmp_path: Path
) -> None:
    pytest.importorskip("grpc")
    here, there = (new_document(tmp_path / name, sections=7, epochs=3) for name in ("here", "there"))
    assert main(["train", str(here), "--home", str(here.parent / "home"), "--base", str(base.source.path)]) == 0
    command = [sys.executable, "-m", "dlm_tui", "train", str(there), "--home", str(there.parent / "home")]
    command += ["--base", str(base.source.path), "--cluster", shared.cluster.client_address]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "facts" in done.stderr and "loss" in done.stderr, "steps are told on this side too"
    assert learned(there) == learned(here)


@pytest.mark.slow
def test_a_sweep_loses_a_node(shared: Shared, base: Base, tmp_path: Path) -> None:
    cluster = shared.cluster
    path = new_document(tmp_path / "d", sections=7, epochs=10)
    data = read_document_bytes(path)
    document = parse_bytes(data, path)

    def sweep(home: str, report: Report, execute: Any) -> Any:
        store = Store(tmp_path / home, document.dlm_id)
        grid = parse_grid(["learning_rate=0.001,0.02"])
        request = SweepRequest(document=document, data=data, store=store, base=base, grid=grid, folds=2)
        return sweep_document(request, report, execute)

    def lose(step: Progress) -> None:
        if step.stage == "sft" and len(cluster.nodes) == 2:
            cluster.lose()

    put = len(shared.joined._rows)
    swept = sweep("there", lose, shared.joined.judge)
    assert len(shared.joined._rows) - put == 4, "two adapters in two folds: the trials have their rows in common"
    assert len(cluster.nodes) == 1, "a node was lost while a trial was trained"
    cluster.restore()
    assert (swept.works, swept.fresh) == (8, 8)
    assert sweep("here", quiet, None).trials == swept.trials


@pytest.mark.slow
def test_the_command_sweeps_on_a_cluster(
    shared: Shared, base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = new_document(tmp_path / "d", sections=5, epochs=2)
    words = ["sweep", str(path), "--base", str(base.source.path), "--set", "learning_rate=0.001,0.02", "--folds", "2"]
    assert main([*words, "--json", "--home", str(tmp_path / "here")]) == 0
    here = json.loads(capsys.readouterr().out)
    command = [sys.executable, "-m", "dlm_tui", *words, "--json", "--home", str(tmp_path / "there")]
    command += ["--cluster", shared.cluster.address]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert (there["works"], there["fresh"]) == (8, 8)
    assert there["trials"] == here["trials"]


@pytest.mark.slow
def test_a_lost_process_is_told_on_stderr_and_stdout_is_the_data(shared: Shared, base: Base, tmp_path: Path) -> None:
    path = new_document(tmp_path / "d", sections=5, epochs=40)
    command = [sys.executable, "-m", "dlm_tui", "sweep", str(path), "--base", str(base.source.path), "--json"]
    command += ["--set", "learning_rate=0.001,0.02", "--folds", "2", "--home", str(tmp_path / "home")]
    driver = subprocess.Popen(
        [*command, "--cluster", shared.cluster.address],
        env=ONE_THREAD,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert driver.stderr is not None
    assert any("loss" in line for line in driver.stderr), "it tells of a step"
    node_processes()[0].kill()
    out, told = driver.communicate()
    assert driver.returncode == 0, told
    assert json.loads(out)["works"] == 8
    assert re.search(
        "(?m)^warning: (facts|manners): the process that worked at it was lost; its work is done again$", told
    )


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a full disk")
def test_a_full_disk(shared: Shared, tmp_path: Path) -> None:
    """A base that no node has seen: on every node without room, then on one."""
    base = tiny_base(tmp_path / "m", "llama", seed=1)
    joined = Cluster(shared.joined._ray, base)
    here, there = (new_document(tmp_path / name, sections=7, epochs=3) for name in ("here", "there"))
    train(here, base, None, quiet)
    first, second = shared.folders
    with full_disk(second):
        with full_disk(first), pytest.raises(ClusterError) as refused:
            train(there, base, joined, quiet)
        sentence = str(refused.value)
        assert sentence.count("no space is left on its disk") == 2 and "\n" not in sentence
        assert str(first / "dlm-tui-bases") in sentence and str(second / "dlm-tui-bases") in sentence
        assert store_files(there) == set()
        seen: list[Progress] = []
        train(there, base, joined, seen.append)
    warnings = [step.text or "" for step in seen if step.stage == WARNING and "disk" in (step.text or "")]
    assert warnings and all(
        re.fullmatch(
            rf"on \S+ \(node [0-9a-f]{{8}}\) {second}/dlm-tui-bases: no space is left on its disk; free some and do it"
            " again; meanwhile its work goes to the other nodes",
            text,
        )
        for text in warnings
    )
    assert learned(there) == learned(here)


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def train_command(path: Path, base: Base, shared: Shared) -> list[str]:
    """A training on the cluster by a process of its own."""
    command = [sys.executable, "-m", "dlm_tui", "train", str(path), "--home", str(path.parent / "home")]
    return [*command, "--base", str(base.source.path), "--cluster", shared.cluster.address]


def driver_at_a_step(command: list[str]) -> subprocess.Popen[str]:
    """That process, once it tells of a step."""
    driver = subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE, text=True)
    assert driver.stderr is not None
    assert any("% · loss " in line or "left · loss " in line for line in driver.stderr), "it tells of a step"
    return driver


@pytest.mark.slow
def test_a_driver_is_killed(shared: Shared, base: Base, tmp_path: Path) -> None:
    """Nothing in the store changes, the nodes are free again, and the same command gives the bytes of one that ran."""
    whole, killed = (new_document(tmp_path / name, sections=7, epochs=3) for name in ("whole", "killed"))
    for path in (whole, killed):
        train(path, base, None, quiet)
        path.write_text(path.read_text().replace("num_epochs: 3", "num_epochs: 150"))
    assert main(["train", str(whole), "--home", str(whole.parent / "home"), "--base", str(base.source.path)]) == 0
    before = in_force(killed)
    driver = driver_at_a_step(train_command(killed, base, shared))
    busy = node_processes()
    assert busy, "and a node works at this moment"
    driver.kill()
    driver.communicate()
    _, alive = psutil.wait_procs(busy, timeout=120)
    assert not alive, "its tasks ended with it"
    assert in_force(killed) == before
    assert store_files(killed) == {name for name in before if name.endswith(".safetensors")}
    done = subprocess.run(train_command(killed, base, shared), env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert learned(killed) == learned(whole)


@pytest.mark.slow
def test_a_driver_that_is_asked_to_end_is_cancelled(shared: Shared, base: Base, tmp_path: Path) -> None:
    """As by Ctrl+C, and as a training here: Ray would abort it with a dump of its own."""
    path = new_document(tmp_path / "d", sections=7, epochs=150)
    driver = driver_at_a_step(train_command(path, base, shared))
    busy = node_processes()
    driver.terminate()
    _, told = driver.communicate()
    assert (driver.returncode, told.splitlines()[-1]) == (130, "dlm-tui: cancelled")
    assert "SIGTERM" not in told
    _, alive = psutil.wait_procs(busy, timeout=120)
    assert not alive, "its tasks ended with it"


def node_processes() -> list[psutil.Process]:
    """Those in which a task runs now."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("ray::_on_node"):
                found.append(process)
    return found


def in_force(path: Path) -> dict[str, bytes]:
    """The store's files, but for the metrics, the logs and the locks."""
    root = path.parent / "home"
    files = (file for file in root.rglob("*") if file.is_file())
    passing = {"logs", "tui_locks", "metrics.sqlite", "metrics.sqlite-wal", "metrics.sqlite-shm"}
    return {
        str(file.relative_to(root)): file.read_bytes()
        for file in files
        if not passing & set(file.relative_to(root).parts)
    }


@pytest.mark.slow
def test_no_node_is_large_enough(shared: Shared, base: Base, tmp_path: Path) -> None:
    path = new_document(tmp_path / "d")
    torch.set_num_threads(2)
    try:
        with pytest.raises(ClusterError, match="OMP_NUM_THREADS=1"):
            list(Cluster(shared.joined._ray, base).train([_work(path, base)], quiet))
    finally:
        torch.set_num_threads(1)


def _work(path: Path, base: Base) -> Any:
    from dlm_tui.training.held_out import fold_works

    return fold_works(load(path), base, 2)[0].work


def test_a_base_travels_once_to_a_node(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many processes work there, and also another day."""
    monkeypatch.setenv(PLACE, str(tmp_path))
    files, fetched = shipped_files(base), list[str]()
    identity = base.identity
    shipped = Shipped(base.source, base_record(identity), "float32", {n: n for n in files})

    def fetch(name: str) -> Any:
        fetched.append(name)
        return files[name]

    for _ in range(3):  # three processes
        monkeypatch.setattr("dlm_tui.training.cluster_node._loaded", {})
        found = base_here(shipped, fetch)
        assert base_here(shipped, fetch) is found, "and loaded once in each"
        assert found.identity.weights_sha256 == identity.weights_sha256
    assert sorted(fetched) == sorted(files)


def test_a_base_that_a_node_has_lost_in_part_is_fetched_again(
    base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PLACE, str(tmp_path))
    files = shipped_files(base)
    shipped = Shipped(base.source, base_record(base.identity), "float32", {n: n for n in files})
    root = tmp_path / "dlm-tui-bases"
    for damage in ("model.safetensors", "config.json", None):
        monkeypatch.setattr("dlm_tui.training.cluster_node._loaded", {})
        assert base_here(shipped, files.__getitem__).identity.weights_sha256 == base.identity.weights_sha256
        (folder,) = (path for path in root.iterdir() if path.is_dir())
        if damage:
            (folder / damage).write_bytes(bytes((folder / damage).stat().st_size))
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    left = root / f"{folder.name}.tmp.{ended.pid}.0123abcd"
    left.mkdir()
    monkeypatch.setattr("dlm_tui.training.cluster_node._loaded", {})
    base_here(shipped, files.__getitem__)
    assert not left.exists()


def test_silence_repeats_what_was_heard_last() -> None:
    """So that a log gets no line for every half second, and a cancellation is heard all the same."""

    class Told:
        def __init__(self, news: list[list[Progress]]) -> None:
            self.news = news

        def get(self, reference: Any, timeout: float) -> list[Progress]:
            return self.news.pop(0)

    class Silent:
        take = type("", (), {"remote": staticmethod(lambda run: None)})

    cluster = Cluster.__new__(Cluster)
    cluster._ray = Told([[], [Progress("sft", 1, scope="facts", loss=2.0)], []])
    cluster._heard, cluster._board, cluster._runs = Progress("cluster"), Silent, 1
    heard: list[Progress] = []
    for _ in range(3):
        cluster._tell(heard.append)
    assert [(step.stage, step.scope, step.loss) for step in heard] == [
        ("cluster", None, None),
        ("sft", "facts", 2.0),
        ("sft", "facts", None),
    ]


def test_steps_are_told_in_batches_and_none_is_lost() -> None:
    now, sent = 0.0, list[list[float]]()
    teller = Teller(lambda batch: sent.append([step.done for step in batch]), lambda: now)
    for number in range(1, 8):
        teller.tell(Progress("sft", number))
        now += 0.1
    teller.flush()
    teller.flush()
    assert sent == [[1], [2, 3, 4], [5, 6, 7]]


def test_a_board_gives_a_run_its_own_news() -> None:
    board = Board()
    board.tell(1, [Progress("sft", 7)])
    board.tell(2, [Progress("sft", 1), Progress("sft", 2)])
    assert [step.done for step in board.take(2)] == [1, 2]
    assert board.take(1) == [], "what an earlier run told too late is gone"


def test_a_board_tells_of_a_task_that_begins_again() -> None:
    board = Board()
    for run, task in ((1, "a"), (1, "b"), (2, "c")):
        board.begin(run, task, f"trial {task}")
    assert board.take(2) == []
    board.begin(2, "c", "trial c")
    assert board.take(2) == [
        Progress(WARNING, text="trial c: the process that worked at it was lost; its work is done again")
    ]


def test_shards_are_cut_between_the_batches_of_the_whole(base: Base) -> None:
    prompts = [" ".join(["harbour"] * (1 + (index * 7) % 40)) for index in range(150)]
    lengths = [len(prompt_tokens(base, prompt).ids) for prompt in prompts]
    shards = _shards(lengths, 4)
    assert 3 <= len(shards) <= 5
    assert sorted(index for shard in shards for index in shard) == list(range(150))
    batches = [
        [shard[index] for index in batch] for shard in shards for batch in length_batches([lengths[i] for i in shard])
    ]
    assert batches == list(length_batches(lengths)), "so every batch has the rows that it has here, and their low bits"
    backbone = MixedModel(base, {}).backbone
    whole = run_to_end(embed_prompts(backbone, base, prompts, hidden_size=base.hidden_size))
    for shard in shards:
        own = run_to_end(embed_prompts(backbone, base, [prompts[i] for i in shard], hidden_size=base.hidden_size))
        assert torch.equal(own, whole[shard])
    assert _shards([], 4) == []


def test_without_a_cluster_it_is_one_sentence(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # `auto` looks through the machine's processes, and another test may run a cluster at this moment
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", functools.cache(set))
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda temp_dir: None)
    path = new_document(tmp_path / "d")
    command = ["train", str(path), "--home", str(tmp_path / "home"), "--base", str(base.source.path), "--cluster"]
    assert main(command) == 1
    assert "no Ray cluster answers at auto" in capsys.readouterr().err
    assert main([*command, "--checkpoint-steps", "2"]) == 2


def replying(reply: bytes | None) -> socket.socket:
    """A port at which the first who comes is answered so, or not at all."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listening.accept()
            with connection:
                assert reply is not None
                connection.sendall(reply)
                connection.recv(64)

    if reply is not None:
        threading.Thread(target=answer, daemon=True).start()
    return listening


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize(
    ("reply", "reason"),
    [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "what listens there is no Ray"), (None, "timed out")],
)
def test_where_no_cluster_answers_ray_does_not_begin_to_try(
    scheme: str, reply: bytes | None, reason: str, base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("which takes minutes and hears no signal"))
    monkeypatch.setattr("dlm_tui.training.cluster._ANSWER_SECONDS", 0.3)
    with replying(reply) as listening:
        place = f"{scheme}127.0.0.1:{listening.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"^no Ray cluster answers at {place} .*: {reason}$"):
            Cluster.connect(place, base).__enter__()
    monkeypatch.setenv("RAY_ADDRESS", place)  # which `auto` finds, as it finds one that a killed head left behind
    with pytest.raises(ClusterError, match=f"^no Ray cluster answers at {place} .*: Connection refused$"):
        Cluster.connect("auto", base).__enter__()


@pytest.mark.parametrize("address", ["", "ray://", "ray://head", "head", "http://head:1", "ray://:10001", "auto "])
@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_what_is_no_address_is_refused_at_once(verb: str, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "no-such.dlm", "--cluster", address]) == 2
    assert f"it is auto, HOST:PORT or ray://HOST:PORT, not {address!r}" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["auto", "head:6379", "10.0.0.1:6379", "ray://head.lan:10001", "ray://[::1]:10001"])
def test_what_is_an_address_is_taken(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "no-such.dlm", "--cluster", address]) != 2
    assert "no-such.dlm" in capsys.readouterr().err


class Head:
    """Stands in for Ray: fails as told, then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.tries = list(failures), 0

    def init(self, **options: Any) -> None:
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)


def test_a_client_whose_process_dies_as_it_starts_tries_again() -> None:
    died = ConnectionAbortedError("Initialization failure from server:\nTraceback\n...")
    head = Head(died, died)
    _join(head, "ray://head:10001")
    assert head.tries == 3
    head = Head(died, died, died)
    sentence = r"at ray://head:10001 starts no process for a client: Initialization failure from server: Traceback$"
    with pytest.raises(ClusterError, match=sentence):
        _join(head, "ray://head:10001")
    head = Head(ConnectionError("nobody there"))
    with pytest.raises(ClusterError, match="no Ray cluster answers at ray://head:10001"):
        _join(head, "ray://head:10001")
    assert head.tries == 1
    with pytest.raises(UsageError, match=r"pip install 'dlm-tui\[cluster\]'"):
        _join(Head(ImportError("grpc")), "ray://head:10001")


def test_workers_take_no_code_from_the_folder_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray tells them the one that the driver is in as it joins, for the first place on their path."""

    class Looking(Head):
        def init(self, **options: Any) -> None:
            self.told = os.path.abspath(os.path.curdir)  # noqa: PTH100 - as Ray does

    monkeypatch.chdir(tmp_path)
    head = Looking()
    _join(head, "head:6379")
    assert Path(head.told) == Path(os.__file__).parent and Path.cwd() == tmp_path


def test_what_ray_warns_of_as_it_joins_is_told_by_the_error_alone() -> None:
    class Loud(Head):
        def init(self, **options: Any) -> None:
            warnings.warn("connection timed out", stacklevel=1)
            super().init(**options)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ClusterError, match="nobody there"):
            _join(Loud(ConnectionError("nobody there")), "ray://head:10001")


def test_a_signal_while_ray_joins_is_answered_as_ever() -> None:
    class Interrupted(Head):
        def init(self, **options: Any) -> None:
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))  # as Ray does first of all
            signal.raise_signal(signal.SIGTERM)

    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with _own_sigterm():
            _join(Interrupted(), "ray://head:10001")
        assert heard == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)
