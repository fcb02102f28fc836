"""Answers that teach: one is kept, mended, or called better than another, and becomes a section of the document."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from dlm_tui.app.controllers.changes import Changes
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.drafts import Drafts, bytes_to_change
from dlm_tui.app.controllers.shown_answers import ShownAnswers
from dlm_tui.app.controllers.surfaces import AnswersSurface
from dlm_tui.document.append import append_section
from dlm_tui.document.change_log import DocumentChange
from dlm_tui.document.lesson import Lesson, better_answer, kept_answer
from dlm_tui.document.names import split_version
from dlm_tui.errors import DlmTuiError
from dlm_tui.model.views import adapter_of
from dlm_tui.store import MetricsReader

if TYPE_CHECKING:
    from dlm_tui.app.screens.lesson import Accepted

LESSON = "lesson"
How = Literal["keep", "better", "edit"]
_TITLES: dict[How, str] = {
    "keep": "Keep this answer",
    "better": "This answer is better than another",
    "edit": "Edit this answer and keep it",
}


class Taught(Protocol):
    """An answer that teaches: a kept one, or one of the pane."""

    @property
    def prompt(self) -> str:
        """What it answers."""

    @property
    def view(self) -> str:
        """The name of the view that answered."""

    @property
    def text(self) -> str:
        """What was answered."""

    @property
    def mix(self) -> Mapping[str, float]:
        """What it was answered under: weights by adapter."""


@dataclass(frozen=True)
class _OfPane:
    """An answer of the answers pane."""

    prompt: str
    view: str
    text: str
    mix: Mapping[str, float] = field(default_factory=dict)


class Teaching:
    """Shows what an answer would add to the document, and adds it."""

    def __init__(self, context: Context, changes: Changes, shown: ShownAnswers, answers: AnswersSurface) -> None:
        self._context, self._changes = context, changes
        self._shown, self._answers = shown, answers
        self._drafts: Drafts[Lesson] = Drafts(context)

    def open(self, how: How) -> None:
        """Ask what to write of the answer that a person looks at."""
        context, card = self._context, self._answers.current
        prompts = self._shown.prompts
        index = self._answers.current_index
        prompt = prompts[index] if index is not None and index < len(prompts) else None
        if card is None or not card.text.strip() or prompt is None:
            context.ui.say("There is no answer to learn from yet.", warning=True)
            return
        others = [
            _OfPane(prompt, other.view, other.text)
            for other, asked in zip(self._answers.answers, prompts, strict=False)
            if other is not card and other.text.strip() and asked == prompt
        ]
        if how == "better" and not others:
            text = f"There is only one answer; {context.key('prompt.compare')} writes others to compare it with."
            context.ui.say(text, warning=True)
            return
        self.ask(how, _OfPane(prompt, card.view, card.text, self._shown.mix_of(card.view)), others)

    def ask(self, how: How, answer: Taught, others: Sequence[Taught]) -> None:
        """Ask what to write of an answer; `others`, to the same prompt, are those that it may be better than."""
        if (data := bytes_to_change(self._context)) is not None:
            self._context.ui.run_to_dialog(partial(self._ask, how, answer, others, data), "teach", "keep an answer")

    async def _ask(self, how: How, answer: Taught, others: Sequence[Taught], data: bytes) -> None:
        from dlm_tui.app.screens.lesson import LessonScreen, Other

        context, prompt, view = self._context, answer.prompt, answer.view
        run_id = await self.newest_run() if how == "better" else None
        at = datetime.now(UTC)

        def compose(adapter: str | None, text: str, other: Other | None) -> Lesson:
            if other is not None:
                return better_answer(prompt, text, other.text, adapter, f"better/{view}", at, run_id)
            return kept_answer(prompt, text, adapter, f"{how}/{view}")

        what = f"{how}\0{prompt}\0{answer.text}"
        draft = self._drafts.take(what)
        dialog = LessonScreen(
            _TITLES[how],
            prompt,
            answer.text if draft is None else draft.texts[1],
            compose,
            self.adapters,
            context.marks,
            data,
            self.adapter_of(view, answer.mix) if draft is None else draft.adapter,
            others=[Other(other.view, other.text) for other in others] if how == "better" else [],
            editable=how == "edit",
        )

        def accept(accepted: Accepted | None) -> None:
            if accepted is not None:
                work = partial(self._write, accepted, what)
                context.ui.run(work, "teach", "add a section")

        context.ui.open_dialog(dialog, accept)

    @property
    def adapters(self) -> tuple[str | None, ...]:
        """What a lesson can train: the named adapters, or the one that has no name."""
        return self._context.document.adapter_names or (None,)

    def adapter_of(self, view: str, mix: Mapping[str, float]) -> str | None:
        """The adapter that an answer belongs to: the one of its view, else the strongest of its mix."""
        names = self._context.document.adapter_names
        solo = adapter_of(view)
        if solo is not None and split_version(solo)[0] in names:
            return split_version(solo)[0]
        strength = {name: sum(mix[key] for key in mix if split_version(key)[0] == name) for name in names}
        strongest = max(names, key=lambda name: strength[name], default=None)
        return strongest if strongest is not None and strength[strongest] > 0 else None

    async def newest_run(self) -> int | None:
        """The id of the newest training run, None before the first."""
        reader = MetricsReader(self._context.store)
        try:
            return await asyncio.to_thread(reader.highest_run_id) or None
        except (DlmTuiError, OSError):
            return None

    async def _write(self, accepted: Accepted, what: str) -> None:
        context, lesson = self._context, accepted.lesson
        try:
            line = await self.append(lesson, accepted.expected_sha256)
        except (DlmTuiError, OSError) as error:
            self._drafts.keep(what, lesson, error)
            return
        name = lesson.adapter or "the document"
        what = "A preference" if lesson.type == "preference" else "An answer"
        train = context.key("train.all")
        context.ui.say(f"{what} for {name}, at line {line}. {train} trains on it. {self._changes.hint}")

    async def append(self, lesson: Lesson, expected_sha256: str) -> int:
        """Add the section; its line. Raises DlmTuiError, OSError."""
        result = await asyncio.to_thread(
            append_section,
            self._context.setup.path,
            expected_sha256,
            type=lesson.type,
            adapter=lesson.adapter,
            content=lesson.content,
            marker=lesson.marker,
        )
        await self._changes.note(DocumentChange.of_append(LESSON, result))
        return result.line

    def taken_back(self, change: DocumentChange) -> None:
        """A change is undone."""
        if change.kind == LESSON:
            self._context.ui.say("The answer is taken out of the document again.")
