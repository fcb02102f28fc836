"""The conversations of earlier: listed, brought to the screen, forgotten, saved for other programs."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.conversing import Conversing
from dlm_tui.app.screens.confirm import replacing
from dlm_tui.conversation import save_conversation
from dlm_tui.errors import DlmTuiError
from dlm_tui.given_files import NameTaken
from dlm_tui.store import AnswersError, ConversationSummary

if TYPE_CHECKING:
    from dlm_tui.app.screens.conversations import ConversationsScreen


class Conversations:
    """Does what the list of conversations is asked for; the one on the screen is that of `conversing`."""

    def __init__(self, context: Context, conversing: Conversing) -> None:
        self._context, self._conversing = context, conversing

    def open(self) -> None:
        """The conversations that are kept."""
        self._context.ui.run_to_dialog(self._open, "talk-list", "conversations")

    async def _open(self) -> None:
        from dlm_tui.app.screens.conversations import ConversationsScreen

        try:
            found = await asyncio.to_thread(self._context.archive.conversations)
        except AnswersError as error:
            self._context.ui.say(str(error), error=True, title="No conversations")
            return
        path = self._context.setup.path
        dialog = ConversationsScreen(found, path.with_name(f"{path.stem}.conversation.json"))
        dialog.on_forgotten = self._forget
        dialog.on_saved = lambda summary, name: self._save(dialog, summary, name)
        self._context.ui.open_dialog(dialog, self._chosen)

    def _chosen(self, summary: ConversationSummary | None) -> None:
        if summary is not None and not self._conversing.running:
            self._context.ui.run(partial(self._conversing.go_on_with, summary.name), "talk", "conversation")

    def _forget(self, summary: ConversationSummary) -> None:
        self._context.ui.run(partial(self._forget_named, summary.name), "talk-forget", "conversation")

    async def _forget_named(self, name: str) -> None:
        try:
            await self._conversing.forget(name)
        except AnswersError as error:
            self._context.ui.say(str(error), error=True, title="Not forgotten")

    def _save(self, dialog: ConversationsScreen, summary: ConversationSummary, name: str) -> None:
        self._context.ui.run(partial(self._save_named, dialog, summary.name, name), "talk-save", "conversation")

    async def _save_named(self, dialog: ConversationsScreen, name: str, path: str, *, replace: bool = False) -> None:
        found = await self._conversing.named(name)
        if found is None:
            return
        try:
            turns = found.path(found.here)
            saved = await asyncio.to_thread(save_conversation, self._beside(path), turns, replace=replace)
            dialog.note(f"Saved in {saved}.")
        except NameTaken as taken:
            self._context.ui.open_dialog(replacing(taken), partial(self._may_replace, dialog, name, path, taken))
        except DlmTuiError as error:
            dialog.note(str(error))

    def _may_replace(
        self, dialog: ConversationsScreen, name: str, path: str, taken: NameTaken, answer: bool | None
    ) -> None:
        if answer:
            self._context.ui.run(
                partial(self._save_named, dialog, name, path, replace=True), "talk-save", "conversation"
            )
        else:
            dialog.offer(str(Path(path).with_name(taken.free.name)))

    def _beside(self, name: str) -> str:
        """A bare name stands beside the document."""
        path = Path(name)
        return str(self._context.setup.path.with_name(name)) if len(path.parts) == 1 else name
