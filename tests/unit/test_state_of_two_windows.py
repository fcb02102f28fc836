"""Two windows on one document, and a disk that is full for a while: nothing that was asked or typed is lost."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path

import pytest

from dlm_tui.app.controllers import saving
from dlm_tui.app.controllers.saving import StateSaver
from dlm_tui.app.state import Snapshot, State, StateFile
from tests.unit.app_controllers import FakeUi


def asked(file: StateFile, state: State, text: str, at: str) -> None:
    state.remember(text, {}, None)
    state.history[0].at = at
    file.write(file.encode(state))


def test_what_either_window_asked_stays(tmp_path: Path) -> None:
    one, other = (StateFile(tmp_path / "a.dlm", tmp_path) for _ in range(2))
    first, second = one.load(), other.load()
    asked(one, first, "alpha", "2026-01-01T00:00:01Z")
    asked(other, second, "beta", "2026-01-01T00:00:02Z")
    asked(one, first, "gamma", "2026-01-01T00:00:03Z")
    assert [entry.text for entry in StateFile(tmp_path / "a.dlm", tmp_path).load().history] == [
        "gamma",
        "beta",
        "alpha",
    ]
    first.prompt = "typed"
    one.write(one.encode(first))
    again = StateFile(tmp_path / "a.dlm", tmp_path).load()
    assert again.prompt == "typed" and len(again.history) == 3


def test_what_a_newer_version_remembers_is_kept(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "a.dlm", tmp_path)
    file.path.parent.mkdir(parents=True)
    file.path.write_bytes(b'{"prompt": "typed", "later": {"a": [1]}}')
    state = file.load()
    asked(file, state, "alpha", "2026-01-01T00:00:01Z")
    other = StateFile(tmp_path / "a.dlm", tmp_path)
    asked(other, other.load(), "beta", "2026-01-01T00:00:02Z")
    asked(file, state, "gamma", "2026-01-01T00:00:03Z")
    kept = json.loads(file.path.read_bytes())
    assert (kept["prompt"], kept["later"], len(kept["history"])) == ("typed", {"a": [1]}, 3)


def test_a_file_that_another_process_damaged_does_not_keep_us_from_saving(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "a.dlm", tmp_path)
    state = file.load()
    asked(file, state, "alpha", "2026-01-01T00:00:01Z")
    file.path.write_bytes(b"{")
    asked(file, state, "beta", "2026-01-01T00:00:02Z")
    assert [entry.text for entry in file.load().history] == ["beta", "alpha"]


async def test_what_could_not_be_saved_is_saved_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_AGAIN", 0.01)
    file, state, ui = StateFile(tmp_path / "a.dlm", tmp_path), State(prompt="typed"), FakeUi()
    full, written = asyncio.Event(), asyncio.Event()
    loop, tries, write = asyncio.get_running_loop(), list[int](), file.write

    def tried(snapshot: Snapshot) -> None:
        tries.append(snapshot.number)
        if len(tries) < 3:
            loop.call_soon_threadsafe(full.set)
            raise OSError(errno.ENOSPC, "No space left on device", str(file.path))
        write(snapshot)
        loop.call_soon_threadsafe(written.set)

    monkeypatch.setattr(file, "write", tried)
    saver = StateSaver(file, state, ui)
    saver.soon()
    await asyncio.wait_for(full.wait(), 10)
    await asyncio.wait_for(written.wait(), 10)
    assert StateFile(tmp_path / "a.dlm", tmp_path).load().prompt == "typed"
    assert len([text for text in ui.said if "no space is left on its disk" in text]) == 1, "said once"
