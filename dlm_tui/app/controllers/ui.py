"""What a controller may ask of the screen it works for. The running screen and the tests' stand-in both offer this."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from textual.screen import Screen
from textual.theme import Theme

Result = TypeVar("Result")


class Task(Protocol):
    """Work that runs beside the screen."""

    def cancel(self) -> object:
        """Stop it."""


class Ui(Protocol):
    """Toasts, dialogs, background work, clipboard and terminal."""

    @property
    def theme(self) -> Theme:
        """The colours in force."""

    def use_theme(self, name: str) -> None:
        """Use these colours, if there are any of that name."""

    @property
    def is_open(self) -> bool:
        """Whether the screen is up: widgets can be drawn on."""

    def say(
        self, text: str, *, error: bool = False, warning: bool = False, title: str = "", lasting: bool = False
    ) -> None:
        """A toast; foreign text in it is shown literally. A `lasting` one stays until a click on it or Esc."""

    def clear_lasting(self) -> None:
        """Take the lasting toasts away: they were read."""

    def run(
        self, work: Callable[[], Coroutine[Any, Any, object]], group: str, description: str, *, exclusive: bool = False
    ) -> Task:
        """Run work beside the screen; `exclusive` ends what runs in the group. What it raises is shown."""

    def run_to_dialog(
        self, work: Callable[[], Coroutine[Any, Any, object]], group: str, description: str, *, exclusive: bool = False
    ) -> Task:
        """`run` for work that opens a dialog when it has read what it needs: keys pressed meanwhile are for that."""

    def cancel(self, group: str) -> None:
        """Stop all work of a group."""

    def open_dialog(
        self, dialog: Screen[Result], then: Callable[[Result | None], None] | None = None
    ) -> Awaitable[object]:
        """Put a dialog on top, and call `then` with what was chosen; await it before its widgets are used."""

    def after_refresh(self, then: Callable[[], object]) -> None:
        """Call this once the screen has drawn what it was asked to draw before."""

    def copy(self, text: str) -> None:
        """Put text on the clipboard through the terminal (OSC 52)."""

    def suspended(self) -> AbstractContextManager[None]:
        """Give the terminal to another program meanwhile. Raises SuspendNotSupported."""

    def save_screenshot(self, folder: str) -> str:
        """Write the screen as SVG into a folder; the file's path. Raises OSError."""

    def use_keys(self, keys: dict[str, str]) -> None:
        """Bind these keys, by the ids of the key table, in place of the usual ones."""

    def exit(self) -> None:
        """Leave the program with success."""

    def leave_for(self, document: Path, *, new: bool) -> None:
        """Leave the program, which then opens another document; a new one is trained at once."""
