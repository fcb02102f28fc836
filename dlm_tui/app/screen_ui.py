"""The running screen, as controllers see it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from textual.screen import Screen
from textual.theme import Theme
from textual.worker import Worker

from dlm_tui.app.key_order import KeyOrder
from dlm_widgets.sanitize import sanitize

Result = TypeVar("Result")
_LASTING_SECONDS = 7 * 24 * 3600.0


class _Workbench(Protocol):
    """The app, which knows what to open when it is left."""

    next_document: Path | None
    next_is_new: bool
    key_order: KeyOrder

    def exit(self, result: int) -> None:
        """Leave."""


class ScreenUi:
    """`controllers.ui.Ui` over a Textual screen and its app."""

    def __init__(self, screen: Screen[None]) -> None:
        self._screen = screen
        self._lasting = False
        self._until_dialog: list[Callable[[], None]] = []

    @property
    def _app(self) -> _Workbench:
        return cast("_Workbench", self._screen.app)

    @property
    def theme(self) -> Theme:
        """The colours in force."""
        return self._screen.app.current_theme

    def use_theme(self, name: str) -> None:
        """Use these colours, one of `THEME_NAMES`."""
        self._screen.app.theme = name

    @property
    def is_open(self) -> bool:
        """Whether the screen is up: widgets can be drawn on."""
        return self._screen.is_attached

    def say(
        self, text: str, *, error: bool = False, warning: bool = False, title: str = "", lasting: bool = False
    ) -> None:
        """A toast; foreign text in it is shown literally. A `lasting` one stays until a click on it or Esc."""
        self._lasting |= lasting
        self._screen.notify(
            sanitize(text),
            title=sanitize(title),
            severity="error" if error else "warning" if warning else "information",
            timeout=_LASTING_SECONDS if lasting else None,
            markup=False,
        )

    def clear_lasting(self) -> None:
        """Take the lasting toasts away, and with them the others: they were read."""
        if self._lasting:
            self._lasting = False
            self._screen.app.clear_notifications()

    def run(
        self, work: Callable[[], Coroutine[Any, Any, object]], group: str, description: str, *, exclusive: bool = False
    ) -> Worker[object]:
        """Run work beside the screen; `exclusive` ends what runs in the group. Failures are shown by the workbench."""
        return self._screen.run_worker(
            cast("Any", work), group=group, description=description, exclusive=exclusive, exit_on_error=False
        )

    def run_to_dialog(
        self, work: Callable[[], Coroutine[Any, Any, object]], group: str, description: str, *, exclusive: bool = False
    ) -> Worker[object]:
        """`run` for work that opens a dialog when it has read what it needs: keys pressed meanwhile are for that."""
        release = self._app.key_order.hold()
        self._until_dialog.append(release)

        async def held() -> object:
            try:
                return await work()
            finally:
                release()

        return self.run(held, group, description, exclusive=exclusive)

    def cancel(self, group: str) -> None:
        """Stop all work of a group."""
        self._screen.workers.cancel_group(self._screen, group)

    def open_dialog(
        self, dialog: Screen[Result], then: Callable[[Result | None], None] | None = None
    ) -> Awaitable[object]:
        """Put a dialog on top, and call `then` with what was chosen; await it before its widgets are used."""
        releases, self._until_dialog = [self._app.key_order.hold(), *self._until_dialog], []
        opened = self._screen.app.push_screen(dialog, then)
        for release in releases:
            dialog.call_later(release)  # behind what gives the focus to one of its widgets
        return opened

    def after_refresh(self, then: Callable[[], object]) -> None:
        """Call this once the screen has drawn what it was asked to draw before."""
        self._screen.call_after_refresh(then)

    def copy(self, text: str) -> None:
        """Put text on the clipboard through the terminal (OSC 52)."""
        self._screen.app.copy_to_clipboard(text)

    def suspended(self) -> AbstractContextManager[None]:
        """Give the terminal to another program meanwhile. Raises SuspendNotSupported."""
        return self._screen.app.suspend()

    def save_screenshot(self, folder: str) -> str:
        """Write the screen as SVG into a folder; the file's path. Raises OSError."""
        return self._screen.app.save_screenshot(path=folder)

    def use_keys(self, keys: dict[str, str]) -> None:
        """Bind these keys, by the ids of the key table, in place of the usual ones."""
        self._screen.app.set_keymap(keys)

    def exit(self) -> None:
        """Leave the program with success."""
        self._screen.app.exit(0)

    def leave_for(self, document: Path, *, new: bool) -> None:
        """Leave the program, which then opens another document; a new one is trained at once."""
        self._app.next_document, self._app.next_is_new = document, new
        self._app.exit(0)
