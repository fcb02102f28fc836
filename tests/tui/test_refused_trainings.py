"""What stands in the way of a training is said by the real job, and by the command, before a base is loaded.

The base of the document is not on this machine: whoever loaded it first would say that instead.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from dlm_tui.document import load
from dlm_tui.engine.job_client import start_job
from dlm_tui.store import Store, run_lock
from tests.tui.conftest import Opener
from tests.tui.document import write_document


def store_of(path: Path, home: Path) -> Store:
    return Store(home, load(path).dlm_id).create()


def fill_disk(store: Store) -> None:
    """An adapter that twice would need more than the disk has; the file itself takes no room."""
    folder = store.root / "adapter" / "knowledge" / "versions" / "v0001"
    folder.mkdir(parents=True)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.truncate(shutil.disk_usage(folder).free + (1 << 30))
    (folder.parents[1] / "current.txt").write_text(f"{folder.relative_to(store.root)}\n")


def train(path: Path, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dlm_tui", "train", str(path), "--home", str(home)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


async def test_the_screen_names_who_trains(workbench: Opener, tmp_path: Path) -> None:
    path = write_document(tmp_path)
    with run_lock(store_of(path, tmp_path / "home")):
        async with workbench(size=(120, 40), job_starter=start_job) as bench:
            await bench.press("ctrl+t")
            who = f"another run is training this document (process {os.getpid()} on {socket.gethostname()}, since "
            await bench.until(lambda: any(who in toast for toast in bench.toasts), "the holder is named", 300.0)
            assert any("Training failed; the adapters before it stay in force" in toast for toast in bench.toasts)


async def test_a_job_in_the_line_names_for_whom_it_waits(workbench: Opener, tmp_path: Path) -> None:
    path = write_document(tmp_path)
    async with workbench(size=(160, 40), line=True) as bench:
        with run_lock(store_of(path, tmp_path / "home")):
            await bench.press("ctrl+t")
            bench.panes.go_to("jobs")
            await bench.until(lambda: bench.panes.focused_pane == "jobs", "the jobs have the focus")
            await bench.press("f3")
            who = f"(process {os.getpid()} on {socket.gethostname()}, since "
            await bench.until(lambda: who in " ".join(bench.text.split()), "the holder is named in the jobs pane")
            assert bench.jobs == [], "nothing is started before that"
        await bench.until(lambda: bench.context.trained_names and not bench.context.board.running(), "then it trains")
        assert len(bench.jobs) == 1


def test_the_command_names_who_trains(tmp_path: Path) -> None:
    path = write_document(tmp_path)
    with run_lock(store_of(path, tmp_path / "home")):
        done = train(path, tmp_path / "home")
    assert done.returncode == 1 and f"(process {os.getpid()} on {socket.gethostname()}, since " in done.stderr
    assert "wait for it or cancel it" in done.stderr and "Traceback" not in done.stderr
    free = train(path, tmp_path / "home")
    assert free.returncode != 0 and "smollm2-135m" in free.stderr, "with nobody in the way the base is asked for"


async def test_the_screen_names_the_folder_of_a_full_disk(workbench: Opener, tmp_path: Path) -> None:
    path = write_document(tmp_path)
    store = store_of(path, tmp_path / "home")
    fill_disk(store)
    async with workbench(size=(120, 40), job_starter=start_job) as bench:
        await bench.press("ctrl+t")
        words = f"MiB are free in {store.root}, and a training may write"
        await bench.until(lambda: any(words in toast for toast in bench.toasts), "the folder is named", 300.0)
        assert any("make room, or let --home or DLM_HOME name another disk" in toast for toast in bench.toasts)


def test_the_command_names_the_folder_of_a_full_disk(tmp_path: Path) -> None:
    path = write_document(tmp_path)
    store = store_of(path, tmp_path / "home")
    fill_disk(store)
    done = train(path, tmp_path / "home")
    assert done.returncode == 1 and f"MiB are free in {store.root}" in done.stderr and "Traceback" not in done.stderr
