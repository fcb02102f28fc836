"""An editor of foreign text."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import TextArea

from dlm_widgets.sanitize import sanitize


class LiteralTextArea(TextArea):
    """A text area that draws every character it holds as one visible character, whatever it is."""

    def get_line(self, line_index: int) -> Text:
        """The line as it is drawn: characters that would act or hide are shown as a dot, one for one."""
        line = super().get_line(line_index)
        text = line.plain
        if text.isprintable():
            return line
        shown = (char if char == "\t" else sanitize(char) for char in text)
        line.plain = "".join(char if len(char) == 1 else "\u00b7" for char in shown)
        return line
