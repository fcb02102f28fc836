"""Textual's command palette, as it is used here."""

from __future__ import annotations

from textual import on
from textual.await_complete import AwaitComplete
from textual.command import CommandPalette
from textual.message import Message
from textual.widgets import Input, OptionList

from dlm_tui.app.screens.closing import closed_once


class Palette(CommandPalette):
    """All commands; how to leave stands where something is typed.

    It has no id: one that is being closed still stands in the tree when the next one opens.
    """

    def __init__(self) -> None:
        super().__init__(placeholder="Search for commands\u2026 (Esc closes)")

    def dismiss(self, result: None = None) -> AwaitComplete:
        """Leave, once."""
        return closed_once(self, lambda: super(Palette, self).dismiss(result))

    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    def _taken(self, event: Message) -> None:
        """A second Enter or click that was on its way runs no command when the palette is closed."""
        if not self.is_active:
            event.stop().prevent_default()
