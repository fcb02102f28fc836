"""Copying with a tool of the system: one that hangs is ended, and the next one is tried."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dlm_tui.app import clipboard
from dlm_tui.app.clipboard import copy_with_tool
from dlm_tui.platform import process_lives

_HANGS = """
import os, pathlib, signal, sys
pathlib.Path(sys.argv[0]).with_name("pid").write_text(str(os.getpid()))
signal.pause()
"""
_TAKES = """
import pathlib, sys
pathlib.Path(sys.argv[0]).with_name("taken").write_text(sys.stdin.read())
"""


def tool(folder: Path, name: str, code: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)


async def test_a_tool_that_hangs_is_ended_and_the_next_one_takes_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("WAYLAND_DISPLAY", "TMUX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    assert await copy_with_tool("ü") is None
    tool(tmp_path, "xsel", _TAKES)
    assert await copy_with_tool("ü") == "xsel" and (tmp_path / "taken").read_text() == "ü"
    monkeypatch.setattr(clipboard, "_SECONDS", 5.0)
    tool(tmp_path, "xclip", _HANGS)
    assert await copy_with_tool("again") == "xsel" and (tmp_path / "taken").read_text() == "again"
    assert not process_lives(int((tmp_path / "pid").read_text()))
