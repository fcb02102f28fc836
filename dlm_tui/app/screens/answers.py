"""Every answer that was kept for the document: found by text, adapter and date."""

from __future__ import annotations

import asyncio
import calendar
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.suggester import SuggestFromList
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.document.comparison import top
from dlm_tui.moments import local_time
from dlm_tui.store import AnswersError, KeptAnswer, KeptAnswers, answer_time
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, literal, sanitize

_MOST = 200
_SHOWN = 2000  # characters of an answer that are laid out in the preview


class AnswersScreen(Dialog[KeptAnswer]):
    """Type to search; Enter brings the answer back whole, space lays it beside those on the pane, delete forgets it."""

    TITLE_TEXT = "Answers given before"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Bring back"),
        ("dialog.beside", "Beside"),
        ("dialog.delete", "Forget"),
        ("dialog.close", "Close"),
    )

    def __init__(self, archive: KeptAnswers, names: Sequence[str], marks: Mapping[str, Mark]) -> None:
        super().__init__()
        self._archive, self._names, self._marks = archive, names, marks
        self._found: list[KeptAnswer] = []
        self.on_beside: Callable[[KeptAnswer], object] = lambda answer: None

    def compose_body(self) -> ComposeResult:
        """What to look for, what was found, and the highlighted answer."""
        with Horizontal(id="answers-search"):
            yield Input(placeholder="text", id="answers-text")
            names = SuggestFromList(self._names, case_sensitive=False)
            yield Input(placeholder="adapter", suggester=names, id="answers-adapter")
            yield Input(placeholder="from 2026", id="answers-since")
            yield Input(placeholder="to", id="answers-until")
        yield PickList(id="answers-list", markup=False)
        yield LiteralStatic(classes="note", id="answers-note")
        yield LiteralStatic(id="answers-preview")

    def on_mount(self) -> None:
        """Everything, newest first."""
        super().on_mount()
        self._search()
        self.query_one("#answers-text", Input).focus()

    @on(Input.Changed)
    def _typed(self) -> None:
        self._search()

    @work(exclusive=True, group="answers-search")
    async def _search(self) -> None:
        """Look for what the fields say; a newer search drops this one."""
        try:
            adapter = self._adapter()
            since, until = (_moment(self._field(name), end=name == "until") for name in ("since", "until"))
        except ValueError as error:
            self._say(str(error), wrong=True)
            return
        text = self._field("text")
        try:
            found = await asyncio.to_thread(
                self._archive.search, text, adapter=adapter, since=since, until=until, limit=_MOST
            )
        except AnswersError as error:
            self._say(str(error), wrong=True)
            return
        self._show(found)

    @property
    def _asks(self) -> bool:
        """Whether only some answers are looked for."""
        return any(self._field(name) for name in ("text", "adapter", "since", "until"))

    def _field(self, name: str) -> str:
        return self.query_one(f"#answers-{name}", Input).value.strip()

    def _adapter(self) -> str | None:
        """The adapter that is meant: by its name, or by a beginning that only one has."""
        typed = self._field("adapter").lower()
        meant = [name for name in self._names if name == typed] or [
            name for name in self._names if name.startswith(typed)
        ]
        if typed and not meant:
            # of a document that no longer declares it there may be answers all the same
            return typed
        return meant[0] if typed and len(meant) == 1 else None

    def _show(self, found: list[KeptAnswer], at: int = 0) -> None:
        self._found = found
        listing = self.query_one("#answers-list", PickList)
        listing.set_options([Option(self._row(answer)) for answer in found])
        listing.highlighted = min(at, len(found) - 1) if found else None
        listing.display = bool(found)
        count = f"the newest {_MOST} of them" if len(found) == _MOST else str(len(found))
        nothing = (
            "No answer fits." if self._asks else "No answer is kept yet: the first is with the first prompt asked."
        )
        self._say(f"Found: {count}." if found else nothing)
        self._preview()

    def _say(self, text: str, *, wrong: bool = False) -> None:
        self.query_one("#answers-note", LiteralStatic).show(literal(text, "$error" if wrong else ""))

    def _row(self, answer: KeptAnswer) -> Content:
        strongest = top({name.partition("@")[0]: abs(value) for name, value in answer.mix.items() if value})
        mark = self._marks.get(strongest)
        moment = local_time(answer.at, "%m-%d %H:%M")
        return assemble(
            (f"{moment} ", "dim"),
            (f"{mark.glyph if mark else ' '} ", mark.color if mark else ""),
            (f"{sanitize(answer.view, one_line=True)[:12]:12s} ", "bold"),
            sanitize(answer.prompt, one_line=True)[:60],
            ("  \u2192 ", "dim"),
            sanitize(answer.text.strip(), one_line=True)[:160],
        )

    @on(OptionList.OptionHighlighted)
    def _preview(self) -> None:
        answer = self._highlighted
        preview = self.query_one("#answers-preview", LiteralStatic)
        if answer is None:
            preview.show("")
            return
        mix = (
            ", ".join(f"{name}{_version(answer, name)} {value:.2f}" for name, value in answer.mix.items() if value)
            or "the base alone"
        )
        sampled = f", temperature {answer.temperature:g}, top-p {answer.top_p:g}" if answer.temperature else ", greedy"
        preview.show(
            assemble(
                (f"{mix}{sampled}, seed {answer.seed}, {answer.base}\n", "dim"),
                sanitize(answer.text.strip()[:_SHOWN]),
            )
        )

    @property
    def _highlighted(self) -> KeptAnswer | None:
        index = self.query_one("#answers-list", PickList).highlighted
        return self._found[index] if index is not None and index < len(self._found) else None

    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    def _taken(self) -> None:
        self.action_accept()

    def on_key(self, event: object) -> None:
        """Arrows in the search fields move in the list."""
        key = getattr(event, "key", "")
        listing = self.query_one("#answers-list", PickList)
        if key in {"up", "down"} and isinstance(self.focused, Input):
            listing.action_cursor_up() if key == "up" else listing.action_cursor_down()

    def action_accept(self) -> None:
        """Bring the highlighted answer back whole."""
        self.dismiss(self._highlighted)

    def action_beside(self) -> None:
        """Lay the highlighted answer beside those on the pane; the dialog stays for more."""
        answer = self._highlighted
        if answer is not None:
            self.on_beside(answer)
            self._say(f"The answer of {sanitize(answer.view, one_line=True)} lies beside those on the pane.")

    def action_delete(self) -> None:
        """Forget the highlighted answer."""
        answer = self._highlighted
        if answer is not None:
            self._forget(answer)

    @work(group="answers-forget")
    async def _forget(self, answer: KeptAnswer) -> None:
        try:
            await asyncio.to_thread(self._archive.forget, [answer.answer_id])
        except AnswersError as error:
            self._say(str(error), wrong=True)
            return
        index = self.query_one("#answers-list", PickList).highlighted or 0
        self._show([other for other in self._found if other.answer_id != answer.answer_id], index)


def _version(answer: KeptAnswer, name: str) -> str:
    number = answer.version_of(name)
    return f"@{number}" if number is not None and "@" not in name else ""


def _after(begin: datetime, form: str) -> datetime:
    """The moment after a day, month or year. Raises OverflowError, ValueError behind the last."""
    if form == "%Y-%m-%d":
        return begin + timedelta(days=1)
    if form == "%Y-%m":
        return begin + timedelta(days=calendar.monthrange(begin.year, begin.month)[1])
    return begin.replace(year=begin.year + 1)


def _moment(text: str, *, end: bool) -> str | None:
    """The beginning of a local day, month or year as answers write times, or with `end` the moment after it.

    Raises ValueError with a sentence.
    """
    if not text:
        return None
    for form in ("%Y-%m-%d", "%Y-%m", "%Y"):
        try:
            begin = datetime.strptime(text, form)
        except ValueError:
            continue
        try:
            return answer_time((_after(begin, form) if end else begin).astimezone())
        except (OverflowError, ValueError, OSError):  # before the first year, behind the last, or beyond the system's
            break
    raise ValueError(f"{text!r} is no date such as 2026-11-30, 2026-11 or 2026.")
