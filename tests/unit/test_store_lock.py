"""One process at a time in a store, and what happens to leftovers."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dlm_tui.store import LockHeld, LockStale, Store, StoreError, store_lock, update_manifest
from dlm_tui.store.examine import examine, repair
from dlm_tui.store.locks import strange_locks

ID = "01JTESTTESTTESTTESTTESTTES"
HOLD = """
import sys
from pathlib import Path
from dlm_tui.store import Store, store_lock
with store_lock(Store(Path(sys.argv[1]), sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", ID).create()


def holder(store: Store) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(store.home), ID], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def leftover(store: Store, pid: int, host: str | None = None, written: float | None = None) -> bytes:
    moment = time.time() if written is None else written
    content = f"{pid}\n{host or socket.gethostname()}\n{moment}\n".encode()
    store.lock_path.write_bytes(content)
    return content


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_the_file_has_three_lines_and_goes_away(store: Store) -> None:
    with store_lock(store):
        lines = store.lock_path.read_text().split("\n")
        assert lines[:2] == [str(os.getpid()), socket.gethostname()]
        assert abs(float(lines[2]) - time.time()) < 60
        assert lines[3:] == [""]
        assert store.lock_path.stat().st_mode & 0o777 == 0o644
    assert not [path for path in store.root.iterdir() if path.name.startswith(".lock")]


def test_another_process_holds_it_until_it_ends(store: Store) -> None:
    process = holder(store)
    try:
        started = time.monotonic()
        with pytest.raises(LockHeld, match=f"process {process.pid}"), store_lock(store):
            pytest.fail("two holders")
        assert time.monotonic() - started < 60
        threading.Timer(0.3, process.stdin.close).start()  # type: ignore[union-attr]
        with store_lock(store, timeout=120.0):
            assert store.lock_path.read_text().startswith(f"{os.getpid()}\n")
    finally:
        process.wait(120)
        assert process.stdout is not None
        process.stdout.close()


def test_a_killed_holder_is_replaced(store: Store) -> None:
    process = holder(store)
    process.send_signal(signal.SIGKILL)
    process.wait(120)
    process.communicate()
    assert store.lock_path.exists()
    with store_lock(store):
        assert store.lock_path.read_text().startswith(f"{os.getpid()}\n")
    assert not [path for path in store.root.iterdir() if path.name.startswith(".lock")]


def test_our_leftover_is_replaced_even_if_its_process_id_lives_again(store: Store) -> None:
    leftover(store, os.getppid())
    store.lock_path.with_name(".lock.tui").hardlink_to(store.lock_path)
    with store_lock(store):
        assert store.lock_path.read_text().startswith(f"{os.getpid()}\n")


def test_a_foreign_leftover_of_a_dead_process_is_replaced(store: Store) -> None:
    leftover(store, dead_pid())
    with store_lock(store):
        assert store.lock_path.read_text().startswith(f"{os.getpid()}\n")


def test_a_living_holder_of_another_tool_is_respected(store: Store) -> None:
    content = leftover(store, os.getppid())
    with pytest.raises(LockHeld), store_lock(store, timeout=0.2):
        pytest.fail("stolen from a living process")
    assert store.lock_path.read_bytes() == content


@pytest.mark.parametrize("case", ["other host", "unreadable", "recycled id"])
def test_what_cannot_be_judged_is_never_stolen(store: Store, case: str) -> None:
    if case == "other host":
        content = leftover(store, dead_pid(), host="another-host.example")
    elif case == "recycled id":
        content = leftover(store, os.getpid(), written=1000.0)
    else:
        content = b"who knows"
        store.lock_path.write_bytes(content)
    with pytest.raises(LockStale, match="delete that file"), store_lock(store):
        pytest.fail("stolen")
    assert store.lock_path.read_bytes() == content


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Path.mkdir, "a folder"),
        (lambda path: path.symlink_to(path), "a link that leads nowhere"),
        (os.mkfifo, "a pipe"),
    ],
)
def test_what_is_no_file_in_the_place_of_the_lock_is_said_at_once_and_set_aside(
    store: Store, make: Callable[[Path], None], words: str
) -> None:
    make(store.create().lock_path)
    began = time.monotonic()
    with (
        pytest.raises(StoreError, match=rf"\.lock is {words}.*--repair` sets it aside") as caught,
        store_lock(store, 10),
    ):
        pass
    assert not isinstance(caught.value, LockHeld) and time.monotonic() - began < 5
    assert any(words in text for text in repair(store, ["tone"], "tiny"))
    assert os.path.lexists(store.root / ".lock.damaged")
    with store_lock(store):
        pass


def test_a_store_that_cannot_be_written_is_named_with_the_remedy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with (
        pytest.raises(
            StoreError, match=r"store\.lock cannot be locked: this user may not do that; change its permissions"
        ),
        store_lock(store),
    ):
        pass
    monkeypatch.setattr("dlm_tui.store.layout.why_not_written", lambda folder: "nothing can be written there")
    said = rf"The store {re.escape(str(store.root))} cannot be written: nothing can be written there; .*--home"
    with pytest.raises(StoreError, match=said), store_lock(store):
        pass


def test_a_finished_but_uncollected_holder_is_dead(store: Store) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system does not tell ended processes apart")
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.read()  # ends when the process does; it stays uncollected until wait()
        leftover(store, process.pid)
        with store_lock(store, timeout=120.0):
            pass
    finally:
        process.wait(120)
        process.stdout.close()  # type: ignore[union-attr]


def test_the_same_thread_may_enter_again_and_another_may_not(store: Store) -> None:
    seen: list[str] = []

    def other() -> None:
        try:
            with store_lock(store):
                seen.append("entered")
        except LockHeld:
            seen.append("held")

    with store_lock(store):
        update_manifest(store, lambda manifest: None, base_model="tiny", timeout=0.0)
        with store_lock(store):
            pass
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(30)
        assert seen == ["held"]
        assert store.lock_path.exists()
    thread = threading.Thread(target=other)
    thread.start()
    thread.join(30)
    assert seen == ["held", "entered"]


def test_an_error_inside_releases(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store_lock(store):
        _ = 1 // 0
    with store_lock(store):
        pass


ADD = """
import sys
from pathlib import Path
from dlm_tui.store import Store, update_manifest
store = Store(Path(sys.argv[1]), sys.argv[2])
for k in range(10):
    def add(manifest):
        manifest.adapter_version += 1
    update_manifest(store, add)
"""


def test_no_update_of_four_processes_is_lost(store: Store) -> None:
    update_manifest(store, lambda manifest: None, base_model="tiny")
    workers = [subprocess.Popen([sys.executable, "-c", ADD, str(store.home), ID]) for _ in range(4)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0, 0]
    seen: list[int] = []
    update_manifest(store, lambda manifest: seen.append(manifest.adapter_version))
    assert seen == [40]


@pytest.mark.parametrize("where", ["folder", "lock"])
@pytest.mark.parametrize("what", ["a link", "a file", "a folder", "a pipe or device"])
def test_what_has_the_place_of_a_lock_is_named_and_set_aside(store: Store, where: str, what: str) -> None:
    with store_lock(store):
        pass
    folder = store.cache_dir / "tui_locks"
    place = folder if where == "folder" else folder / "store.lock"
    if (where, what) in {("folder", "a folder"), ("lock", "a file")}:
        assert strange_locks(store) == []
        return
    if where == "folder":
        shutil.rmtree(folder)
    else:
        place.unlink(missing_ok=True)
    {
        "a link": lambda: place.symlink_to(store.manifest_path.parent / "elsewhere"),
        "a file": lambda: place.write_text("x"),
        "a folder": lambda: place.mkdir(),
        "a pipe or device": lambda: os.mkfifo(place),
    }[what]()
    if (where, what) != ("lock", "a pipe or device"):  # the system locks that, too
        with pytest.raises(StoreError, match=re.escape(f"{place} is {what} and no ")), store_lock(store):
            pass
    sentence = f"{place} is {what} and no {where.replace('lock', 'file')} for locks."
    assert [finding.text for finding in examine(store, []) if finding.severity == "damage"] == [sentence]
    repair(store, [])
    assert strange_locks(store) == [] and examine(store, []) == []
    with store_lock(store):
        pass
