"""Crashes and full disks in the middle of saving: the last good state stays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlm_tui.store import (
    AdapterVersion,
    GateConfig,
    MetricsError,
    MetricsReader,
    MetricsWriter,
    Store,
    StoreError,
    commit_version,
    current_version,
    new_version,
    read_gate_config,
    read_manifest,
    store_lock,
    update_manifest,
    write_gate_config,
)
from tests.interop.peer_fixture import tree_snapshot

ID = "01JTESTTESTTESTTESTTESTTES"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "home", ID).create()
    update_manifest(store, lambda manifest: None, base_model="tiny")
    write_gate_config(store, GateConfig(("tone", "style"), 0.01, 8, 4, "uniform"))
    version = new_version(store, "tone")
    (version.path / "adapter_config.json").write_text("{}")
    commit_version(store, version)
    return store


def save_all(store: Store, version: AdapterVersion) -> None:
    """Every kind of saving there is, each made to fail; what is asserted is that it says so."""

    def longer(manifest: object) -> None:
        manifest.source_path = "x" * 200_000  # type: ignore[attr-defined]

    with pytest.raises(StoreError):
        new_version(store, "tone")
    with pytest.raises((OSError, StoreError)):
        commit_version(store, version)
    with pytest.raises((OSError, StoreError)):
        update_manifest(store, longer)
    with pytest.raises(OSError):
        write_gate_config(store, GateConfig(("other",), 0.01, 8, 4, "uniform"))


def still_good(store: Store) -> None:
    manifest = read_manifest(store)
    assert manifest is not None
    assert manifest.source_path is None
    version = current_version(store, "tone")
    assert version is not None
    assert version.version == 1
    config = read_gate_config(store)
    assert config is not None
    assert config.adapter_names == ("tone", "style")
    assert [path.name for path in store.root.rglob("*.tmp.*")] == []


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_while_saving(store: Store, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    version = new_version(store, "tone")
    (version.path / "adapter_config.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        save_all(store, version)
    still_good(store)
    with store_lock(store):
        pass


LIMITED = """
import resource, signal, sys
from pathlib import Path
from dlm_tui.store import MetricsError, MetricsWriter, Store, update_manifest
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(Path(sys.argv[1]), sys.argv[2])
writer = MetricsWriter(store)
writer.start_run(1, "gate", 0)
writer.record_step(1, 1, 1.0, 0.1)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
def grow(manifest):
    manifest.source_path = "x" * 200_000
try:
    update_manifest(store, grow)
except OSError as error:
    print("manifest", error.errno)
for step in range(2, 400):
    writer.record_step(1, step, 1.0, 0.1)
print("dropped", writer.dropped > 0)
try:
    for _ in range(50):
        writer.record_gate_evaluation(1, {"text": "x" * 20_000})
except MetricsError as error:
    print("said", "metrics.sqlite" in str(error))
"""


def test_a_file_system_without_room(store: Store) -> None:
    """A file size limit makes every larger write fail as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(store.home), ID], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["manifest 27", "dropped True", "said True"], done.stderr
    still_good(store)
    steps = [row["step"] for row in MetricsReader(store).steps(1)]
    assert steps == list(range(1, len(steps) + 1))
    with MetricsWriter(store) as writer:
        writer.record_step(1, 1000, 1.0, 0.1)
    assert MetricsReader(store).steps(1, after_step=999)


KILLED = """
import os, sys
from pathlib import Path
from dlm_tui.store import *
store = Store(Path(sys.argv[1]), sys.argv[2])
version = new_version(store, "tone")
(version.path / "adapter_config.json").write_text("{}")
def die(*_):
    os.kill(os.getpid(), 9)
os.replace = die
what = sys.argv[3]
if what == "pointer":
    commit_version(store, version)
elif what == "gate":
    write_gate_config(store, GateConfig(("other",), 0.01, 8, 4, "uniform"))
else:
    update_manifest(store, lambda manifest: setattr(manifest, "source_path", "new"))
"""


@pytest.mark.parametrize("what", ["pointer", "gate", "manifest"])
def test_killed_between_writing_and_renaming(store: Store, what: str) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(store.home), ID, what], check=False)
    assert done.returncode == -9
    version = current_version(store, "tone")
    assert version is not None
    assert version.version == 1
    config = read_gate_config(store)
    assert config is not None
    assert config.adapter_names == ("tone", "style")
    # The killed process may have held the store; the next writer takes over.
    update_manifest(store, lambda manifest: setattr(manifest, "source_path", "later"))
    manifest = read_manifest(store)
    assert manifest is not None
    assert manifest.source_path == "later"
    after = new_version(store, "tone")
    assert after.version == 3


def test_a_writer_on_a_folder_that_takes_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "home"
    blocked.write_text("a file where the home should be")
    store = Store(blocked, ID)
    with pytest.raises(MetricsError):
        MetricsWriter(store).start_run(1, "sft", 0)
    assert MetricsReader(store).runs() == []
    assert read_manifest(store) is None
    assert current_version(store, "tone") is None
    assert read_gate_config(store) is None
    assert list(tree_snapshot(tmp_path)) == [".", "home"]
