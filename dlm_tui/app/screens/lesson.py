"""An answer becomes a section: for which adapter, better than which other answer, and exactly what will be written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import OptionList, TextArea
from textual.widgets.option_list import Option

from dlm_tui.app.panes.prompt import PromptEditor
from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.document.lesson import Lesson, preview_lesson
from dlm_tui.errors import DlmTuiError
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, literal, sanitize

EVERY = "the document's adapter"


@dataclass(frozen=True)
class Accepted:
    """A lesson to append to the document whose bytes have this hash."""

    lesson: Lesson
    expected_sha256: str


@dataclass(frozen=True)
class Other:
    """An answer of the same prompt that another one may be better than."""

    view: str
    text: str


Compose = Callable[[str | None, str, Other | None], Lesson]
"""The lesson for an adapter, the answer as it stands, and the answer that is worse; raises DlmTuiError."""


class LessonScreen(Dialog[Accepted]):
    """The lines with + are what is appended, byte for byte."""

    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.accept", "Write it"), ("dialog.close", "Cancel"))

    def __init__(
        self,
        title: str,
        prompt: str,
        answer: str,
        compose: Compose,
        adapters: Sequence[str | None],
        marks: Mapping[str, Mark],
        document: bytes,
        guess: str | None,
        *,
        others: Sequence[Other] = (),
        editable: bool = False,
    ) -> None:
        super().__init__()
        self._title, self._prompt, self._answer, self._compose_lesson = title, prompt, answer, compose
        self._adapters, self._marks, self._document, self._guess = list(adapters), marks, document, guess
        self._others, self._editable = list(others), editable
        self._accepted: Accepted | None = None

    def compose_body(self) -> ComposeResult:
        """Adapter, the other answer or the answer's text, and the text that will be written."""
        yield LiteralStatic(assemble(("Prompt  ", "dim"), sanitize(self._prompt, one_line=True)[:160]))
        if self._editable:
            yield LiteralStatic("The answer as it should be", classes="field")
            yield PromptEditor(self._answer, tab_behavior="focus", id="lesson-answer", soft_wrap=True)
        if self._others:
            yield LiteralStatic("Better than", classes="field")
            rows = [_row(other.view, self._marks.get(other.view), other.text) for other in self._others]
            yield PickList(*rows, id="lesson-other", markup=False)
        yield LiteralStatic("Trains", classes="field")
        rows = [_row(name or EVERY, self._marks.get(name or "")) for name in self._adapters]
        yield PickList(*rows, id="lesson-adapter", markup=False)
        yield LiteralStatic("Will be added to the end of the document", classes="field")
        with VerticalScroll(id="lesson-diff-scroll"):
            yield LiteralStatic(id="lesson-diff")

    def on_mount(self) -> None:
        """Start where there is something to decide: in the text, at the other answers, else at the adapter."""
        super().on_mount()
        self.retitle(self._title)
        adapters = self.query_one("#lesson-adapter", PickList)
        adapters.highlighted = self._adapters.index(self._guess) if self._guess in self._adapters else 0
        first: PickList | PromptEditor = adapters
        if self._others:
            first = self.query_one("#lesson-other", PickList)
            first.highlighted = 0
        if self._editable:
            first = self.query_one(PromptEditor)
            first.move_cursor(first.document.end)
        first.focus()
        self._show_diff()

    @on(OptionList.OptionHighlighted)
    @on(TextArea.Changed)
    def _show_diff(self) -> None:
        diff = self.query_one("#lesson-diff", LiteralStatic)
        adapter = self._adapters[self.query_one("#lesson-adapter", PickList).highlighted or 0]
        other = self._others[self.query_one("#lesson-other", PickList).highlighted or 0] if self._others else None
        answer = self.query_one(PromptEditor).text if self._editable else self._answer
        try:
            lesson = self._compose_lesson(adapter, answer, other)
            added = preview_lesson(self._document, lesson)
        except DlmTuiError as error:
            self._accepted = None
            diff.show(literal(str(error), "bold $error"))
            return
        self._accepted = Accepted(lesson, hashlib.sha256(self._document).hexdigest())
        lines = [literal(f"+ {line}", "$success") for line in added.strip("\r\n").splitlines()]
        diff.show(Content("\n").join(lines))

    @on(OptionList.OptionSelected)
    def _chosen(self) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Write it, if it can be written; else what is wrong stays in view."""
        if self._accepted is not None:
            self.dismiss(self._accepted)


def _row(name: str, mark: Mark | None, text: str = "") -> Option:
    shown = f"{mark.glyph if mark else ' '} {sanitize(name, one_line=True)}"
    return Option(assemble((shown, mark.color if mark else ""), f"  {sanitize(text, one_line=True)[:120]}"))
