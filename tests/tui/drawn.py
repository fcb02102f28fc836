"""What stands on the screen, line by line."""

from __future__ import annotations

from textual._context import visible_screen_stack
from textual.app import App
from textual.strip import Strip


def drawn_strips(app: App[object]) -> list[Strip]:
    """The lines as the app itself would draw them now.

    A dialog draws the screens behind it only where it is told of them, as every paint of the app does; what is drawn
    without stays blank in its cache, and so on the terminal, until something behind it changes.
    """
    visible_screen_stack.set(app._background_screens)
    return app.screen._compositor.render_strips()
