"""One tiny document, served once per test module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dlm_tui.progress import run_to_end
from dlm_tui.serving.native.backend import NativeBackend
from dlm_tui.session import Session
from tests.export_sessions import open_tiny
from tests.serving.running import Running, serving


@pytest.fixture(scope="module")
def served_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `doc.dlm`, its base and its home, of three adapters and a trained gate."""
    folder = tmp_path_factory.mktemp("served")
    open_tiny(folder, max_position_embeddings=2048)
    return folder


def open_again(folder: Path) -> Session:
    """A session of one's own on what is served."""
    return run_to_end(Session.open(folder / "doc.dlm", folder / "home", folder / "base"))


@pytest.fixture(scope="module")
def workbench(served_folder: Path) -> Session:
    """The same document as the workbench has it open, to compare with."""
    return open_again(served_folder)


@pytest.fixture(scope="module")
def running(served_folder: Path) -> Iterator[Running]:
    """The native server."""
    with serving(NativeBackend(open_again(served_folder))) as found:
        yield found
