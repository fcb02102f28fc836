"""Preferences before they are written: for which adapter, and the exact text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.counting import counted
from dlm_tui.document.lesson import Lesson, preview_lesson
from dlm_tui.errors import DlmTuiError
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, literal

OWN = "the adapter whose answer it is"


@dataclass(frozen=True)
class Reviewed:
    """Lessons to append, to the document whose bytes have this hash."""

    lessons: list[Lesson]
    expected_sha256: str


class ReviewScreen(Dialog[Reviewed]):
    """The lines with + are what is appended. `compose` makes the lessons for one adapter, or each for its own."""

    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.accept", "Write them"), ("dialog.close", "Cancel"))

    def __init__(
        self,
        compose: Callable[[str | None], list[Lesson]],
        adapters: Sequence[str],
        marks: Mapping[str, Mark],
        document: bytes,
        counter: Callable[[list[Lesson]], str],
    ) -> None:
        super().__init__()
        self._compose_lessons, self._marks, self._document, self._counter = compose, marks, document, counter
        self._adapters: list[str | None] = [None, *adapters]
        self._reviewed: Reviewed | None = None

    def compose_body(self) -> ComposeResult:
        """Adapters, the counter, the text."""
        yield LiteralStatic("Trains", classes="field")
        rows = [Option(_row(name, self._marks.get(name or ""))) for name in self._adapters]
        yield PickList(*rows, id="review-adapter", markup=False)
        yield LiteralStatic(id="review-counter", classes="note")
        yield LiteralStatic("Will be added to the end of the document", classes="field")
        with VerticalScroll(id="review-diff-scroll"):
            yield LiteralStatic(id="review-diff")

    def on_mount(self) -> None:
        """Each answer for its own adapter."""
        super().on_mount()
        listing = self.query_one(PickList)
        listing.highlighted = 0
        listing.focus()
        self._show()

    @on(OptionList.OptionHighlighted)
    def _show(self) -> None:
        lessons = self._compose_lessons(self._adapters[self.query_one(PickList).highlighted or 0])
        self.retitle(f"{counted(len(lessons), 'preference')} to write")
        document, texts = self._document, list[str]()
        diff = self.query_one("#review-diff", LiteralStatic)
        kept: list[Lesson] = []
        problems: list[str] = []
        for lesson in lessons:
            try:
                added = preview_lesson(document, lesson)
            except DlmTuiError as error:
                problems.append(str(error))
                continue
            document += added.encode()
            texts.append(added)
            kept.append(lesson)
        self._reviewed = Reviewed(kept, hashlib.sha256(self._document).hexdigest()) if kept else None
        lines = [literal(f"left out: {problem}", "$error") for problem in problems]
        lines += [literal(f"+ {line}", "$success") for text in texts for line in text.strip("\r\n").splitlines()]
        diff.show(Content("\n").join(lines))
        self.query_one("#review-counter", LiteralStatic).show(literal(self._counter(kept)))

    @on(OptionList.OptionSelected)
    def _chosen(self) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Write them."""
        if self._reviewed is not None:
            self.dismiss(self._reviewed)


def _row(name: str | None, mark: Mark | None) -> Content:
    if name is None:
        return Content(f"  {OWN}")
    return assemble((f"{mark.glyph} {name}", mark.color)) if mark else Content(f"  {name}")
