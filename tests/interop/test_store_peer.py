"""Stores written by the `dlm` tool: what we say of them, and that reading leaves them as they were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dlm_tui.cli.show_report import show_report
from dlm_tui.document import load
from dlm_tui.model import resolve_base
from dlm_tui.store import (
    MetricsReader,
    Store,
    adapter_versions,
    gate_state,
    read_gate_config,
    read_lock_record,
    read_manifest,
)
from tests.interop.peer_fixture import PEER_ADAPTERS, PEER_IDS, copy_peer, make_writable, peer_root, tree_snapshot
from tests.interop.store_checker import check_store

# Not comparable: paths and sizes of the machine the tool ran on; exports were made after `show` was printed.
ELSEWHERE = {"path", "source_path", "total_size_bytes", "exports"}
TRIMMED = {"uniform": {"replay_size_bytes"}}


OURS = {
    "document",
    "adapters",
    "gate_state",
    "base",
    "quantize",
    "offload",
    "opened_from",
    "problems",
    "training_plan",
    "trained",
    "trainings",
}
"""What this program tells besides."""


@pytest.mark.parametrize("which", sorted(PEER_IDS))
def test_show_agrees_with_the_tool(which: str) -> None:
    root = peer_root()
    expected = json.loads((root / f"expected_show_{which}.json").read_text(encoding="utf-8"))
    report = show_report(root / "home", load(root / f"{which}.dlm"), base=resolve_base("peer-tiny", root / "base"))
    assert report["gate"] == expected["gate"]
    assert set(expected) <= set(report)
    compared = set(expected) - ELSEWHERE - TRIMMED.get(which, set())
    assert {key: report[key] for key in compared} == {key: expected[key] for key in compared}
    assert report["path"].endswith(expected["path"])
    assert set(report) - set(expected) == OURS
    assert report["problems"] == []


def test_the_three_states() -> None:
    modes = {}
    for which, dlm_id in PEER_IDS.items():
        state = gate_state(Store(peer_root() / "home", dlm_id), PEER_ADAPTERS)
        modes[which] = (state.mode, state.config.mode if state.config is not None else "none")
        assert [event.adapter_name for event in state.events] == PEER_ADAPTERS
    assert modes == {
        "routed": ("trained", "trained"),
        "uniform": ("uniform", "uniform"),
        "diverged": ("diverged", "none"),
    }


@pytest.mark.parametrize("which", sorted(PEER_IDS))
def test_the_checker_accepts_the_tools_stores(which: str) -> None:
    adapters = [] if which == "diverged" else PEER_ADAPTERS
    check_store(peer_root() / "home" / "store" / PEER_IDS[which], adapters, trimmed=True)


SPOILERS = {
    "manifest.json": ("manifest.json", lambda data: data.replace(b'"schema_version"', b'"Schema_version"')),
    "pointer": ("adapter/tone/current.txt", lambda data: data.strip()),
    "config": ("adapter/_gate/gate_config.json", lambda data: data.replace(b'"trained"', b'"good"')),
    "weights": ("adapter/_gate/gate.safetensors", lambda data: data + b"\0"),
    "lora": ("adapter/style/versions/v0001/adapter_model.safetensors", lambda data: data[:-4]),
    "lock": ("dlm.lock", lambda data: data.replace(b'"cpu"', b'"tpu"')),
    "metrics": ("metrics.sqlite", lambda data: data.replace(b"mean_weight", b"mean_waight")),
    "export": ("exports/vllm/vllm_config.json", lambda data: data + b" "),
}


@pytest.mark.parametrize("what", sorted(SPOILERS))
def test_the_checker_refuses_spoilt_stores(what: str, tmp_path: Path) -> None:
    root = copy_peer(tmp_path / "peer") / "home" / "store" / PEER_IDS["routed"]
    name, spoil = SPOILERS[what]
    path = root / name
    changed = spoil(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    with pytest.raises(AssertionError, match=path.name.replace(".", r"\.")):
        check_store(root, PEER_ADAPTERS, trimmed=True)


def test_the_checker_refuses_strangers(tmp_path: Path) -> None:
    root = copy_peer(tmp_path / "peer") / "home" / "store" / PEER_IDS["routed"]
    (root / "notes.txt").write_text("?")
    with pytest.raises(AssertionError, match=r"notes\.txt"):
        check_store(root, PEER_ADAPTERS, trimmed=True)


def read_everything(root: Path) -> None:
    for which, dlm_id in PEER_IDS.items():
        store = Store(root / "home", dlm_id)
        document = load(root / f"{which}.dlm")
        show_report(root / "home", document)
        read_manifest(store)
        read_lock_record(store)
        read_gate_config(store)
        adapter_versions(store, document.adapter_names)
        assert MetricsReader(store).highest_run_id() in (1, 3)
        reader = MetricsReader(store)
        reader.runs()
        reader.steps(2)
        reader.evals(2)
        reader.gate_history()
        reader.gate_overview()
        reader.exports()
        reader.preference_mining()


@pytest.mark.parametrize("read_only", [True, False])
def test_reading_changes_nothing(tmp_path: Path, read_only: bool) -> None:
    root = copy_peer(tmp_path / "peer", read_only=read_only)
    try:
        before = tree_snapshot(root)
        read_everything(root)
        after = tree_snapshot(root)
        if not read_only:
            # SQLite takes its side files away again, but they were there: the folder's time tells.
            for dlm_id in PEER_IDS.values():
                name = f"home/store/{dlm_id}"
                mode, size, _, digest = before[name]
                before[name] = (mode, size, after[name][2], digest)
        assert after == before
    finally:
        make_writable(root)


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from tests.interop.peer_fixture import peer_root
from tests.interop.test_store_peer import read_everything
read_everything(peer_root())  # everything is imported now; later the interpreter's own files may be out of reach
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
root = Path(sys.argv[1])
try:
    (root / "home" / "probe").touch()
except PermissionError:
    read_everything(root)
    print("read all")
"""


def test_reading_works_where_writing_is_impossible() -> None:
    """A process that may not write there at all; as root that takes giving up root."""
    repository = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        root = copy_peer(Path(scratch) / "peer", read_only=True)
        try:
            before = tree_snapshot(root)
            done = subprocess.run(
                [sys.executable, "-B", "-c", UNPRIVILEGED, str(root)],
                cwd=repository,
                env={**os.environ, "PYTHONPATH": str(repository)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.stdout == "read all\n", done.stderr
            assert tree_snapshot(root) == before
        finally:
            make_writable(root)
