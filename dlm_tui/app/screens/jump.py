"""Jump mode: a letter on every pane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import BindingType
from textual.containers import Horizontal
from textual.screen import ModalScreen

from dlm_tui.app.keys import bindings_for
from dlm_tui.app.screens.closing import closed_once
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble

Target = tuple[str, str, str, tuple[int, int] | None]


class JumpScreen(ModalScreen[str]):
    """Press a letter; panes that are not shown are listed at the bottom. Anything else leaves."""

    BINDINGS: ClassVar[list[BindingType]] = [
        binding for binding in bindings_for("dialog") if binding.id == "dialog.close"
    ]
    CSS_PATH = "jump.tcss"

    def __init__(self, targets: Sequence[Target]) -> None:
        super().__init__()
        self._targets = targets

    def compose(self) -> ComposeResult:
        """Labels where the panes are."""
        hidden = []
        for letter, title, pane_id, place in self._targets:
            style = "bold reverse" if place is None else "bold reverse $warning"
            text = assemble((f" {letter} ", style), f" {title}   " if place is None else f" {title} ")
            label = LiteralStatic(text, classes="jump-label", id=f"jump-{pane_id}")
            if place is None:
                hidden.append(label)
            else:
                label.styles.offset = place
                yield label
        if hidden:
            with Horizontal(classes="jump-hidden"):
                yield from hidden

    def dismiss(self, result: str | None = None) -> AwaitComplete:
        """Leave, once."""
        return closed_once(self, lambda: super(JumpScreen, self).dismiss(result))

    def on_key(self, event: events.Key) -> None:
        """A letter goes there."""
        event.stop()
        for letter, _, pane_id, _ in self._targets:
            if event.key == letter:
                self.dismiss(pane_id)
                return
        self.dismiss(None)

    def on_click(self, event: events.Click) -> None:
        """A click on a label does the same."""
        name = self.get_widget_at(event.screen_x, event.screen_y)[0].id or ""
        self.dismiss(name.removeprefix("jump-") if name.startswith("jump-") else None)

    def action_close(self) -> None:
        """Leave."""
        self.dismiss(None)
