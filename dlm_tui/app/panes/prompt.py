"""The prompt editor."""

from __future__ import annotations

from dataclasses import dataclass

from textual.app import ComposeResult
from textual.message import Message
from textual.widget import Widget
from textual.widgets import TextArea

from dlm_tui.app.panes.pane import Pane
from dlm_widgets.literal_text_area import LiteralTextArea


class PromptEditor(LiteralTextArea):
    """Where a prompt, or an answer to teach, is typed."""


class PromptPane(Pane):
    """Where prompts are typed."""

    TITLE = "Prompt"
    JUMP = "p"

    @dataclass
    class Typed(Message):
        """The text changed."""

        text: str

    def __init__(self, text: str = "") -> None:
        super().__init__(id="prompt")
        self._initial = text

    def compose(self) -> ComposeResult:
        """The editor."""
        editor = PromptEditor(
            self._initial,
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            placeholder="Type a prompt: the mix below follows every key.",
            id="editor",
        )
        editor.move_cursor(editor.document.end)
        yield editor

    @property
    def editor(self) -> PromptEditor:
        """The text area."""
        return self.query_one(PromptEditor)

    @property
    def text(self) -> str:
        """What is typed, as text that can be encoded."""
        return self.editor.text.encode("utf-8", "replace").decode()

    def set_text(self, text: str) -> None:
        """Replace the prompt; undo brings the old one back."""
        editor = self.editor
        editor.replace(text, editor.document.start, editor.document.end)
        editor.move_cursor(editor.document.end)

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        """Pass the new text on."""
        event.stop()
        self.post_message(self.Typed(self.text))

    def focus_target(self) -> Widget:
        """The editor."""
        return self.editor
