"""The help panel, generated from the key table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

from textual import events
from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import Input

from dlm_tui.app.keys import GROUPS, KEYS, WHERE_TEXT, Key, display, keys_of
from dlm_tui.app.screens.dialog import Dialog
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble, fit

_LEAST_ROOM = 12


class HelpScreen(Dialog[None]):
    """Every key with its id for the configuration file: those of the pane one comes from, then all by group."""

    SCROLLS = True

    def __init__(self, remapped: Mapping[str, str], config_file: str, pane: str | None = None) -> None:
        super().__init__()
        self._remapped, self._config_file, self._pane = remapped, config_file, pane

    def compose_body(self) -> ComposeResult:
        """A scrolling table."""
        yield Input(placeholder="filter: words of what a key does", id="help-filter")
        yield LiteralStatic(id="help")

    def on_mount(self) -> None:
        """Scrollable by keys at once."""
        super().on_mount()
        self.retitle("Keys")
        self.query_one(".body").focus()

    def on_input_changed(self) -> None:
        """Show what has the words."""
        self._fill()

    def on_key(self, event: events.Key) -> None:
        """A letter goes to the filter; the arrows scroll wherever the focus is."""
        field = self.query_one(Input)
        if event.character and event.character.isprintable() and self.focused is not field:
            event.stop()
            field.focus()
            field.insert_text_at_cursor(event.character)
        elif event.key in {"up", "down", "pageup", "pagedown"} and self.focused is field:
            event.stop()
            body, page = self.query_one(".body"), event.key.startswith("page")
            step = self.query_one(".body").size.height if page else 1
            body.scroll_relative(y=step if event.key.endswith("down") else -step, animate=False)

    def on_resize(self) -> None:
        """Fit the table to the width."""
        super().on_resize()
        self.call_after_refresh(self._fill)

    def _fill(self) -> None:
        width, words = help_width(self.app.size.width), self.query_one(Input).value.casefold().split()
        content = help_content(self._remapped, self._config_file, width, words, self._pane)
        self.query_one("#help", LiteralStatic).show(content)


def help_width(columns: int) -> int:
    """The cells a line of the table has on a screen of so many columns."""
    return min(92, round(columns * 0.94)) - 5


def help_content(
    remapped: Mapping[str, str], config_file: str, width: int, words: Sequence[str] = (), pane: str | None = None
) -> Content:
    """Keys, what they do, and the id for the configuration file: all, or those in which all `words` are found.

    Those that work only in `pane` come first, since a narrow footer has no room for all of them.
    """
    parts: list[str | tuple[str, str]] = [
        "Single letters work outside the prompt: Esc leaves it, i returns. Tab moves between panes, the mouse works "
        "everywhere, and the command palette finds everything by name.\n\n"
    ]
    room = max(_LEAST_ROOM, width - 18)  # in less than that the widget wraps once more, and every word is seen
    shown = [key for key in KEYS if _has(key, remapped, words)]
    here = [key for key in shown if key.where == pane]
    groups = [(_here(here[0]), here)] if here else []
    groups += [(group, [key for key in shown if key.group == group and key not in here]) for group in GROUPS]
    for title, found in groups:
        if found:
            parts.append((f"{title}\n", "bold $primary"))
        for key in found:
            keys = "  ".join(display(one) for one in keys_of(key, remapped))
            where = WHERE_TEXT[key.where] if key not in here else ""
            lines = _with_id(f"{key.description}{f' ({where})' if where else ''}", key.id, room)
            parts.append((f"  {fit(keys, 14)} ", "bold"))
            for index, (text, key_id) in enumerate(lines):
                parts += [" " * 17 if index else "", text, (f"{key_id}\n", "$foreground 45%")]
    parts.append(("\nKeys, colours and limits are set in ", "$foreground 65%"))
    parts.append(config_file)
    return assemble(*parts)


def _here(key: Key) -> str:
    return f"Here, {WHERE_TEXT[key.where]}"


def _has(key: Key, remapped: Mapping[str, str], words: Sequence[str]) -> bool:
    keys = " ".join(display(one) for one in keys_of(key, remapped))
    text = f"{key.group} {key.label} {key.description} {WHERE_TEXT[key.where]} {key.id} {keys}".casefold()
    return all(word in text for word in words)


def _with_id(text: str, key_id: str, room: int) -> list[tuple[str, str]]:
    """Lines of `room` cells with the id at the right end of the last: beside the text where there is room."""
    beside = room - len(key_id) - 1
    lines = wrap(text, beside if beside >= 44 else room)
    if len(lines[-1]) > beside:
        lines.append("")
    return [*((line, "") for line in lines[:-1]), (fit(lines[-1], room - len(key_id)), key_id)]
