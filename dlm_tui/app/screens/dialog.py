"""What all dialogs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, TypeVar

from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button

from dlm_tui.app.hints import hint
from dlm_tui.app.keys import bindings_for
from dlm_tui.app.screens.closing import closed_once
from dlm_widgets.key_bar import KeyBar, KeyHint
from dlm_widgets.literal_static import LiteralStatic

Result = TypeVar("Result")
HELP: tuple[Binding, ...] = tuple(
    replace(binding, action="app.help") for binding in bindings_for("app") if binding.id == "app.help"
)
"""The keys of the help, for dialogs in which somebody begins."""


class Dialog(ModalScreen[Result]):
    """A box with a title, a body and the keys that work in it. Esc closes it with None."""

    TITLE_TEXT: ClassVar[str] = ""
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.close", "Close"),)
    SCROLLS: ClassVar[bool] = False
    BINDINGS: ClassVar[list[BindingType]] = list(bindings_for("dialog"))
    CSS_PATH = "dialog.tcss"

    def __init__(self) -> None:
        super().__init__()
        self.on_closed: Callable[[], object] | None = None

    def compose(self) -> ComposeResult:
        """Title, body, keys."""
        with Vertical(classes="box"):
            yield LiteralStatic(self.TITLE_TEXT, classes="title")
            with VerticalScroll(classes="body", can_focus=self.SCROLLS):
                yield from self.compose_body()
            yield KeyBar()

    def compose_body(self) -> ComposeResult:
        """The dialog's own widgets."""
        yield from ()

    def on_mount(self) -> None:
        """Show the keys."""
        self.show_keys()

    def keys_now(self) -> Sequence[tuple[str, str]]:
        """The keys that mean something now, with their words; the last one always has its place."""
        return self.HINTS

    def show_keys(self) -> None:
        """Show the keys that mean something now."""
        hints = [self.hint(key_id, label) for key_id, label in self.keys_now()]
        self.query_one(".box > KeyBar", KeyBar).show(hints[:-1], hints[-1:])

    def hint(self, key_id: str, label: str) -> KeyHint:
        """A key of the table as a button."""
        return hint(key_id, getattr(getattr(self.app, "config", None), "keys", {}), label)

    def on_resize(self) -> None:
        """The body takes what title and keys leave, and scrolls if that is not enough."""
        height = self.app.size.height
        self.set_class(height < 30, "-short")
        self.query_one(".body").styles.max_height = max(3, height - (5 if height < 30 else 8))

    async def on_key_bar_pressed(self, event: KeyBar.Pressed) -> None:
        """A click on a key."""
        event.stop()
        await self.run_action(event.action)

    def retitle(self, text: str) -> None:
        """Replace the title."""
        self.query_one(".title", LiteralStatic).show(text)

    def action_close(self) -> None:
        """Leave without a result."""
        self.dismiss(None)

    def press_focused(self) -> None:
        """Press the button that has the focus, where one has it."""
        if isinstance(self.focused, Button):
            self.focused.press()

    def action_accept(self) -> None:
        """Do what the dialog offers; dialogs that offer nothing close."""
        self.action_close()

    def action_delete(self) -> None:
        """Delete the marked entry, where there is one."""

    def action_back(self) -> None:
        """Go back, where there is something to go back to."""

    def action_mark(self) -> None:
        """Mark the highlighted entry, where that means something."""

    def action_run(self) -> None:
        """Run or write what is chosen, where that means something."""

    def action_sort(self) -> None:
        """Sort by the next column, where there are columns."""

    def action_expect(self) -> None:
        """Say what is expected of the highlighted entry, where that means something."""

    def action_file(self) -> None:
        """Read or write a file, where there is one to read or write."""

    def action_moved(self) -> None:
        """Show what moved between the highlighted entry and another, where that means something."""

    def action_pick(self, number: int) -> None:
        """Pick one of two, where there are two."""

    def action_keep(self) -> None:
        """Keep the highlighted entry, where that means something."""

    def action_compare(self) -> None:
        """Answer under the marked entries, where that means something."""

    def action_export(self) -> None:
        """Export the highlighted entry, where that means something."""

    def action_beside(self) -> None:
        """Lay the highlighted entry beside what is shown, where that means something."""

    def action_save(self) -> None:
        """Save the highlighted entry to a file, where that means something."""

    def action_copy_command(self) -> None:
        """Copy the shown command, where there is one."""

    def action_write_best(self) -> None:
        """Write the best settings, where some were tried."""

    def action_next_curve(self) -> None:
        """Show the next curve, where there are several."""

    def action_smooth(self) -> None:
        """Smooth curves, where there are some."""

    def action_logarithmic(self) -> None:
        """Draw logarithms, where there are curves."""

    def action_move_cursor(self, way: int) -> None:
        """Move the cursor of curves, where there are some."""

    def action_save_csv(self) -> None:
        """Save as a table, where there is one."""

    def action_save_svg(self) -> None:
        """Save as a picture, where there is one."""

    @property
    def is_open(self) -> bool:
        """Whether it can be drawn on by what was read meanwhile: it was not left, at most another stands before it."""
        return self.is_mounted and self in self.app.screen_stack

    def dismiss(self, result: Result | None = None) -> AwaitComplete:
        """Leave with a result, once; who works for this dialog is told while its widgets are still there."""
        return closed_once(self, lambda: self._leave(result))

    def _leave(self, result: Result | None) -> AwaitComplete:
        self._tell_closed()
        return super().dismiss(result)

    def on_unmount(self) -> None:
        """Tell it where the whole program is left."""
        self._tell_closed()

    def _tell_closed(self) -> None:
        on_closed, self.on_closed = self.on_closed, None
        if on_closed:
            on_closed()
