"""Text that is shown as it is: a Static that never reads markup."""

from __future__ import annotations

from textual.content import Content
from textual.visual import VisualType
from textual.widgets import Static

from widgets.plain import literal


class Line(Static):
    """A Static whose strings are made safe and shown literally; unchanged content costs no refresh."""

    DEFAULT_CSS = "Line { height: auto; }"

    def __init__(self, content: str | Content = "", *, id: str | None = None, classes: str | None = None) -> None:
        self._shown = _as_content(content)
        super().__init__(self._shown, id=id, classes=classes)

    def show(self, content: str | Content) -> None:
        """Replace the text."""
        made = _as_content(content)
        if made.is_same(self._shown):
            return
        relayout = made.plain.count("\n") != self._shown.plain.count("\n") or len(made) != len(self._shown)
        self._shown = made
        super().update(made, layout=relayout)

    def update(self, content: VisualType = "", *, layout: bool = True) -> None:
        """As Static.update, with strings shown literally."""
        if isinstance(content, (str, Content)):
            self.show(content)
        else:
            super().update(content, layout=layout)

    @property
    def text(self) -> str:
        """What is shown, without style."""
        return self._shown.plain


def _as_content(content: str | Content) -> Content:
    return content if isinstance(content, Content) else literal(content)
