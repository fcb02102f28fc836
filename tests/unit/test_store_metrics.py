"""`metrics.sqlite`: the shared schema, our tables, history, and readers that leave no trace."""

from __future__ import annotations

import contextlib
import math
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm_tui.store import MetricsError, MetricsReader, MetricsWriter, Store, weights_entropy
from dlm_tui.store.metrics_schema import SHARED_TABLES
from dlm_tui.store.traffic import TrafficRow, TrafficWriter, traffic_time
from tests.interop.peer_fixture import peer_root, tree_snapshot

ID = "01JTESTTESTTESTTESTTESTTES"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", ID)


def schema_of(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall())


def test_the_shared_tables_are_the_tools_to_the_letter(store: Store) -> None:
    text = (peer_root() / "metrics_schema.sql").read_text(encoding="utf-8")
    model = sqlite3.connect(":memory:")
    model.executescript(text.replace("CREATE TABLE sqlite_sequence(name,seq);", ""))
    expected = schema_of(model)
    model.close()
    with MetricsWriter(store) as writer:
        writer.start_run(1, "sft", 42)
    connection = sqlite3.connect(store.metrics_path)
    found = schema_of(connection)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert {name: sql for name, sql in found.items() if not name.startswith("tui_")} == expected
    assert SHARED_TABLES.count("CREATE TABLE") == 7


def test_a_run_from_start_to_end(store: Store) -> None:
    reader = MetricsReader(store)
    with MetricsWriter(store) as writer:
        writer.start_run(3, "sft", 42, 1, "tone", parameterization="pissa", details={"rank": 8})
        writer.record_step(3, 1, 2.5, 1e-3, 0.5, 100.0)
        writer.record_step(3, 2, float("nan"), 1e-3)
        writer.record_eval(3, 2, 2.25)
        writer.record_eval(3, 3, None)
        writer.record_eval(3, 4, 1e4)
        writer.record_extra(3, merged={"ok": True})
        writer.record_gate_steps(3, [(1, 0.7, 1.0)])
        writer.record_gate_events(3, [("tone", 0.75, 3), ("style", 0.25, 2)], "trained")
        writer.record_gate_evaluation(3, {"accuracy": 0.9, "ece": float("inf")})
        assert [row["status"] for row in reader.runs()] == ["running"]
        assert [row["step"] for row in reader.steps(3)] == [1, 2]
        writer.finish_run(3)
        writer.record_export(target="vllm", quant="hf", mix=[("tone", 0.75), ("style", 0.25)], drift={"kl": 0.1})
    assert reader.steps(3, after_step=1)[0]["loss"] is None
    assert [(row["val_loss"], row["perplexity"]) for row in reader.evals(3)] == [
        (2.25, math.exp(2.25)),
        (None, None),
        (1e4, None),
    ]
    assert reader.run_extras(3) == {
        "rank": 8,
        "merged": {"ok": True},
        "adapter_name": "tone",
        "parameterization": "pissa",
    }
    assert reader.gate_evaluations()[0]["report"] == {"accuracy": 0.9, "ece": None}
    assert reader.gate_steps(3)[0]["entropy"] == 1.0
    export = reader.exports()[0]
    assert (export["mix"], export["drift"]) == ([["tone", 0.75], ["style", 0.25]], {"kl": 0.1})
    run = reader.run(3)
    assert run is not None
    assert run["status"] == "ok"
    assert run["started_at"] <= run["ended_at"]
    assert not Path(f"{store.metrics_path}-wal").exists()


def test_steps_know_the_kind_of_their_loss(store: Store) -> None:
    with MetricsWriter(store) as writer:
        for run in (1, 2, 3, 4):
            writer.start_run(run, "sft", 42, adapter_name="tone")
            for step in (1, 2, 3):
                writer.record_step(run, step, 1.0, 1e-3)
        writer.record_loss_kind(1, "dpo", 3)
        writer.record_loss_kind(1, "sft", 1)
        writer.record_extra(4, loss_kinds="what is this")
    with contextlib.closing(sqlite3.connect(store.metrics_path)) as connection, connection:
        connection.execute("DELETE FROM tui_runs WHERE run_id = 3")
    reader = MetricsReader(store)
    kinds = {run: [row["loss_kind"] for row in reader.steps(run)] for run in (1, 2, 3, 4)}
    assert kinds[1] == ["sft", "sft", "dpo"] and reader.steps(1, after_step=2)[0]["loss_kind"] == "dpo"
    assert kinds[2] == kinds[4] == [None] * 3, "nobody recorded it"
    assert kinds[3] == ["sft"] * 3, "another tool's: of that phase alone"
    assert reader.all_loss_kinds() == {1: {"sft": 1, "dpo": 3}} and list(reader.all_loss_kinds()[1]) == ["sft", "dpo"]
    assert [row["run_id"] for row in reader.runs(phase="dpo")] == [1] and reader.phases() == ["dpo", "sft"]
    assert [row["run_id"] for row in reader.runs(2, "sft")] == [4, 3]


def test_filters_and_limits(store: Store) -> None:
    with MetricsWriter(store) as writer:
        for run_id in range(1, 31):
            writer.start_run(run_id, "gate" if run_id % 2 else "sft", 0)
    reader = MetricsReader(store)
    assert [row["run_id"] for row in reader.runs()] == list(range(30, 10, -1))
    assert [row["run_id"] for row in reader.runs(2, "sft")] == [30, 28]
    assert reader.runs(since="9999") == []
    assert len(reader.runs(None)) == 30
    assert reader.run(31) is None


def test_a_gate_event_needs_its_run_and_a_known_mode(store: Store) -> None:
    with MetricsWriter(store) as writer:
        with pytest.raises(MetricsError):
            writer.record_gate_events(1, [("tone", 1.0, 1)], "trained")
        writer.start_run(1, "gate", 0)
        with pytest.raises(MetricsError):
            writer.record_gate_events(1, [("tone", 1.0, 1)], "guessed")
        with pytest.raises(MetricsError, match="finite"):
            writer.record_gate_events(1, [("tone", float("nan"), 1)], "trained")
        assert MetricsReader(store).gate_history() == []
        writer.record_step(99, 1, 1.0, 1.0)
        assert writer.dropped == 1


def test_diverged_and_uniform_runs_are_told_apart(store: Store) -> None:
    with MetricsWriter(store) as writer:
        for run_id, mode, weights in (
            (1, "uniform", (0.5, 0.5)),
            (2, "trained", (1.0, 0.0)),
            (3, "diverged", (0.6, 0.4)),
        ):
            writer.start_run(run_id, "gate", 0)
            writer.record_gate_events(run_id, [("a", weights[0], 4), ("b", weights[1], 4)], mode)
        writer.start_run(4, "sft", 0)
    reader = MetricsReader(store)
    assert reader.latest_gate_run() == 3
    uniform, trained, diverged = reader.gate_history()
    assert (uniform.entropy, uniform.normalised_entropy) == (pytest.approx(math.log(2)), pytest.approx(1.0))
    assert (trained.entropy, trained.normalised_entropy) == (0.0, 0.0)
    assert (diverged.entropy, diverged.normalised_entropy) == (None, None)
    assert diverged.weights == {"a": 0.0, "b": 0.0}
    assert diverged.samples == {"a": 0, "b": 0}
    assert [entry.run_id for entry in reader.gate_history(after_run_id=1)] == [2, 3]
    assert [entry.run_id for entry in reader.gate_history(limit=1)] == [3]


def test_the_prompts_entropy_belongs_to_the_gate_rows_it_was_written_with(store: Store) -> None:
    rows = [("a", 0.5, 4), ("b", 0.5, 4)]
    with MetricsWriter(store) as writer:
        for run_id, mode, entropy in ((1, "trained", 0.1), (2, "diverged", 0.1), (3, "trained", None)):
            writer.start_run(run_id, "gate", 0)
            writer.record_gate_events(run_id, rows, mode, entropy)
    reader = MetricsReader(store)
    known = [(run.prompt_entropy, run.normalised_prompt_entropy) for run in reader.gate_history()]
    assert known == [(0.1, pytest.approx(0.1 / math.log(2))), (None, None), (None, None)]
    assert [run.prompt_entropy for run in reader.gate_overview()] == [0.1, None, None]
    with sqlite3.connect(store.metrics_path) as other:  # another tool trains anew under the same id
        other.execute("UPDATE gate_events SET at = '2001-01-01T00:00:00Z' WHERE run_id = 1")
    assert reader.gate_history()[0].prompt_entropy is None
    with MetricsWriter(store) as writer:
        writer.record_gate_events(1, rows, "trained")
    assert reader.gate_history()[0].prompt_entropy is None
    with sqlite3.connect(store.metrics_path) as other:
        other.execute("DROP TABLE tui_gate_entropy")
    assert [run.run_id for run in reader.gate_history()] == [1, 2, 3]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_entropy_is_that_of_the_definition(weights: list[float]) -> None:
    entropy, share = weights_entropy(weights)
    total = sum(weights)
    if not total > 0.0:
        assert entropy is None
        return
    expected = sum(-(w / total) * math.log(w / total) for w in weights if w / total > 0.0)
    assert entropy == pytest.approx(expected, abs=1e-9)
    if len(weights) > 1:
        assert share == pytest.approx(expected / math.log(len(weights)), abs=1e-9)
        assert 0.0 <= share <= 1.0
    else:
        assert share is None


def test_weights_that_are_no_distribution_have_no_entropy() -> None:
    for weights in ([], [0.0, 0.0], [-0.1, 1.1], [float("nan"), 1.0], [float("inf"), 1.0]):
        assert weights_entropy(weights) == (None, None)


def fill_events(store: Store, runs: int, names: int, diverged: set[int] = frozenset()) -> None:  # type: ignore[assignment]
    with MetricsWriter(store) as writer:
        writer.start_run(1, "gate", 0)
    connection = sqlite3.connect(store.metrics_path)
    with connection:
        connection.execute("DELETE FROM runs")
        connection.executemany(
            "INSERT INTO runs VALUES (?, '2026-01-01T00:00:00Z', NULL, NULL, 'gate', 0, 'ok')",
            ((run_id,) for run_id in range(1, runs + 1)),
        )
        connection.executemany(
            "INSERT INTO gate_events VALUES (?, ?, ?, 4, ?, '2026-01-01T00:00:00Z')",
            (
                (
                    run_id,
                    f"a{k}",
                    0.0 if run_id in diverged else 1 / names,
                    "diverged" if run_id in diverged else "trained",
                )
                for run_id in range(1, runs + 1)
                for k in range(names)
            ),
        )
    connection.close()


def test_an_overview_keeps_trouble_and_the_latest(store: Store) -> None:
    fill_events(store, 1000, 2, diverged={17, 500})
    overview = MetricsReader(store).gate_overview(50)
    ids = [entry.run_id for entry in overview]
    assert len(ids) == 50
    assert ids == sorted(ids)
    assert {17, 500, 1000} <= set(ids)
    assert [entry.run_id for entry in MetricsReader(store).gate_overview(5000)] == list(range(1, 1001))


def seconds_of(action: object, *, best_of: int = 5) -> float:
    times = []
    for _ in range(best_of):
        started = time.perf_counter()
        action()  # type: ignore[operator]
        times.append(time.perf_counter() - started)
    return min(times)


def test_a_hundred_thousand_events_open_like_a_thousand(tmp_path: Path) -> None:
    small, large = Store(tmp_path / "small", ID), Store(tmp_path / "large", ID)
    fill_events(small, 250, 4)
    fill_events(large, 25_000, 4)
    reader = MetricsReader(large)
    page_small = seconds_of(lambda: MetricsReader(small).gate_history(200))
    page_large = seconds_of(lambda: reader.gate_history(200))
    # A hundred times the rows: opening a page of history must not grow with them.
    assert page_large < 10 * page_small + 0.5
    assert len(reader.gate_history(200)) == 200
    overview_small = seconds_of(lambda: MetricsReader(small).gate_overview(200))
    overview_large = seconds_of(lambda: reader.gate_overview(200))
    assert overview_large < 100 * overview_small + 1.0
    assert len(reader.gate_overview(200)) == 200


def test_a_request_belongs_to_the_last_gate_run_before_it(store: Store) -> None:
    random = Random(7)
    moments = random.sample(range(1_800_000_000, 1_800_010_000), 300)
    with MetricsWriter(store) as metrics:
        for run in range(1, 41):
            metrics.start_run(run, "gate", 0)
            metrics.record_gate_events(run, [("a", 0.5, 4), ("b", 0.5, 4)], "trained")
    connection = sqlite3.connect(store.metrics_path)
    for run in range(1, 41):  # in no order, so that a later moment may be of an earlier run
        connection.execute("UPDATE gate_events SET at = ? WHERE run_id = ?", (traffic_time(moments.pop()), run))
    connection.commit()
    writer = TrafficWriter(store, 0)
    writer.add([TrafficRow(
        at=traffic_time(moment), route="r", view="base" if moment % 9 == 0 else "gated", mode="trained", weights={},
        entropy=None if moment % 7 == 0 else random.random(), normalised_entropy=None, ood_score=None, is_ood=False,
        prompt_tokens=1, answer_tokens=1, first_token=0.1, seconds=0.1, finish="ok", prompt=None,
    ) for moment in moments])  # fmt: skip
    writer.close()
    for newest in (5000, 20):
        plain = connection.execute(
            "SELECT run_id, AVG(entropy) FROM (SELECT t.entropy AS entropy,"
            " (SELECT MAX(g.run_id) FROM gate_events g WHERE g.at <= t.at) AS run_id"
            " FROM (SELECT at, entropy FROM tui_traffic WHERE view = 'gated' AND entropy IS NOT NULL"
            " ORDER BY traffic_id DESC LIMIT ?) t) WHERE run_id IS NOT NULL GROUP BY run_id",
            (newest,),
        ).fetchall()
        assert len(plain) > 1
        assert MetricsReader(store).traffic_entropies(newest) == pytest.approx(dict(plain))
    connection.close()


def test_no_database_is_no_rows_and_stays_none(store: Store) -> None:
    reader = MetricsReader(store)
    assert reader.runs() == []
    assert reader.gate_history() == []
    assert reader.gate_overview() == []
    assert reader.latest_gate_run() is None
    assert reader.exports() == []
    assert reader.highest_run_id() == 0
    assert reader.tokenization() is None
    assert not store.root.exists()
    store.root.mkdir(parents=True)
    store.metrics_path.touch()
    assert reader.runs() == []
    assert store.metrics_path.read_bytes() == b""


def test_an_older_database_without_some_table_has_no_rows(store: Store) -> None:
    store.root.mkdir(parents=True)
    connection = sqlite3.connect(store.metrics_path)
    connection.execute("CREATE TABLE runs (run_id INTEGER PRIMARY KEY, started_at TEXT NOT NULL)")
    connection.execute("INSERT INTO runs VALUES (5, 'x')")
    connection.commit()
    connection.close()
    before = tree_snapshot(store.root)
    reader = MetricsReader(store)
    assert reader.gate_history() == []
    assert reader.gate_steps(1) == []
    assert reader.highest_run_id() == 5
    assert tree_snapshot(store.root) == before


CRASH = """
import os, sys
from pathlib import Path
from dlm_tui.store import MetricsWriter, Store
writer = MetricsWriter(Store(Path(sys.argv[1]), sys.argv[2]))
writer.start_run(1, "sft", 0)
writer.record_step(1, 1, 2.0, 0.1)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("without", ["nothing", "shm"])
def test_rows_of_a_killed_writer_are_read(store: Store, without: str) -> None:
    done = subprocess.run([sys.executable, "-c", CRASH, str(store.home), ID], check=False)
    assert done.returncode == -9
    if without == "shm":
        Path(f"{store.metrics_path}-shm").unlink()
    assert Path(f"{store.metrics_path}-wal").stat().st_size > 0
    reader = MetricsReader(store)
    assert [row["loss"] for row in reader.steps(1)] == [2.0]
    assert reader.run(1) is not None
    assert sorted(path.name for path in store.root.iterdir()) == ["metrics.sqlite"]
    with MetricsWriter(store) as writer:
        writer.record_step(1, 2, 1.0, 0.1)
    assert [row["step"] for row in reader.steps(1)] == [1, 2]


def test_a_reader_sees_every_committed_row_of_a_live_writer(store: Store) -> None:
    ready, stop = threading.Event(), threading.Event()
    written = [0]

    def write() -> None:
        with MetricsWriter(store) as writer:
            writer.start_run(1, "sft", 0)
            ready.set()
            step = 0
            while not stop.is_set():
                step += 1
                writer.record_step(1, step, 1.0, 0.1)
                written[0] = step

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert ready.wait(120)
        reader, seen = MetricsReader(store), 0
        for _ in range(30):
            known = written[0]
            rows = reader.steps(1, after_step=seen)
            steps = [row["step"] for row in rows]
            assert steps == list(range(seen + 1, seen + 1 + len(steps)))
            seen += len(steps)
            assert seen >= known
    finally:
        stop.set()
        thread.join(120)
    assert len(MetricsReader(store).steps(1)) == written[0]


BRIEF_WRITERS = """
import sqlite3, sys
for step in range(int(sys.argv[2])):
    connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("INSERT OR REPLACE INTO evals VALUES (1, ?, 1.0, NULL, NULL, 'now')", (step,))
    connection.close()
"""


def test_answers_are_whole_while_another_tool_opens_and_closes_the_file(store: Store) -> None:
    with MetricsWriter(store) as writer:
        writer.start_run(1, "sft", 0)
    process = subprocess.Popen([sys.executable, "-c", BRIEF_WRITERS, str(store.metrics_path), "150"])
    try:
        reader, last = MetricsReader(store), 0
        while process.poll() is None:
            steps = [row["step"] for row in reader.evals(1)]
            assert steps == list(range(len(steps)))
            assert len(steps) >= last
            last = len(steps)
    finally:
        process.wait(240)
    assert len(reader.evals(1)) == 150


def test_data_version_changes_with_rows_only(store: Store) -> None:
    with MetricsWriter(store) as writer:
        writer.start_run(1, "sft", 0)
        reader = MetricsReader(store)
        before = reader.data_version()
        reader.runs()
        assert reader.data_version() == before
        writer.record_step(1, 1, 1.0, 0.1)
        assert reader.data_version() != before


def test_extras_of_a_reused_run_id_are_not_mixed_up(store: Store) -> None:
    with MetricsWriter(store) as writer:
        writer.start_run(1, "sft", 0, adapter_name="tone")
        writer.record_step(1, 5, 1.0, 0.1)
    connection = sqlite3.connect(store.metrics_path)
    with connection:
        connection.execute("UPDATE runs SET started_at = '2000-01-01T00:00:00Z'")
    connection.close()
    assert MetricsReader(store).run_extras(1) == {}
    with MetricsWriter(store) as writer:
        writer.start_run(1, "sft", 0, adapter_name="style")
    assert MetricsReader(store).run_extras(1)["adapter_name"] == "style"
    assert MetricsReader(store).steps(1) == []


def test_a_path_with_odd_characters_works(tmp_path: Path) -> None:
    store = Store(tmp_path / "ho me?mode=rwc#%41", ID)
    with MetricsWriter(store) as writer:
        writer.start_run(1, "sft", 0)
    assert len(MetricsReader(store).runs()) == 1
    copy = tmp_path / "copy"
    shutil.copytree(store.root, copy)
    assert [path.name for path in copy.iterdir()] == ["metrics.sqlite"]
