"""Shared by all tests: one compute thread per process, and a home of its own for every test."""

from __future__ import annotations

import os

# Two test processes with two spinning OpenMP threads each would spend their time waiting for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest

from tests.demo import Demo, shared_folder, trained_demo


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The trained demo document; read only."""
    return trained_demo(shared_folder(tmp_path_factory))


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the person's own stores, config or state."""
    root: Path = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("DLM_HOME", str(root / "dlm"))
    for name in ("CONFIG", "STATE", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(root / name.lower()))
