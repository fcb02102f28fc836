"""What a person without a document is offered: one of their own, or the demo."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from textual.binding import BindingType

from dlm_tui.app.config import Config, config_path, load_config
from dlm_tui.app.screens.new_document import NewDocumentScreen
from dlm_tui.app.screens.welcome import WelcomeScreen
from dlm_tui.app.terminal_app import TerminalApp

Start = Path | Literal["demo"]


class WelcomeApp(TerminalApp[Start], inherit_bindings=False):
    """Returns the path of the document that was written, "demo", or None when it is left."""

    BINDINGS: ClassVar[list[BindingType]] = []
    ENABLE_COMMAND_PALETTE = False

    def __init__(self, config: Config, folder: Path) -> None:
        super().__init__(config.theme, config.keys)
        self.config, self._folder = config, folder

    def on_mount(self) -> None:
        """Ask."""
        self._ask()

    def action_help(self) -> None:
        """All keys, those of dialogs first."""
        from dlm_tui.app.screens.help import HelpScreen

        self.push_screen(HelpScreen(self.config.keys, str(config_path()), "dialog"))

    def _ask(self) -> None:
        self.push_screen(WelcomeScreen(), self._chosen)

    def _chosen(self, offer: str | None) -> None:
        if offer == "new":
            self.push_screen(NewDocumentScreen(self._folder), self._written)
        else:
            self.exit("demo" if offer == "demo" else None)

    def _written(self, path: Path | None) -> None:
        if path is None:
            self._ask()
        else:
            self.exit(path)


def ask_for_start() -> Start | int:
    """Ask what to begin with, in the current folder; the exit status where it was left. Raises ConfigError."""
    app = WelcomeApp(load_config(), Path.cwd())
    chosen = app.run()
    return chosen if chosen is not None else app.return_code or 0
