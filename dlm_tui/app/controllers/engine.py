"""The engine's life as a person sees it: ready, gone, failed; its log, and what it runs on."""

from __future__ import annotations

import asyncio

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.signal import Signal
from dlm_tui.app.engine_link import LinkState
from dlm_tui.engine.client import EngineGone
from dlm_tui.engine.protocol import Failed, GetStatus, Status
from dlm_tui.errors import DlmTuiError
from dlm_tui.model.document_base import base_of
from dlm_tui.model.registry import weight_files


class EngineLife:
    """Turns the link's states into signals and toasts."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._opened_once = False
        self._base_missing = False
        self.changed: Signal[[]] = Signal()
        """Any change, for what shows the state."""
        self.ready: Signal[[]] = Signal()
        """The document is open in the engine; also after every reload."""
        self.failed: Signal[[]] = Signal()
        """The engine cannot work until a person does something."""
        context.engine_changed.connect(self._take)

    def _take(self, state: LinkState) -> None:
        ui = self._context.ui
        if not ui.is_open:
            return
        self.changed.emit()
        if state.phase == "ready" and state.text:
            ui.say(state.text, warning=True, title="What was open stays in force")
        elif state.phase == "ready":
            self.ready.emit()
            ui.after_refresh(self._tell_once)
            if state.opened and state.opened.warning:
                ui.say(state.opened.warning, warning=True, title="Opened with a warning")
        elif state.phase == "restarting":
            ui.say(state.text, warning=True, title="The engine is gone; your prompt is kept")
        elif state.phase == "failed":
            self._context.ui.run(self._note_missing, "base", "look for the base", exclusive=True)
            self.failed.emit()
            ui.say(state.text, error=True, title="The engine cannot work")

    def _tell_once(self) -> None:
        if not self._opened_once:
            self._opened_once = True
            self._context.setup.when_ready()

    def poll(self) -> None:
        """Whether a base that was missing is there now: the engine then starts by itself."""
        if self._base_missing and self._context.link.state.phase == "failed":
            self._context.ui.run(self._look_for_base, "base", "look for the base", exclusive=True)

    async def _note_missing(self) -> None:
        self._base_missing = not await asyncio.to_thread(self._base_is_there)

    async def _look_for_base(self) -> None:
        if await asyncio.to_thread(self._base_is_there) and self._context.link.state.phase == "failed":
            self._base_missing = False
            self._context.ui.say(f"The base {self._context.document.base_model} is there now.")
            self._context.link.restart()

    def _base_is_there(self) -> bool:
        setup = self._context.setup
        try:
            source = base_of(self._context.document, setup.base)
            return source.path is not None and bool(weight_files(source.path))
        except (DlmTuiError, OSError):
            return False

    def restart(self) -> None:
        """Try again after a failure."""
        link = self._context.link
        if link.state.phase == "failed":
            link.restart()
        else:
            self._context.ui.say(f"The engine is {link.state.phase}.")

    def show_log(self) -> None:
        """The last lines the engine wrote."""
        from dlm_tui.app.screens.log import LogScreen

        link = self._context.link
        lines = list(link.engine.log) if link.engine is not None else []
        self._context.ui.open_dialog(LogScreen("Engine log", lines or list(link.state.log)))

    def show_facts(self) -> None:
        """What runs the model."""
        self._context.ui.run_to_dialog(self._show_facts, "facts", "about the engine", exclusive=True)

    async def _show_facts(self) -> None:
        from dlm_tui.app.engine_facts import engine_rows
        from dlm_tui.app.screens.engine import EngineScreen

        context, opened = self._context, self._context.opened
        try:
            async for event in context.link.stream(GetStatus()):
                if isinstance(event, Status) and opened is not None:
                    context.ui.open_dialog(EngineScreen(engine_rows(opened, event, context.names)))
                elif isinstance(event, Failed):
                    context.ui.say(event.text, error=True)
        except EngineGone as error:
            context.ui.say(f"There is nothing to tell: {error}.", warning=True)
