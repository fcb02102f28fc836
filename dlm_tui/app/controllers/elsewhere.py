"""Adapters and gates that were trained in another window or by a command: said, and taken in when that is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.gate_comparison import GateComparison
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.store import StoreError, adapter_versions

_Mark = tuple[dict[str, int], tuple[int, int] | None]


class Elsewhere:
    """Compares what the engine has loaded with what is in force on disk. Trainings of this window take in their own."""

    def __init__(self, context: Context, comparison: GateComparison) -> None:
        self._context, self._comparison = context, comparison
        self.changed: Signal[[]] = Signal()
        """There is news, or none any more."""
        self._used: _Mark | None = None  # what was on disk when the engine had read it
        self._last: _Mark | None = None
        self._seen: Path | None = None  # the store in which adapters were in force

    def engine_ready(self) -> None:
        """The engine has read adapters and gate: those are what is in use now."""
        self._used = self._last = None
        self._tell("")

    def poll(self) -> None:
        """Look whether something else is in force on disk than in the engine."""
        context = self._context
        if context.link.ready and not context.board.running("train", "gate", "import"):
            context.ui.run(self._look, "elsewhere", "look for newer adapters", exclusive=True)

    async def _look(self) -> None:
        context = self._context
        try:
            context.store_is_gone = await asyncio.to_thread(self._is_gone)
            if context.store_is_gone:
                self._tell("the store is gone: bring it back")
                return
            found = await asyncio.to_thread(self._on_disk)
        except (StoreError, OSError):
            return  # whoever uses it will say what is wrong
        opened = context.opened
        if opened is None or not context.link.ready or context.board.running("train", "gate", "import"):
            return
        settled, self._last = found == self._last, found  # a change that is being made is not looked at
        if not settled:
            return
        if found[0]:
            self._seen = context.store.root
        if self._used is None:
            self._used = dict(opened.versions) if opened.versions and found[0] else found[0], found[1]
        words = "newer adapters" if found[0] != self._used[0] else "a newer gate" if found[1] != self._used[1] else ""
        self._tell(f"{words} on disk, {context.key('train.take_in')} takes them in" if words else "", found[0])

    def _is_gone(self) -> bool:
        root = self._context.store.root
        return root == self._seen and not root.is_dir()

    def _on_disk(self) -> _Mark:
        found = adapter_versions(self._context.store, self._context.names)
        return {name: item.version for name, item in found.items()}, self._gate_mark()

    def _gate_mark(self) -> tuple[int, int] | None:
        try:
            info = (self._context.store.gate_dir / "gate_config.json").stat()
        except OSError:
            return None
        return info.st_mtime_ns, info.st_ino

    def _tell(self, news: str, adapters: Collection[str] = ()) -> None:
        context = self._context
        new = frozenset(adapters) - set(context.trained_names) if news else frozenset()
        if (news, new) != (context.news, context.on_disk):
            context.news, context.on_disk = news, new
            self.changed.emit()

    def take_in(self) -> None:
        """Use what is on disk."""
        context = self._context
        if context.store_is_gone:
            context.ui.say(f"{context.store.root} is gone; what is loaded stays in use.", warning=True)
        elif not context.news:
            context.ui.say("What is in force on disk is in use here already.")
        elif not context.link.ready:
            context.ui.say("The engine is not ready yet.", warning=True)
        else:
            context.ui.run(self._take_in, "take-in", "take in newer adapters")

    async def _take_in(self) -> None:
        self._comparison.remember_current()
        await self._comparison.use_new_gate()
        opened = self._context.opened
        if not self._context.news and opened is not None:
            versions = ", ".join(f"{name} version {version}" for name, version in opened.versions.items())
            self._context.ui.say(f"In force now: {versions}." if versions else "No adapter is in force now.")
