"""The screen never waits for the disk: what its code does on the loop is looked at while tests drive it."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import filelock
import pytest

import dlm_tui.app

_TESTS = str(Path(__file__).parents[1])
_APP = str(Path(dlm_tui.app.__file__).parent)
_WAITS = ((filelock.BaseFileLock, "acquire"), (os, "fsync"), (sqlite3, "connect"))


class LoopGuard:
    """`found` is where the screen took a lock, synced a file or opened a database on its loop.

    What stand-ins of a test do is theirs, and when the screen is left nobody looks at it any more (`on_unmount`).
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[str] = []
        for owner, name in _WAITS:
            monkeypatch.setattr(owner, name, self._watched(name, getattr(owner, name)))

    def _watched(self, name: str, real: Any) -> Any:
        def watched(*args: Any, **more: Any) -> Any:
            codes = list(_on_the_loop())
            ours = [code for code in codes if code.co_filename.startswith(_APP)]
            excused = any(code.co_filename.startswith(_TESTS) or code.co_name == "on_unmount" for code in codes)
            if ours and not excused:
                self.found.append(f"{name} by {' < '.join(code.co_qualname for code in ours)}")
            return real(*args, **more)

        return watched


def _on_the_loop() -> Iterator[CodeType]:
    """The functions that are running in the step of the loop that is running here, innermost first; none in threads."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != asyncio.events.__file__:
        if frame.f_code.co_filename != __file__:
            yield frame.f_code
        frame = frame.f_back  # type: ignore[assignment]
