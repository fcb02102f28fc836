"""The demo document, trained once for all tests of a run that need it."""

from __future__ import annotations

import fcntl
import shutil
from pathlib import Path

import pytest

from dlm_tui.assets import asset
from dlm_tui.cli.main import main


def trained_demo(factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(document, home) of the trained demo. Whoever comes first trains it, also among parallel test processes.

    Treat both as read-only; copy them to change them. Takes about a minute the first time.
    """
    shared = factory.getbasetemp()
    if shared.name.startswith("popen-"):  # a worker's folder lies inside the run's
        shared = shared.parent
    folder = shared / "trained-demo"
    with (shared / "trained-demo.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            shutil.copyfile(asset("demo/harbour.dlm"), folder / "harbour.dlm")
            assert main(["train", str(folder / "harbour.dlm"), "--home", str(folder / "home"), "--json"]) == 0
            (folder / "done").touch()
    return folder / "harbour.dlm", folder / "home"
