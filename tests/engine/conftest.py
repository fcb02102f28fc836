"""A trained copy of the peer's routed document and an engine child on it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dlm_tui.engine.client import EngineClient
from dlm_tui.engine.protocol import Open, Opened
from tests.interop.peer_fixture import PEER_IDS, make_writable, peer_root


@pytest.fixture
def routed(tmp_path: Path) -> Open:
    """The request that opens a private copy of the routed document; its store has adapters and a trained gate."""
    document = tmp_path / "routed.dlm"
    document.write_bytes((peer_root() / "routed.dlm").read_bytes())
    store = Path("home") / "store" / PEER_IDS["routed"]
    shutil.copytree(peer_root() / store, tmp_path / store)
    make_writable(tmp_path)
    return Open(document=str(document), home=str(tmp_path / "home"), base=str(peer_root() / "base"))


@pytest.fixture
async def engine(routed: Open) -> AsyncIterator[EngineClient]:
    """An engine child with the routed document open."""
    client = EngineClient(threads=1)
    await client.start()
    opened = await client.ask(routed)
    assert isinstance(opened, Opened)
    yield client
    await client.close()
