"""Training and sweeping on a cluster: the bytes of a run here, also when a node is lost; and nothing by halves."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dlm_tui.cli.main import main
from dlm_tui.document import load, parse_bytes, read_document_bytes
from dlm_tui.errors import Cancelled
from dlm_tui.gate.embedding import embed_prompts, length_batches, prompt_tokens
from dlm_tui.model import MixedModel
from dlm_tui.model.base import Base
from dlm_tui.progress import Progress, Report, run_to_end
from dlm_tui.store import MetricsReader, Store, current_version
from dlm_tui.training import TrainRequest, train_document
from dlm_tui.training.cluster import Cluster, ClusterError, _shards
from dlm_tui.training.phases import Step
from dlm_tui.training.sweep import SweepRequest, sweep_document
from dlm_tui.training.sweep_grid import parse_grid
from tests.cluster_nodes import local_cluster
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


def store_files(path: Path) -> set[str]:
    """What is in the store, but for the databases and logs that say what was tried."""
    root = path.parent / "home"
    return {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file() and file.suffix == ".safetensors"}


@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
def test_a_cluster_gives_the_bytes_of_a_run_here_also_when_a_node_is_lost(base: Base, tmp_path: Path) -> None:
    here, there = (new_document(tmp_path / name, sections=7, epochs=3) for name in ("here", "there"))
    whole, lost = (new_document(tmp_path / name, sections=7, epochs=60) for name in ("whole", "lost"))
    train(here, base, None, quiet)
    train(whole, base, None, quiet)
    wanted = learned(here)
    seen: list[str | None] = []
    with local_cluster() as (cluster, nodes), Cluster.connect(cluster.address, base) as joined:
        train(there, base, joined, lambda step: seen.append(step.scope))
        assert learned(there) == wanted
        assert {"facts", "manners"} <= set(seen), "steps are told while they happen"

        data = read_document_bytes(there)
        document = parse_bytes(data, there)
        request = SweepRequest(
            document=document,
            data=data,
            store=Store(tmp_path / "there" / "home", document.dlm_id),
            base=base,
            grid=parse_grid(["learning_rate=0.001,0.02"]),
            folds=2,
        )
        swept = sweep_document(request, quiet, joined.judge)
        assert (swept.works, swept.fresh) == (8, 8)
        again = SweepRequest(**{**vars(request), "store": Store(tmp_path / "other", document.dlm_id)})
        assert sweep_document(again, quiet).trials == swept.trials

        def stop(step: Progress) -> None:
            if step.stage in {"cluster", "sft"}:
                raise Cancelled("cancelled")

        before = store_files(there)
        with pytest.raises(Cancelled):
            train(there, base, joined, stop)
        assert store_files(there) == before

        def lose(step: Progress) -> None:
            if step.stage == "sft" and step.scope == "facts" and len(nodes) == 2:
                cluster.remove_node(nodes.pop(), allow_graceful=False)

        train(lost, base, joined, lose)
        assert len(nodes) == 1, "a node was lost while an adapter was trained"
        assert learned(lost) == learned(whole)
        cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
        cluster.wait_for_nodes()
        back = new_document(tmp_path / "back", sections=7, epochs=3)
        train(back, base, joined, quiet)
        assert learned(back) == wanted, "and with the node that came back"


@pytest.mark.slow
@pytest.mark.xdist_group("cluster")
def test_no_room_on_any_node_leaves_the_store_alone(base: Base, tmp_path: Path) -> None:
    path = new_document(tmp_path / "d")
    full = tmp_path / "full"
    full.write_text("a file where the nodes want a folder: whatever they write is refused by the system")
    with local_cluster(1, DLM_TUI_NODE_DIR=str(full)) as (cluster, _), Cluster.connect(cluster.address, base) as joined:
        with pytest.raises(ClusterError, match="on every node"):
            train(path, base, joined, quiet)
        assert store_files(path) == set()
        torch.set_num_threads(2)
        try:
            with pytest.raises(ClusterError, match="OMP_NUM_THREADS=1"):
                list(Cluster(joined._ray, base).train([_work(path, base)], quiet))
        finally:
            torch.set_num_threads(1)


def _work(path: Path, base: Base) -> Any:
    from dlm_tui.training.held_out import fold_works

    return fold_works(load(path), base, 2)[0].work


def test_silence_repeats_what_was_heard_last() -> None:
    """So that a log gets no line for every half second, and a cancellation is heard all the same."""

    class Told:
        def __init__(self, news: list[list[tuple[str, Step]]]) -> None:
            self.news = news

        def get(self, reference: Any, timeout: float) -> list[tuple[str, Step]]:
            return self.news.pop(0)

    class Board:
        take = type("", (), {"remote": staticmethod(lambda: None)})

    cluster = Cluster.__new__(Cluster)
    cluster._ray = Told([[], [("facts", Step(phase="sft", step=1, loss=2.0))], []])
    cluster._heard = Progress("cluster")
    heard: list[Progress] = []
    for _ in range(3):
        cluster._tell(Board, heard.append)
    assert [(step.stage, step.scope, step.loss) for step in heard] == [
        ("cluster", None, None),
        ("sft", "facts", 2.0),
        ("sft", "facts", None),
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
