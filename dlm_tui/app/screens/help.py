"""The help panel, generated from the key table."""

from __future__ import annotations

from collections.abc import Mapping

from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content

from dlm_tui.app.keys import GROUPS, KEYS, WHERE_TEXT, display, keys_of
from dlm_tui.app.screens.dialog import Dialog
from widgets.line import Line
from widgets.plain import assemble, fit


class HelpScreen(Dialog[None]):
    """Every key by group, with its id for the configuration file."""

    def __init__(self, remapped: Mapping[str, str], config_file: str) -> None:
        super().__init__()
        self._remapped, self._config_file = remapped, config_file

    def compose_body(self) -> ComposeResult:
        """A scrolling table."""
        with VerticalScroll(classes="scroll"):
            yield Line(help_content(self._remapped, self._config_file))

    def on_mount(self) -> None:
        """Scrollable by keys at once."""
        super().on_mount()
        self.retitle("Keys")
        self.query_one(VerticalScroll).focus()


def help_content(remapped: Mapping[str, str], config_file: str) -> Content:
    """The table as it is shown."""
    parts: list[str | tuple[str, str]] = []
    for group in GROUPS:
        parts.append((f"{group}\n", "bold $primary"))
        for key in KEYS:
            if key.group != group:
                continue
            keys = "  ".join(display(one) for one in keys_of(key, remapped))
            where = WHERE_TEXT[key.where]
            parts.append((f"  {fit(keys, 14)} ", "bold"))
            parts.append(f"{key.description}{f' ({where})' if where else ''}")
            parts.append((f"  {key.id}\n", "$foreground 40%"))
        parts.append("\n")
    parts.append(("Single letters work outside the prompt: Esc leaves it, i returns. ", ""))
    parts.append(("Tab moves between panes; the mouse works everywhere; ^p searches all commands.\n", ""))
    parts.append((f"Keys and colours: {config_file}", "$foreground 60%"))
    return assemble(*parts)
