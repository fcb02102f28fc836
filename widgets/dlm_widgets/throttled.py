"""Drawing when it is asked for, not more often than eyes follow, and only what is shown."""

from __future__ import annotations

import asyncio
import math
from time import monotonic
from typing import ClassVar

from textual.widget import Widget


class Throttled(Widget):
    """A widget that is told what to show by `ask` and shows it in `draw`.

    However often it is asked, it draws at most `DRAWS_PER_SECOND` times a second: the first time at once, then after
    the rest of the interval. While it is not shown it is not drawn; it is drawn once when it is shown again. Name it
    after the base that brings the style: Textual reads default styles from the first one.
    """

    DRAWS_PER_SECOND: ClassVar[float] = 15.0
    _asked = False
    _due = False
    _on_screen = False
    _drawn = -math.inf

    def draw(self) -> None:
        """Show the present state."""
        raise NotImplementedError

    def ask(self) -> None:
        """What is shown has changed."""
        self._asked = True
        if self._due or not self._on_screen:
            return
        self._due = True
        wait = 1.0 / self.DRAWS_PER_SECOND - (monotonic() - self._drawn)
        if wait > 0:
            self._after(wait)
        else:
            self.call_later(self._draw_asked)

    def _after(self, wait: float) -> None:
        """Draw in `wait` seconds. Not by `set_timer`: a timer whose time has come before it starts never fires."""
        asyncio.get_running_loop().call_later(wait, self.call_later, self._draw_asked)

    @property
    def is_behind(self) -> bool:
        """Whether a draw is still to come without anything else happening."""
        return self._asked and self._on_screen and self.is_attached

    def _draw_asked(self) -> None:
        self._due = False
        if self.is_behind:
            self._asked = False
            self._drawn = monotonic()
            self.draw()

    def on_show(self) -> None:
        """It has a place on the screen: draw what was asked for before."""
        self._on_screen = True
        if not self._due:
            self._draw_asked()

    def on_hide(self) -> None:
        """It has none any more."""
        self._on_screen = False
