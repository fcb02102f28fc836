"""The Textual app: themes, key map, command palette. Everything else lives on the workbench screen.

What is imported here is what the first frame needs; the document and the panes are read behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import Binding, BindingType
from textual.screen import Screen

from dlm_tui.app.config import Config
from dlm_tui.app.hints import hint
from dlm_tui.app.keys import bindings_for
from dlm_tui.app.screens.opening import OpeningScreen
from dlm_tui.app.terminal_app import TerminalApp
from dlm_tui.errors import DlmTuiError

if TYPE_CHECKING:
    from textual.command import Provider

    from dlm_tui.app.commands import Command
    from dlm_tui.app.setup import Setup
    from dlm_tui.app.workbench import Workbench


@dataclass
class Opening:
    """What is known before the document is read; `open` reads it, in a thread, and raises DlmTuiError if it cannot."""

    name: str
    config: Config
    theme: str
    open: Callable[[], Setup]


def _commands() -> type[Provider]:
    from dlm_tui.app.commands import WorkbenchCommands

    return WorkbenchCommands


class WorkbenchApp(TerminalApp[int], inherit_bindings=False):
    """Only wires. `workbench` exists once the document is open; `problem` says why it could not be opened.

    `next_document` is to be opened when this one is left, and trained if it was written just now.
    """

    TITLE = "dlm-tui"
    COMMAND_PALETTE_BINDING = "ctrl+p"
    COMMANDS: ClassVar[Any] = {_commands}
    CSS_PATH: ClassVar = ["workbench.tcss", *sorted((Path(__file__).parent / "panes").glob("*.tcss"))]
    BINDINGS: ClassVar[list[BindingType]] = [
        *(key for key in bindings_for("app") if key.id == "app.palette"),
        Binding("ctrl+c", "help_quit", show=False, system=True),
    ]

    workbench: Workbench

    def __init__(self, opening: Opening) -> None:
        super().__init__(opening.theme, opening.config.keys)
        self.opening = opening
        self.problem: DlmTuiError | None = None
        self.next_document: Path | None = None
        self.next_is_new = False

    @property
    def config(self) -> Config:
        """The settings in force."""
        return self.workbench.context.config if self.is_open else self.opening.config

    @property
    def is_open(self) -> bool:
        """Whether the document is open."""
        return hasattr(self, "workbench")

    def get_default_screen(self) -> Screen[None]:
        """The first frame."""
        return OpeningScreen(self.opening.name)

    def on_mount(self) -> None:
        """Colours that are not in the stylesheets follow the theme."""
        self.theme_changed_signal.subscribe(self, lambda _: self._theme_changed())

    def on_ready(self) -> None:
        """The first frame is out: now the rest."""
        self.call_after_refresh(self._start_opening)

    def _start_opening(self) -> None:
        self.run_worker(self._open(), description="open")

    async def _open(self) -> None:
        try:
            setup = await self._claimed(await asyncio.to_thread(self._read))
        except DlmTuiError as error:
            self.problem = error
            self.exit(error.exit_code)
            return
        if setup is None:
            self.exit(0)
            return
        from dlm_tui.app.workbench import Workbench

        self.workbench = Workbench(setup)
        if (theme := self.workbench.context.state.theme) in self.available_themes:
            self.theme = theme
        await self.push_screen(self.workbench)

    async def _claimed(self, setup: Setup) -> Setup | None:
        """The setup to open; where the store is another document's, what a person says. None to leave."""
        from dlm_tui.app.claiming import settled, stranger

        owner = await asyncio.to_thread(stranger, setup)
        if owner is None:
            return setup
        from dlm_tui.app.screens.claim import ClaimScreen

        dialog = ClaimScreen(owner.sentence(setup.document), "new id" if owner.there else "moved")
        claim = await self.push_screen_wait(dialog)
        return None if claim is None else await asyncio.to_thread(settled, setup, claim)

    def _read(self) -> Setup:
        """In a thread: reading the document, and bringing the panes in."""
        setup = self.opening.open()
        import dlm_tui.app.workbench  # noqa: F401

        return setup

    def action_command_palette(self) -> None:
        """All commands, once there is a workbench for them: nothing may be in front when that one comes."""
        from dlm_tui.app.command_palette import Palette

        if self.is_open and not any(isinstance(screen, Palette) for screen in self.screen_stack):
            self.push_screen(Palette())

    def action_help(self) -> None:
        """All keys, those of dialogs first: for dialogs, as the workbench has its own."""
        self.workbench.controllers.settings.show_keys("dialog")

    def action_help_quit(self) -> None:
        """Ctrl+C where nothing is selected to be copied: whoever presses it wants to leave."""
        self.notify(f"{hint('app.quit', self.config.keys).key} leaves the program.", markup=False)

    def _theme_changed(self) -> None:
        if self.is_open and self.workbench.is_mounted:
            self.workbench.controllers.theme_changed()

    def palette_commands(self) -> Iterator[Command]:
        """What the command palette offers once the document is open."""
        from dlm_tui.app.commands import Command

        yield from self.workbench.commands()
        for theme in sorted(self.available_themes):
            yield Command(f"theme: {theme}", "Use these colours", partial(self.choose_theme, theme))

    def action_leave(self) -> None:
        """From a dialog: close what lies on the workbench, then leave as from there."""
        if self.is_open:
            while len(self.screen_stack) > 1 and self.screen is not self.workbench:
                self.screen.dismiss(None)  # as Esc does it: who works for the dialog is told
            self.workbench.action_quit()
        else:
            self.exit(0)

    def choose_theme(self, name: str) -> None:
        """Use a theme and remember it."""
        self.theme = name
        self.workbench.context.state.theme = name
        self.workbench.context.saver.soon()
