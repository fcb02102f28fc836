"""Keys act in the order in which they were pressed.

A letter is taken by the widget that has the focus. A key that is bound climbs from there to the app, through one
message queue after the other, and acts only there: in a burst, letters pressed behind Backspace were inserted before it
deleted. So the keys behind one that may climb wait until it has acted or was taken on its way, and those behind one
that opens a dialog until the dialog has a focus to give them to.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from textual import events
from textual.app import App
from textual.dom import DOMNode
from textual.message import Message

LOOK_EVERY = 0.05
"""Seconds between two looks at whether the widget a key was given to is still there, while others wait behind it."""
LONGEST_HOLD = 2.0
"""Seconds that keys wait for a dialog, which may have to read something first."""


Typed = events.Key | events.Paste


class KeyPassed(Message):
    """Follows a key through the same queues, so that it comes to the app even where something took the key."""

    def __init__(self, key: events.Key) -> None:
        super().__init__()
        self.key = key


class KeyOrder:
    """The keys that wait, and the one they wait for.

    Args:
        app: Whose keys.
        dispatch: What the app does with a key that was pressed.
    """

    def __init__(self, app: App[Any], dispatch: Callable[[Typed], Awaitable[None]]) -> None:
        self._app = app
        self._dispatch = dispatch
        self._waiting: deque[Typed] = deque()
        self._climbing: events.Key | None = None
        self._given_to: DOMNode | None = None
        self._holds: set[object] = set()

    @property
    def is_behind(self) -> bool:
        """Whether a key waits for what was pressed before it."""
        return bool(self._waiting)

    async def pressed(self, typed: Typed) -> None:
        """Give a key or a paste to the app, at once or when the keys before it have acted."""
        self._waiting.append(typed)
        if self._climbing is None:
            await self._go_on()
        elif len(self._waiting) == 1:
            self._look_later()

    def hold(self) -> Callable[[], None]:
        """Keep all keys that come from now on, until what this returns is called, or for `LONGEST_HOLD`."""
        held = object()

        def release() -> None:
            if held in self._holds:
                self._holds.remove(held)
                late.cancel()
                self._app.call_later(self._released)

        self._holds.add(held)
        late = asyncio.get_running_loop().call_later(LONGEST_HOLD, release)
        return release

    async def passed(self, key: events.Key) -> None:
        """A key has acted, or something took it: the next."""
        if key is self._climbing:
            await self._go_on()

    async def _released(self) -> None:
        if self._climbing is None:
            await self._go_on()

    async def _go_on(self) -> None:
        self._climbing = None
        while self._waiting and self._climbing is None and not self._holds:
            typed = self._waiting.popleft()
            target = self._app.focused or self._app.screen
            if isinstance(typed, events.Key) and not target.check_consume_key(typed.key, typed.character):
                self._climbing, self._given_to = typed, target
            await self._dispatch(typed)
            if typed is self._climbing:
                target.post_message(KeyPassed(typed))

    async def _look(self) -> None:
        """A widget that was removed passes nothing on."""
        if self._waiting and self._given_to is not None and not self._given_to.is_attached:
            await self._go_on()
        if self._waiting:
            self._look_later()

    def _look_later(self) -> None:
        asyncio.get_running_loop().call_later(LOOK_EVERY, self._app.call_later, self._look)
