"""Drawing when it is asked for, not more often than eyes follow, and only what is shown."""

from __future__ import annotations

import asyncio
import math
from time import monotonic
from typing import ClassVar

from textual import events
from textual.widget import Widget


class Throttled(Widget):
    """A widget that is told what to show by `ask` and shows it in `draw`.

    However often it is asked, it draws at most `DRAWS_PER_SECOND` times a second: the first time at once, then after
    the rest of the interval. While it is not shown it is not drawn; it is drawn once when it is shown again. Name it
    after the base that brings the style: Textual reads default styles from the first one.

    Whether it is shown is asked whenever that matters, and after every layout. Show and Hide alone do not tell: a
    layout that is worked out early, for whoever asks where a widget is, takes the Show of the one that follows away.
    """

    DRAWS_PER_SECOND: ClassVar[float] = 15.0
    _asked = False
    _due = False
    _has_place = False  # as of the last layout: before the next one its size is of no use
    _drawn = -math.inf

    def draw(self) -> None:
        """Show the present state."""
        raise NotImplementedError

    def ask(self) -> None:
        """What is shown has changed."""
        self._asked = True
        if self._due or not self.is_behind:
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
        return self._asked and self._has_place and self.is_attached and is_displayed(self)

    def _draw_asked(self) -> None:
        self._due = False
        if self.is_behind:
            self._asked = False
            self._drawn = monotonic()
            self.draw()

    def _on_mount(self, event: events.Mount) -> None:
        self.screen.screen_layout_refresh_signal.subscribe(self, self._look_again, immediate=True)

    def on_show(self) -> None:
        """It has a place on the screen."""
        self._look_again()

    def _look_again(self, _: object = None) -> None:
        """It was laid out: draw at once what was asked for while it had no place."""
        self._has_place = is_displayed(self)
        if self.is_behind and not self._due:
            self._due = self.call_later(self._draw_asked)


def is_displayed(widget: Widget) -> bool:
    """Whether neither the widget nor what it lies in is taken off the screen, by the styles as they are now."""
    return all(node.display for node in widget.ancestors_with_self if isinstance(node, Widget))
