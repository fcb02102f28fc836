"""Labelling: a prompt becomes a section of the document for one adapter, and the gate is trained on it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

from dlm_tui.app.controllers.changes import Changes
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.drafts import Drafts, bytes_to_change
from dlm_tui.app.controllers.gate_comparison import GateComparison
from dlm_tui.app.controllers.routing import Routing
from dlm_tui.app.controllers.surfaces import AnswersSurface, Pages, PromptSurface
from dlm_tui.app.controllers.training import Training
from dlm_tui.app.screens.label import Label, LabelScreen
from dlm_tui.document.append import append_section
from dlm_tui.document.change_log import DocumentChange
from dlm_tui.document.probes import NO_GATE
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
        prompt: PromptSurface,
        answers: AnswersSurface,
        pages: Pages,
    ) -> None:
        self._context, self._changes, self._routing = context, changes, routing
        self._answers, self._pages = answers, pages
        self._comparison, self._training, self._prompt = comparison, training, prompt
        self._drafts: Drafts[Label] = Drafts(context)

    def open(self, answer: str = "") -> None:
        """Ask which adapter the prompt that is typed belongs to; `answer` is offered as the right one."""
        card = self._answers.current if self._pages.focused_pane == "answers" else None
        self.ask(self._prompt.text, answer, card.view if card is not None else None, self._routing.weights or {})

    def ask(self, prompt: str, answer: str, view: str | None, weights: Mapping[str, float]) -> None:
        """Ask which adapter a prompt belongs to. `answer` is offered as the right one, given under `view`; `weights`
        are those that the gate gave to the prompt."""
        context, prompt = self._context, prompt.strip()
        if not prompt:
            context.ui.say("There is no prompt to label yet.", warning=True)
            return
        if not context.document.adapter_names:
            context.ui.say(
                "This document declares no named adapters, so there is nothing to choose from.", warning=True
            )
            return
        data = bytes_to_change(context)
        if data is None:
            return
        guess, why = self._guess(view, weights)
        if (draft := self._drafts.take(prompt)) is not None:
            guess, why, answer = draft.adapter, "your choice", draft.answer
        dialog = LabelScreen(prompt, answer.strip(), context.names, context.marks, data, guess, why)
        context.ui.open_dialog(dialog, partial(self._chosen, prompt))

    def _guess(self, view: str | None, weights: Mapping[str, float]) -> tuple[str | None, str]:
        """The adapter of the answer; else the second strongest, as a label disagrees with the strongest; and why."""
        if view in self._context.names:
            return view, "it gave the answer"
        ranked = sorted(weights, key=lambda name: -weights[name])
        return (ranked[1], f"second to {ranked[0]} now") if len(ranked) > 1 else (None, "")

    def _chosen(self, prompt: str, label: Label | None) -> None:
        if label is not None:
            self._context.ui.run(partial(self.add, label, prompt), "label", "label")

    async def add(self, label: Label, prompt: str) -> None:
        """Append the section, if the document is still as it was shown, and train the gate; tells what moved for
        `prompt`."""
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
            self._drafts.keep(prompt, label, error)
            return
        await self._changes.note(DocumentChange.of_append(LABEL, result))
        lead = f"Added at line {result.line}."
        await self._retrain(prompt, f"Labelled as {label.adapter}", lead, self._changes.hint)

    def taken_back(self, change: DocumentChange) -> None:
        """A change is undone: after a label the gate is trained without it."""
        if change.kind == LABEL:
            title, lead = "Label taken back", f"The section at line {change.line} is gone."
            self._context.ui.run(partial(self._retrain, self._prompt.text, title, lead), "label", "undo label")

    def _missing_for_gate(self) -> str:
        """Why the gate cannot be trained now, in a sentence; empty where it can."""
        context = self._context
        if not context.document.gate_enabled:
            return NO_GATE
        if not context.store_is_gone and not context.link.ready:
            return (
                f"The gate was not retrained, as the engine is not ready; {context.key('train.gate')} trains it then."
            )
        return "" if context.trained_names and not context.store_is_gone else "There is no gate to retrain yet."

    async def _retrain(self, prompt: str, title: str, lead: str, trail: str = "") -> None:
        """The document changed by our hand: train the gate on it, then say in one toast what was done and moved."""
        context = self._context
        if missing := self._missing_for_gate():
            context.ui.say(f"{lead} {missing} {trail}".strip(), title=title)
            return
        record = await self._training.retrain_gate()
        self._training.say_gate(record, prompt, lead=lead, trail=trail, title=title)
        moved = self._comparison.moved
        if len(moved) > 1 and any(change.top_changed for change in moved):
            self._comparison.show()
