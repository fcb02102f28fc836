"""A trained copy of the peer's routed document and an engine child on it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from dlm_tui.engine.client import EngineClient
from dlm_tui.engine.process import ChildProcess
from dlm_tui.engine.protocol import Open, Opened
from tests.interop.peer_fixture import PEER_IDS, make_writable, peer_root


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory) -> Open:
    """The request that opens a private copy of the routed document; its store has adapters and a trained gate."""
    folder = tmp_path_factory.mktemp("routed")
    document = folder / "routed.dlm"
    document.write_bytes((peer_root() / "routed.dlm").read_bytes())
    store = Path("home") / "store" / PEER_IDS["routed"]
    shutil.copytree(peer_root() / store, folder / store)
    make_writable(folder)
    return Open(document=str(document), home=str(folder / "home"), base=str(peer_root() / "base"))


@asynccontextmanager
async def running(request: Open) -> AsyncIterator[EngineClient]:
    """An engine child with a document open."""
    client = EngineClient(threads=1)
    await client.start()
    opened = await client.ask(request)
    assert isinstance(opened, Opened)
    yield client
    await client.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(routed: Open) -> AsyncIterator[EngineClient]:
    """One engine child for all tests of a module."""
    async with running(routed) as client:
        yield client


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a child that is asked to end takes longer than a person at the screen would wait."""
    end_within = ChildProcess.end_within

    async def patient(child: ChildProcess, seconds: float) -> bool:
        return await end_within(child, max(seconds, 120.0))

    monkeypatch.setattr(ChildProcess, "end_within", patient)
    monkeypatch.setattr("dlm_tui.engine.job_client._ASK_SECONDS", 120.0)
