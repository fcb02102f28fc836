"""An export that is killed, runs out of disk, or is not allowed to write leaves the one before it as it was."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlm_tui.export import ExportRefused, ExportRequest, atomic_folder, bookkeeping, export_document
from dlm_tui.session import Session
from tests.export_sessions import export, open_tiny

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to kill an export at a chosen step")
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return open_tiny(tmp_path_factory.mktemp("crash"), num_hidden_layers=1)


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a fork of this process; returns its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except ExportRefused:
            code = 7
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def killed_at(step: int, place: Path, work: Callable[[], None]) -> bool:
    """Whether `work` was killed at its `step`-th change below `place`: an open for writing, a rename, a removal."""

    def run() -> None:
        seen = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            writing = event == "open" and bool((arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR))
            if (writing or event in _CHANGES) and str(place) in str(arguments[0]):
                if seen == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(watch)
        work()

    status = in_child(run)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def whole(folder: Path) -> str:
    """The mix of the export in `folder`, after checking that every file is what its manifest says."""
    manifest = json.loads((folder / "export_manifest.json").read_text())
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == sorted([*(artifact["path"] for artifact in manifest["artifacts"]), "export_manifest.json"])
    for artifact in manifest["artifacts"]:
        data = (folder / artifact["path"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (artifact["sha256"], artifact["size_bytes"])
    return str(manifest["mix"])


@pytest.mark.parametrize(
    "form",
    [
        {"target": "llama-server"},
        {"target": "llama-server", "quant": "Q4_K_M"},
        {"target": "peft"},
        {"target": "merged"},
    ],
    ids=["llama-server", "llama-server-Q4_K_M", "peft", "merged"],
)
def test_killed_at_every_file_boundary(session: Session, tmp_path: Path, form: dict[str, str]) -> None:
    out = tmp_path / "out"
    old = str(export(session, **form, out=str(out), adapter="tone", verify=False).manifest["mix"])
    outcomes = []
    for step in range(200):
        killed = killed_at(
            step, tmp_path, lambda: void(export(session, **form, out=str(out), adapter="style", verify=False))
        )
        outcomes.append(whole(out))
        if not killed:
            break
    assert len(outcomes) > 8
    assert outcomes[0] == old
    assert outcomes[-1] == str([["style", 1.0]])
    # once the new one is in place it stays: there is no step back, and never a mixture
    assert outcomes == sorted(outcomes, key=[old, str([["style", 1.0]])].index)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def void(_: object) -> None:
    """Let a lambda return nothing."""


def test_killed_where_names_cannot_be_exchanged_at_once(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a kill between the two renames leaves no folder; the next export finds the old one first."""

    monkeypatch.setattr("dlm_tui.platform._exchange_call", lambda: None)
    out = tmp_path / "out"
    export(session, out=str(out), adapter="tone", verify=False)
    missing = 0
    for step in range(200):
        killed = killed_at(step, tmp_path, lambda: void(export(session, out=str(out), adapter="style", verify=False)))
        if not out.exists():
            missing += 1
            atomic_folder.recover(out)
        assert whole(out) in (str([["tone", 1.0]]), str([["style", 1.0]]))
        if not killed:
            break
    assert missing == 1


@pytest.mark.parametrize("target", ["ollama", "llama-server", "peft", "merged"])
def test_a_disk_that_fills_up(session: Session, tmp_path: Path, target: str) -> None:
    """A limit on file size stands in for a full disk: writing fails in the same place, for real."""
    out = tmp_path / "out"
    old = str(export(session, target=target, out=str(out), adapter="tone", verify=False).manifest["mix"])
    for limit in (0, 500, 6_000):

        def limited(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            void(export(session, target=target, out=str(out), adapter="style", verify=False))

        status = in_child(limited)
        assert os.WIFEXITED(status)
        assert os.WEXITSTATUS(status) == 7, f"no ExportRefused with {limit} bytes"
        assert whole(out) == old
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_disk_with_too_little_room_is_refused_before_writing(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ExportRefused, match="too full"):
        export(session, out=str(tmp_path / "out"), verify=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_a_destination_that_cannot_be_written(session: Session) -> None:
    with pytest.raises(ExportRefused, match="cannot be written to /proc/dlm-export"):
        export(session, out="/proc/dlm-export", verify=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold for root")
def test_a_folder_without_permission(session: Session, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(ExportRefused, match="cannot be written"):
        export(session, out=str(locked / "out"), verify=False)
    assert list(locked.iterdir()) == []


def test_a_folder_of_somebody_else_stays(session: Session, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ExportRefused, match="not empty"):
        export(session, out=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_stopping_at_every_step_leaves_nothing_behind(session: Session, tmp_path: Path) -> None:
    out = tmp_path / "out"
    old = str(export(session, target="llama-server", out=str(out), adapter="tone", verify=False).manifest["mix"])
    request = ExportRequest(target="llama-server", out=str(out), adapter="style", verify=False, drift=False)
    steps = sum(1 for _ in export_document(ExportRequest(**{**request.__dict__, "out": str(tmp_path / "x")}), session))
    shutil.rmtree(tmp_path / "x")
    for stop in range(1, steps - 2, 3):
        work = export_document(request, session)
        for _ in range(stop):
            next(work)
        work.close()
        assert whole(out) == old
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_store_that_is_held_does_not_cost_the_export(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bookkeeping, "LOCK_WAIT_SECONDS", 0.2)
    lock = session.store.root / ".lock"
    lock.write_text(f"{os.getppid()}\n{platform.node()}\n{time.time()}\n")
    try:
        result = export(session, out=str(tmp_path / "out"), adapter="tone", verify=False)
    finally:
        lock.unlink()
    assert whole(result.folder)
    assert any("store's manifest does not list it" in note for note in result.notes)
