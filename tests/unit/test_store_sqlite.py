"""Only SQLite touches the database: locks hold, nobody stalls, a damaged one is set aside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dlm_tui.store import MetricsError, MetricsReader, MetricsWriter, Store
from dlm_tui.store.examine import repair

ID = "01JTESTTESTTESTTESTTESTTES"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", ID)


@pytest.mark.parametrize("spoilt", [b"SQLite format 3\0" + b"\xff" * 5000, b"no database at all" * 100])
def test_a_damaged_database_is_set_aside_and_a_new_one_begun(
    store: Store, spoilt: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store.root.mkdir(parents=True)
    store.metrics_path.write_bytes(spoilt)
    assert MetricsReader(store).runs() == []
    assert MetricsReader(store).gate_history() == []
    assert [record.getMessage() for record in caplog.records if "metrics.sqlite is damaged" in record.getMessage()]
    assert store.metrics_path.read_bytes() == spoilt  # a reader moves nothing
    caplog.clear()
    with MetricsWriter(store) as writer:
        assert writer.begin_run("sft", 0) == 1
        writer.record_step(1, 1, 1.0, 0.1)
    assert [row["step"] for row in MetricsReader(store).steps(1)] == [1]
    (aside,) = store.root.glob("metrics.damaged-*.sqlite")
    assert aside.read_bytes() == spoilt
    assert aside.name in caplog.text


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to(path), "a link that leads round in a circle"),
        (os.mkfifo, "not a plain file"),
    ],
)
def test_what_is_no_file_in_the_place_of_the_database_is_refused_and_set_aside(
    store: Store, make: Callable[[Path], None], words: str
) -> None:
    make(store.create().metrics_path)
    with pytest.raises(MetricsError, match=rf"metrics\.sqlite cannot be read: it is {words}"):
        MetricsReader(store).runs()
    with (
        pytest.raises(MetricsError, match=rf"metrics\.sqlite cannot be written: it is {words}"),
        MetricsWriter(store) as to,
    ):
        to.begin_run("sft", 0)
    assert any(words in text for text in repair(store, ["tone"], "tiny"))
    assert MetricsReader(store).runs() == [] and store.metrics_path.is_file()


def test_a_database_that_turns_bad_under_a_writer_is_replaced_with_its_run(store: Store) -> None:
    with MetricsWriter(store) as writer:
        writer.start_run(3, "gate", 0)
    with MetricsWriter(store) as writer:
        writer.start_run(4, "gate", 0)
        connection = writer._database._database.connection
        assert connection is not None
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with store.metrics_path.open("r+b") as handle:
            handle.write(b"\0" * 4096)
        connection.close()
        writer._database._database.connection = None
        writer.record_gate_events(4, [("tone", 1.0, 3)], "trained")
    assert [event.adapter_name for event in MetricsReader(store).gate_events(4)] == ["tone"]
    assert len(list(store.root.glob("metrics.damaged-*.sqlite"))) == 1


STORM = """
import sys
from pathlib import Path
from dlm_tui.store import MetricsError, MetricsReader, MetricsWriter, Store
from dlm_tui.store.examine import repair
store = Store(Path(sys.argv[1]), sys.argv[2])
for _ in range(12):
    with MetricsWriter(store) as writer:
        run = writer.begin_run("gate", 0)
        writer.record_step(run, 1, 1.0, 0.1)
        # A reader in the writer's own process: whatever it opens and closes must not drop SQLite's locks.
        assert MetricsReader(store).run(run)["status"] == "running"
        writer.record_gate_events(run, [("tone", 0.5, 1), ("style", 0.5, 1)], "trained")
        assert len(MetricsReader(store).gate_events(run)) == 2
        writer.finish_run(run)
    print(run)
"""


def test_three_writers_that_read_lose_no_row_and_share_no_run_id(store: Store) -> None:
    store.create()
    command = [sys.executable, "-c", STORM, str(store.home), ID]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    ids = [int(line) for writer in writers for line in writer.communicate(timeout=240)[0].split()]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert sorted(ids) == list(range(1, 37))
    reader = MetricsReader(store)
    assert reader.problems() == []
    assert all(len(reader.steps(run)) == 1 and len(reader.gate_events(run)) == 2 for run in ids)


def test_a_wal_without_rows_keeps_nobody_waiting(store: Store) -> None:
    with MetricsWriter(store) as writer:
        writer.start_run(1, "sft", 0)
    for size in (0, 16, 32):
        Path(f"{store.metrics_path}-wal").write_bytes(b"\0" * size)
        began = time.monotonic()
        assert len(MetricsReader(store).runs()) == 1
        assert time.monotonic() - began < 5.0


WATCHED = """
import sys
from pathlib import Path
from dlm_tui.store import MetricsError, MetricsReader, MetricsWriter, Store
from dlm_tui.store.examine import repair
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0])
    if event == "open" and "metrics.sqlite" in str(args[0]) else None)
store = Store(Path(sys.argv[1]), sys.argv[2])
with MetricsWriter(store) as writer:
    writer.start_run(1, "sft", 0)
    for step in range(3):
        MetricsReader(store).runs()
        writer.record_step(1, step, 1.0, 0.1)
    assert MetricsReader(store).data_version() and not MetricsReader(store).problems()
print(opened)
"""


def test_only_sqlite_opens_the_database(store: Store) -> None:
    """Closing any descriptor of the file drops every lock that the process has on it."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(store.home), ID], capture_output=True, text=True, check=False
    )
    assert done.stdout == "[]\n", done.stderr
