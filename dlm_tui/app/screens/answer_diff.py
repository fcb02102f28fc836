"""Two answers compared by words, with the heat of either."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.moments import local_time
from dlm_tui.store import KeptAnswer
from dlm_widgets.answer_card import heat_style
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, sanitize
from dlm_widgets.word_diff import DiffPart, counts, word_diff

_MARKS = {"same": ("", ""), "gone": ("[-", "-]"), "added": ("{+", "+}")}
_STYLES = {"same": "", "gone": "strike $error", "added": "bold $success"}
_HEATS = ("none", "first", "second")
_HEAT_COLOR = "#8aa4c8"


class AnswerDiffScreen(Dialog[None]):
    """The highlighted answer is compared with the first one; space goes through the heat of either."""

    TITLE_TEXT = "Compare by words"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.mark", "Heat"), ("dialog.close", "Close"))

    def __init__(self, first: KeptAnswer, others: Sequence[KeptAnswer]) -> None:
        super().__init__()
        self._first, self._others = first, list(others)
        self._heat = 0
        self._parts: list[DiffPart] = []
        self._second: KeptAnswer | None = None

    def compose_body(self) -> ComposeResult:
        """What it is compared with, and the words."""
        yield LiteralStatic(assemble(("From ", "dim"), (_title(self._first), "bold"), ("  to", "dim")))
        yield PickList(*[Option(self._row(answer)) for answer in self._others], id="diff-list", markup=False)
        yield LiteralStatic(classes="note", id="diff-note")
        with VerticalScroll(id="diff-scroll"):
            yield LiteralStatic(id="diff-text")

    def on_mount(self) -> None:
        """Compare with the first of the others."""
        super().on_mount()
        listing = self.query_one("#diff-list", PickList)
        listing.highlighted = 0 if self._others else None
        listing.focus()

    def _row(self, answer: KeptAnswer) -> Content:
        return assemble((f"{_title(answer)}  ", "bold"), sanitize(answer.text.strip(), one_line=True)[:160])

    @on(OptionList.OptionHighlighted, "#diff-list")
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        self._compare(self._others[event.option_index])

    @work(exclusive=True, group="answer-diff")
    async def _compare(self, second: KeptAnswer) -> None:
        # words of long answers take a moment to compare
        self._parts = await asyncio.to_thread(word_diff, self._first.text, second.text)
        self._second = second
        self._show()

    def action_mark(self) -> None:
        """The heat of the first answer, of the second, of none."""
        self._heat = (self._heat + 1) % len(_HEATS)
        self._show()

    def _show(self) -> None:
        second = self._second
        if second is None:
            return
        found = counts(self._parts, self._first.text, second.text)
        note = f"Words: {found['same']} same, [-{found['gone']} gone-], {{+{found['added']} added+}}."
        heated = (None, self._first, second)[self._heat]
        if heated is not None:
            name = _HEATS[self._heat]
            measured = any(piece.heat is not None for piece in heated.pieces)
            note += f" Heat of the {name}." if measured else f" The heat of the {name} was not measured."
        self.query_one("#diff-note", LiteralStatic).show(note)
        self.query_one("#diff-text", LiteralStatic).show(
            assemble(*[piece for part in self._parts for piece in self._pieces(part, second)])
        )

    def _pieces(self, part: DiffPart, second: KeptAnswer) -> Iterator[tuple[str, str]]:
        """One part as styled text, in its marks; tinted where the heat of its answer is wanted."""
        open_mark, close_mark = _MARKS[part.kind]
        style = _STYLES[part.kind]
        text = (self._first if part.kind == "gone" else second).text[part.start : part.end]
        bare = text.rstrip()
        if open_mark:
            yield open_mark, style
        yield from self._tinted(part, bare, second, style)
        if close_mark:
            yield close_mark, style
        yield sanitize(text[len(bare) :]) or (" " if part.kind == "gone" else ""), ""

    def _tinted(self, part: DiffPart, text: str, second: KeptAnswer, style: str) -> Iterator[tuple[str, str]]:
        of_first, of_second = self._heat == 1 and part.kind != "added", self._heat == 2 and part.kind != "gone"
        if not (of_first or of_second):
            yield sanitize(text), style
            return
        answer = self._first if of_first else second
        at = part.old_start if of_first else part.start
        background = self.app.current_theme.background or "#14171c"
        for piece, heat in _heated(answer, at, at + len(text)):
            yield sanitize(piece), f"{style} {heat_style(heat or 0.0, _HEAT_COLOR, background)}".strip()


def _heated(answer: KeptAnswer, start: int, end: int) -> Iterator[tuple[str, float | None]]:
    """The text from `start` to `end` in the pieces that it came in, with their heat in nats."""
    at = 0
    for piece in answer.pieces:
        left, right = max(start, at), min(end, at + len(piece.text))
        if left < right:
            yield piece.text[left - at : right - at], piece.heat
        at += len(piece.text)


def _title(answer: KeptAnswer) -> str:
    moment = local_time(answer.at, "%m-%d %H:%M")
    seed = f" seed {answer.seed}" if answer.temperature else ""
    return f"{sanitize(answer.view, one_line=True)}{seed} {moment}"
