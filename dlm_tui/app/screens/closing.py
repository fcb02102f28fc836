"""What lies on the workbench closes once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from textual.await_complete import AwaitComplete
from textual.screen import Screen


def closed_once(screen: Screen[Any], close: Callable[[], AwaitComplete]) -> AwaitComplete:
    """Close a screen that is in front, by what Textual's `dismiss` does, which takes away whatever is in front.

    A second Enter or click that was on its way when the first one closed the screen would take the one below.
    """
    return close() if screen.is_active else AwaitComplete()
