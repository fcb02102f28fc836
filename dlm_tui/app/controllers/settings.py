"""The configuration file: opened from the program, and in force as soon as it is saved."""

from __future__ import annotations

from dlm_tui.app import config as configuration
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.documents import Documents
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.app.screens.help import HelpScreen
from dlm_tui.errors import DlmTuiError


class Settings:
    """What a person configured, and the keys that follow from it."""

    def __init__(self, context: Context, documents: Documents) -> None:
        self._context, self._documents = context, documents
        self.changed: Signal[[]] = Signal()

    def edit(self) -> None:
        """Open the file in the editor and use what was saved."""
        try:
            path = configuration.ensure_config_file()
            self._documents.edit(path)
            config = configuration.load_config(path)
        except (DlmTuiError, OSError) as error:
            self._context.ui.say(str(error), error=True, title="The configuration is not used")
            return
        self._context.config = config
        self._context.ui.use_keys(config.keys)
        self.changed.emit()

    def show_keys(self) -> None:
        """All keys."""
        self._context.ui.open_dialog(HelpScreen(self._context.config.keys, str(configuration.config_path())))
