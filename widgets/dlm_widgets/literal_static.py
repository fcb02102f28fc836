"""Text that is shown as it is: a Static that never reads markup."""

from __future__ import annotations

from collections.abc import Callable

from textual.content import Content
from textual.visual import VisualType
from textual.widgets import Static

from dlm_widgets.sanitize import literal
from dlm_widgets.throttled import Throttled


class LiteralStatic(Static):
    """A Static whose strings are made safe and shown literally; unchanged content costs no refresh."""

    DEFAULT_CSS = "LiteralStatic { width: 1fr; height: auto; }"

    def __init__(self, content: str | Content = "", *, id: str | None = None, classes: str | None = None) -> None:
        self._shown = _as_content(content)
        super().__init__(self._shown, id=id, classes=classes)

    def show(self, content: str | Content) -> None:
        """Replace the text."""
        made = _as_content(content)
        if made.is_same(self._shown):
            return
        self._shown = made
        super().update(made, layout=self._needs_room(made))

    def _needs_room(self, made: Content) -> bool:
        """Whether the new text has another height: laying out the whole screen costs more than drawing a line."""
        height, width = self.styles.height, self.content_size.width
        if (
            height is not None
            and not height.is_auto
            and self.styles.width is not None
            and not self.styles.width.is_auto
        ):
            return False
        if not width or (self.styles.width is not None and self.styles.width.is_auto):
            return True
        return made.get_height(self.styles.get_rules(), width) != self.content_size.height

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


class ThrottledStatic(LiteralStatic, Throttled):
    """A line whose text is worked out when it is drawn: `ask` is all its owner does when something changed."""

    def __init__(
        self, words: Callable[[], str | Content], *, id: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(id=id, classes=classes)
        self._words = words

    def on_resize(self) -> None:
        """The words may follow the width."""
        self.ask()

    def draw(self) -> None:
        """Show the words as they are now."""
        self.show(self._words())


def _as_content(content: str | Content) -> Content:
    return content if isinstance(content, Content) else literal(content)
