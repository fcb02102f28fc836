"""The configuration file: opened from the program, and in force as soon as it is saved."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dlm_tui.app import config as configuration
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.documents import Documents
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.app.screens.help import HelpScreen
from dlm_tui.errors import DlmTuiError
from dlm_tui.system_errors import sentence_of


class Settings:
    """What a person configured, and the keys that follow from it."""

    def __init__(self, context: Context, documents: Documents) -> None:
        self._context, self._documents = context, documents
        self.changed: Signal[[]] = Signal()
        self._seen = _signature()

    def poll(self) -> None:
        """Use the file when it was changed by somebody else."""
        self._context.ui.run(self._look, "config", "configuration", exclusive=True)

    async def _look(self) -> None:
        seen = await asyncio.to_thread(_signature)
        if seen != self._seen:
            self._use(configuration.config_path())

    def edit(self) -> None:
        """Open the file in the editor and use what was saved."""
        try:
            path = configuration.ensure_config_file()
            self._documents.edit(path)
        except (DlmTuiError, OSError) as error:
            self._context.ui.say(sentence_of(error), error=True, title="The configuration is not used")
            return
        self._use(path)

    def _use(self, path: Path) -> None:
        """Read the file and put it in force; a theme it names anew replaces the one chosen in the program."""
        self._seen = _signature()
        context = self._context
        try:
            config = configuration.load_config(path)
        except DlmTuiError as error:
            context.ui.say(str(error), error=True, title="The configuration is not used")
            return
        before, context.config = context.config, config
        context.ui.use_keys(config.keys)
        if config.theme != before.theme:
            context.state.theme = None
            context.ui.use_theme(config.theme)
        self.changed.emit()

    def show_keys(self, pane: str | None) -> None:
        """All keys, those of the focused pane first."""
        path = str(configuration.config_path())
        self._context.ui.open_dialog(HelpScreen(self._context.config.keys, path, pane))


def _signature() -> tuple[int, int, int] | None:
    """What tells one state of the file from another, None while there is none."""
    try:
        info = configuration.config_path().stat()
    except OSError:
        return None
    return info.st_mtime_ns, info.st_size, info.st_ino
