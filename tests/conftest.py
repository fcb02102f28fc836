"""Shared by all tests: one compute thread per process, the same random numbers in every run, a home of its own."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator

# Two test processes with two spinning OpenMP threads each would spend their time waiting for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from dlm_tui.model.environment import collect_rarely
from tests.demo import Demo, shared_folder, trained_demo
from tests.once_more import pytest_runtest_protocol, pytest_terminal_summary

__all__ = ["pytest_runtest_protocol", "pytest_terminal_summary"]

# the same examples in every run, however slow the machine is
_SLOW = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=_SLOW)
settings.load_profile("steady")
collect_rarely()
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what it puts into the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what a module sets up run in one process, one after another, so that it is set up once."""
    for item in items:
        if isinstance(item, pytest.Function) and _shares_with_its_module(item):
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(item.config.rootpath))))


def _shares_with_its_module(item: pytest.Function) -> bool:
    found = [definition for each in item._fixtureinfo.name2fixturedefs.values() for definition in each]
    return any(definition.scope == "module" for definition in found)


def pytest_collection_finish() -> None:
    """The modules of all tests and libraries never go: the collector need not walk them again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The trained demo document; read only."""
    return trained_demo(shared_folder(tmp_path_factory))


@pytest.fixture(scope="session", autouse=True)
def _folders_of_shared_fixtures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What many tests share is set up before any of them has folders of its own."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _use_folders(tmp_path_factory.mktemp("shared-user"), monkeypatch)
        yield


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the person's own stores, config or state."""
    _use_folders(tmp_path_factory.mktemp("user"), monkeypatch)


def _use_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLM_HOME", str(root / "dlm"))
    for name in ("CONFIG", "STATE", "DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(root / name.lower()))


@pytest.fixture(autouse=True)
def _same_numbers() -> None:
    """Random tensors do not depend on which tests ran before in the same process."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
