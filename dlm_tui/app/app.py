"""The Textual app: themes, key map, command palette. Everything else lives on the workbench screen."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.app import App
from textual.binding import BindingType
from textual.screen import Screen

from dlm_tui.app.base import Setup
from dlm_tui.app.commands import WorkbenchCommands
from dlm_tui.app.keys import bindings_for
from dlm_tui.app.themes import DLM_DARK, DLM_LIGHT
from dlm_tui.app.workbench import Workbench


class WorkbenchApp(App[int], inherit_bindings=False):
    """Only wires."""

    TITLE = "dlm-tui"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"
    COMMANDS: ClassVar = {WorkbenchCommands}
    CSS_PATH: ClassVar = ["workbench.tcss", *sorted((Path(__file__).parent / "panes").glob("*.tcss"))]
    BINDINGS: ClassVar[list[BindingType]] = [binding for binding in bindings_for("app") if binding.id == "app.palette"]

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.setup = setup
        self.config = setup.config
        self.register_theme(DLM_DARK)
        self.register_theme(DLM_LIGHT)
        self.workbench = Workbench(setup)
        wanted = self.workbench.state.theme or setup.config.theme
        self.theme = wanted if wanted in self.available_themes else DLM_DARK.name
        self.set_keymap(setup.config.keys)

    def get_default_screen(self) -> Screen[None]:
        """The workbench."""
        return self.workbench

    def on_mount(self) -> None:
        """Colours that are not in the stylesheets follow the theme."""
        self.theme_changed_signal.subscribe(self, lambda _: self._theme_changed())

    def _theme_changed(self) -> None:
        if self.workbench.is_mounted:
            self.workbench.theme_changed()

    def choose_theme(self, name: str) -> None:
        """Use a theme and remember it."""
        self.theme = name
        self.workbench.state.theme = name
        self.workbench.save_soon()
