"""The conversations that are kept: open one, forget one, save one for other programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.moments import local_time
from dlm_tui.store import ConversationSummary
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, sanitize

_NOTHING = "No conversation is kept yet: a follow-up begins one."


class ConversationsScreen(Dialog[ConversationSummary]):
    """Enter opens the marked conversation; it can be saved to the file that is named below the list."""

    TITLE_TEXT = "Conversations"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Open"),
        ("dialog.save", "Save"),
        ("dialog.delete", "Forget"),
        ("dialog.close", "Close"),
    )

    def __init__(self, found: Sequence[ConversationSummary], target: Path) -> None:
        super().__init__()
        self._found, self._target = list(found), target
        self.on_forgotten: Callable[[ConversationSummary], object] = lambda summary: None
        self.on_saved: Callable[[ConversationSummary, str], object] = lambda summary, name: None

    def compose_body(self) -> ComposeResult:
        """The list, and where the marked one is saved."""
        yield PickList(id="conversation-list", markup=False)
        yield LiteralStatic("Save to: .json role and content, .md to read, .jsonl everything", classes="field")
        yield Input(value=self._target.name, id="conversation-file")
        yield LiteralStatic(classes="note", id="conversation-note")

    def on_mount(self) -> None:
        """The newest first."""
        super().on_mount()
        self._show()
        (self.query_one(PickList) if self._found else self.query_one(Input)).focus()

    def _show(self) -> None:
        listing = self.query_one(PickList)
        listing.set_options([Option(_row(summary)) for summary in self._found])
        listing.display = bool(self._found)
        if self._found:
            listing.highlighted = 0
        else:  # `note` is for what comes later: a dialog that is being mounted is not open yet
            self.query_one("#conversation-note", LiteralStatic).show(_NOTHING)
        self.show_keys()

    def keys_now(self) -> Sequence[tuple[str, str]]:
        """Without conversations there is nothing to do but to close."""
        return self.HINTS if self._found else self.HINTS[-1:]

    @property
    def _chosen(self) -> ConversationSummary | None:
        index = self.query_one(PickList).highlighted
        return self._found[index] if index is not None and index < len(self._found) else None

    def note(self, text: str) -> None:
        """Say what became of it, if the dialog is still open."""
        if self.is_open:
            self.query_one("#conversation-note", LiteralStatic).show(text)

    def offer(self, name: str) -> None:
        """Another name to save to, if the dialog is still open."""
        if self.is_open:
            self.query_one(Input).value = name
            self.note(f"Nothing is saved yet; {name} is free.")

    @on(OptionList.OptionSelected)
    def _taken(self) -> None:
        self.action_accept()

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.action_save()

    def action_accept(self) -> None:
        """Open the marked conversation."""
        if self._chosen is not None:
            self.dismiss(self._chosen)

    def action_save(self) -> None:
        """Save the marked conversation to the file that is named."""
        name = self.query_one(Input).value.strip()
        if self._chosen is not None and name:
            self.on_saved(self._chosen, name)
        else:
            self.note("There is nothing to save." if name else "The file needs a name.")

    def action_delete(self) -> None:
        """Forget the marked conversation with all its turns."""
        if (chosen := self._chosen) is not None:
            self._found.remove(chosen)
            self.on_forgotten(chosen)
            self._show()


def _row(summary: ConversationSummary) -> Content:
    at = local_time(summary.at, "%Y-%m-%d %H:%M")
    return assemble((f"{at}  {summary.answers:3d}  ", "dim"), sanitize(summary.title, one_line=True)[:300])
