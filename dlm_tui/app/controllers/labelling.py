"""Labelling: a prompt becomes a section of the document for one adapter, and the gate is trained on it."""

from __future__ import annotations

import asyncio
from functools import partial

from dlm_tui.app.controllers.changes import Changes
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.gate_comparison import GateComparison
from dlm_tui.app.controllers.routing import Routing
from dlm_tui.app.controllers.training import Training
from dlm_tui.app.controllers.views import AnswersView, Pages, PromptView
from dlm_tui.app.screens.label import Label, LabelScreen
from dlm_tui.document.append import append_section
from dlm_tui.document.change_log import DocumentChange
from dlm_tui.errors import DlmTuiError

LABEL = "label"


class Labelling:
    """Adds labels, and tells how each is taken back."""

    def __init__(
        self,
        context: Context,
        changes: Changes,
        routing: Routing,
        comparison: GateComparison,
        training: Training,
        prompt: PromptView,
        answers: AnswersView,
        pages: Pages,
    ) -> None:
        self._context, self._changes, self._routing = context, changes, routing
        self._answers, self._pages = answers, pages
        self._comparison, self._training, self._prompt = comparison, training, prompt

    def open(self, answer: str = "") -> None:
        """Ask which adapter the prompt belongs to; `answer` is offered as the right one."""
        context, prompt = self._context, self._prompt.text.strip()
        if not prompt:
            context.ui.say("There is no prompt to label yet.", warning=True)
            return
        if not context.document.adapter_names:
            context.ui.say(
                "This document declares no named adapters, so there is nothing to choose from.", warning=True
            )
            return
        try:
            data = context.setup.path.read_bytes()
        except OSError as error:
            context.ui.say(f"The document cannot be read: {error}", error=True)
            return
        guess = self._guess()
        dialog = LabelScreen(prompt, answer.strip(), context.names, context.marks, data, guess)
        context.ui.open_dialog(dialog, self._chosen)

    def _guess(self) -> str | None:
        """The adapter of the focused answer; else the second strongest, as a label disagrees with the strongest."""
        card = self._answers.current if self._pages.focused_pane == "answers" else None
        if card is not None and card.view in self._context.names:
            return card.view
        weights = self._routing.weights or {}
        ranked = sorted(weights, key=lambda name: -weights[name])
        return ranked[1] if len(ranked) > 1 else None

    def _chosen(self, label: Label | None) -> None:
        if label is not None:
            self._context.ui.run(partial(self.add, label), "label", "label")

    async def add(self, label: Label) -> None:
        """Append the section, if the document is still as it was shown, and train the gate."""
        context = self._context
        try:
            result = await asyncio.to_thread(
                append_section,
                context.setup.path,
                label.expected_sha256,
                type=label.type,
                adapter=label.adapter,
                content=label.content,
            )
        except (DlmTuiError, OSError) as error:
            context.ui.say(str(error), error=True, title="Nothing was added")
            return
        await self._changes.note(DocumentChange.of_append(LABEL, result))
        await self._retrain(f"Labelled as {label.adapter}", f"Added at line {result.line}.", self._changes.hint)

    def taken_back(self, change: DocumentChange) -> None:
        """A change is undone: after a label the gate is trained without it."""
        if change.kind == LABEL:
            title, lead = "Label taken back", f"The section at line {change.line} is gone."
            self._context.ui.run(partial(self._retrain, title, lead), "label", "undo label")

    async def _retrain(self, title: str, lead: str, trail: str = "") -> None:
        """The document changed by our hand: train the gate on it, then say in one toast what was done and moved."""
        context, text = self._context, self._prompt.text
        if not context.link.ready or not context.trained_names:
            context.ui.say(f"{lead} There is no gate to retrain yet. {trail}".strip(), title=title)
            return
        record = await self._training.retrain_gate()
        self._training.say_gate(record, text, lead=lead, trail=trail, title=title)
        moved = self._comparison.moved
        if len(moved) > 1 and any(change.top_changed for change in moved):
            self._comparison.show()
