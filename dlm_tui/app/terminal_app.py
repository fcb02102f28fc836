"""What the two apps share: keys in order, the themes, and a driver that takes what real terminals send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from textual import events
from textual.app import App, ReturnType
from textual.filter import LineFilter, Monochrome

from dlm_tui.app.key_order import KeyOrder, KeyPassed
from dlm_tui.app.themes import DLM_DARK, DLM_LIGHT
from dlm_widgets.style_filter import NothingThatActs, ReadableInSixteen, StyleEverySegment

if TYPE_CHECKING:
    from textual.driver import Driver

_TAME, _STYLED, _READABLE = NothingThatActs(), StyleEverySegment(), ReadableInSixteen()
"""One each for all lines: Textual keeps what a filter made of a line by the filter's identity."""


class TerminalApp(App[ReturnType], inherit_bindings=False):
    """An app on a real terminal, under one of our themes.

    Args:
        theme: Its name, one of `THEME_NAMES`.
        keys: What a person bound, by the binding's id.
    """

    def __init__(self, theme: str, keys: Mapping[str, str]) -> None:
        super().__init__()
        self.key_order = KeyOrder(self, super().on_event)
        """Also for what opens dialogs, which keys have to wait for."""
        self.register_theme(DLM_DARK)
        self.register_theme(DLM_LIGHT)
        self.theme = theme
        self.set_keymap(keys)

    def get_driver_class(self) -> type[Driver]:
        """On a terminal, the driver that takes what real terminals send."""
        chosen = super().get_driver_class()
        if chosen.__name__ != "LinuxDriver":
            return chosen
        from dlm_tui.app.terminal import TerminalDriver

        return TerminalDriver

    def get_line_filters(self) -> Sequence[LineFilter]:
        """As Textual has them, behind one that lets nothing act on the terminal; safe for segments without a style,
        which only the greys of NO_COLOR do not take; and readable where the terminal has sixteen colours."""
        filters = [_TAME, *super().get_line_filters()]
        if self.console.color_system == "standard":
            filters = [*filters, _READABLE]
        return [_STYLED, *filters] if any(isinstance(each, Monochrome) for each in filters) else filters

    async def on_event(self, event: events.Event) -> None:
        """Keys one after the other; Alt with a letter is a key: what is being edited would take the letter as text."""
        if not isinstance(event, events.Key | events.Paste):
            await super().on_event(event)
        elif not event.is_forwarded:
            if isinstance(event, events.Key) and event.key.startswith("alt+"):
                event.character = None
            await self.key_order.pressed(event)
        else:
            await super().on_event(event)
            if isinstance(event, events.Key):
                await self.key_order.passed(event)

    async def on_key_passed(self, message: KeyPassed) -> None:
        """Something took the key on its way here."""
        await self.key_order.passed(message.key)
