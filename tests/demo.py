"""The demo document, trained once per test run and shared by all test processes."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dlm_tui.cli.demo import place_demo
from dlm_tui.document import load
from dlm_tui.store import Store, adopt


@dataclass(frozen=True)
class Demo:
    """A trained demo: its document and its home. Read only; `copy` gives a private one."""

    document: Path
    home: Path

    def copy(self, folder: Path) -> Demo:
        """A private copy that a test may change."""
        folder.mkdir(parents=True, exist_ok=True)
        document = folder / self.document.name
        shutil.copy(self.document, document)
        shutil.copytree(self.home, folder / "home")
        loaded = load(document)
        adopt(Store(folder / "home", loaded.dlm_id), loaded)
        return Demo(document, folder / "home")


def trained_demo(shared: Path) -> Demo:
    """Train the demo under `shared` through the command line, unless another test process has done it already."""
    demo = Demo(place_demo(shared / "demo"), shared / "home")
    done = shared / "trained"
    with (shared / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            command = [sys.executable, "-m", "dlm_tui", "train", str(demo.document), "--home", str(demo.home), "--json"]
            result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            if result.returncode:
                pytest.fail(f"training the demo failed: {result.stderr[-2000:]}")
            done.write_text(result.stdout)
    return demo


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """One folder for all test processes of this run."""
    root = factory.getbasetemp()
    folder = (root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root) / "trained-demo"
    folder.mkdir(exist_ok=True)
    return folder
