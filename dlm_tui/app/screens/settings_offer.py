"""Settings that the document lacks, offered before they are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.content import Content

from dlm_tui.app.screens.dialog import Dialog
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import literal


class SettingsOffer(Dialog[bool]):
    """Dotted paths below `training` and their values; the result is whether to write them."""

    TITLE_TEXT = "Preferences need settings that the document lacks"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.accept", "Write and train"), ("dialog.close", "Cancel"))

    def __init__(self, settings: Mapping[str, str]) -> None:
        super().__init__()
        self._settings = dict(settings)

    def compose_body(self) -> ComposeResult:
        """What is written, and why."""
        yield LiteralStatic("Without them the training leaves the preferences out, or they move next to nothing.")
        yield LiteralStatic("Will be written below training in the frontmatter", classes="field")
        lines = [literal(f"+ {name}: {value}", "$success") for name, value in self._settings.items()]
        yield LiteralStatic(Content("\n").join(lines), id="offer-settings")

    def action_accept(self) -> None:
        """Write them."""
        self.dismiss(True)
