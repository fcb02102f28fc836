"""Which prompt is typed: a new one, one asked before, one of a saved set."""

from __future__ import annotations

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.gate_comparison import GateComparison
from dlm_tui.app.controllers.routing import Routing
from dlm_tui.app.controllers.set_running import SetRunning
from dlm_tui.app.controllers.surfaces import Pages, PromptSurface


class Prompts:
    """Puts a prompt into the editor; the one before it stays in the history."""

    def __init__(
        self,
        context: Context,
        routing: Routing,
        comparison: GateComparison,
        set_running: SetRunning,
        prompt: PromptSurface,
        pages: Pages,
    ) -> None:
        self._context, self._routing, self._comparison = context, routing, comparison
        self._set_running = set_running
        self._prompt, self._pages = prompt, pages

    def new(self) -> None:
        """Keep the prompt in the history and start a new one."""
        context, text = self._context, self._prompt.text
        if text.strip():
            context.state.remember(text, dict(self._routing.weights or {}), context.gate_run)
        self._use("")

    def open_history(self) -> None:
        """Search the prompts asked before."""
        from dlm_tui.app.screens.history import HistoryScreen

        context = self._context
        context.ui.open_dialog(HistoryScreen(context.state.history, context.names, context.marks), self._chosen)

    def open_sets(self) -> None:
        """Named sets of prompts."""
        from dlm_tui.app.screens.prompt_sets import PromptSetsScreen
        from dlm_tui.document.prompt_sets import PromptSets

        dialog = PromptSetsScreen(PromptSets(self._context.setup.path), self._prompt.text)
        dialog.on_used = self._comparison.open_set
        dialog.on_run = self._set_running.open
        self._context.ui.open_dialog(dialog, self._chosen)

    def _chosen(self, text: str | None) -> None:
        self._context.saver.soon()
        if text is not None:
            self._use(text)

    def _use(self, text: str) -> None:
        self._prompt.set_text(text)
        self._pages.go_to("prompt")
