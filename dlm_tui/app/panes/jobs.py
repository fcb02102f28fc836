"""Background jobs: what runs, what waits, what is over; the log of the marked one; order and cancel."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.jobs import JobRecord
from dlm_tui.app.keys import bindings_for
from dlm_tui.app.panes.pane import Pane
from dlm_tui.app.progress import progress_line
from dlm_tui.progress_words import NO_ANSWER, look_words
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble, literal
from dlm_widgets.throttled import Throttled

_GLYPHS = {"waiting": "\u00b7", "running": "\u25b8", "done": "\u2713", "failed": "\u2717", "cancelled": "\u2013"}
_STYLES = {
    "waiting": "$foreground 80%",
    "running": "bold $primary",
    "done": "$success",
    "failed": "bold $error",
    "cancelled": "$warning",
}


class JobLog(VerticalScroll):
    """The scrolling part."""


class JobList(OptionList):
    """The line."""


class JobsPane(Pane, Throttled):
    """What runs on top, then the line, then what is over; the log of the marked job below."""

    TITLE = "Jobs"
    JUMP = "j"
    BINDINGS: ClassVar[list[BindingType]] = list(bindings_for("jobs"))

    @dataclass
    class CancelPressed(Message):
        """Stop the marked job, or the running one."""

        record: JobRecord | None

    @dataclass
    class MovePressed(Message):
        """Let the marked job wait for one less, or one more."""

        record: JobRecord | None
        by: int

    class PausePressed(Message):
        """Hold the line, or go on."""

    @dataclass
    class ResultPressed(Message):
        """What came of the marked job."""

        record: JobRecord | None

    def __init__(
        self,
        records: Callable[[], Sequence[JobRecord]],
        note: Callable[[], str],
        labels: Callable[[], Mapping[str, str]],
    ) -> None:
        """`note` says how the line stands, empty where it goes its way; `labels` what bindings do now."""
        super().__init__(id="jobs")
        self._listed, self._note, self._labels = records, note, labels
        self._records: list[JobRecord] = []
        self._marked: JobRecord | None = None

    def compose(self) -> ComposeResult:
        """Jobs, then the log."""
        yield LiteralStatic(id="job-note")
        yield JobList(id="job-list", markup=False)
        with JobLog(id="job-scroll"):
            yield LiteralStatic(id="job-log")

    def on_mount(self) -> None:
        """Nothing has run."""
        super().on_mount()
        self.ask()

    def on_resize(self) -> None:
        """The bar follows the width."""
        self.ask()

    def draw(self) -> None:
        """The rows, with the same job marked as before; until one is marked by hand it is the first."""
        records = list(self._listed())
        note, listing, log = self._note(), self.query_one(JobList), self.query_one("#job-log", LiteralStatic)
        listing.display = bool(records)
        self._hold_focus(listing)
        line = self.query_one("#job-note", LiteralStatic)
        line.display = bool(note) or not records
        empty = Content.styled("Nothing is running. Training and exports appear here with their log.", "dim")
        line.show(literal(note, "bold $warning") if note else empty)
        waiting = sum(record.state == "waiting" for record in records)
        self.retitle(f"{waiting} waiting" if waiting else "")
        self.labels = self._labels()
        self.refresh()  # the edge, too
        if not records:
            log.show("")
            return
        rows = [job_line(record, self._text_width) for record in records]
        self._keep_mark()  # a key may have moved it since, and its message not be here yet
        self._records = []  # what is highlighted while the rows change was not chosen by anybody
        listing.set_options([Option(row) for row in rows])
        marked = self._marked if self._marked in records else None
        listing.highlighted = records.index(marked) if marked is not None else 0
        self._records = records
        self._show_log()

    @property
    def _text_width(self) -> int:
        """Cells of a line beside the scrollbar."""
        return max(20, self.content_size.width - 1)

    def _hold_focus(self, listing: JobList) -> None:
        """The list takes the focus; while there is none the log does, so that one can come here at all."""
        log = self.query_one(JobLog)
        log.can_focus = not listing.display
        if listing.display and log.has_focus:
            listing.focus()

    def _show_log(self) -> None:
        record, scroll = self.marked, self.query_one(JobLog)
        at_end = scroll.scroll_offset.y >= scroll.max_scroll_y - 1
        log = literal("\n".join(record.log) if record else "", "dim")
        if record is not None and record.looks:
            log += Content("\n") + looks_text(record, self._text_width)
        self.query_one("#job-log", LiteralStatic).show(log)
        if at_end:
            scroll.scroll_end(animate=False)

    @property
    def marked(self) -> JobRecord | None:
        """The highlighted job."""
        at = self.query_one(JobList).highlighted
        return self._records[at] if at is not None and at < len(self._records) else None

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """Another row: its log."""
        event.stop()
        self._keep_mark()
        self._show_log()

    def _keep_mark(self) -> None:
        record = self.marked
        if record is not None and record is not self._records[0]:
            self._marked = record
        elif record is not None:
            self._marked = None if self._marked is None or not self.has_focus_within else record

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter, or the second click on a row."""
        event.stop()
        self.action_show_result()

    def focus_target(self) -> Widget | None:
        """The list; without jobs there is nothing to focus but the pane's scrolling part."""
        return self.query_one(JobList)

    def action_cancel_job(self) -> None:
        """Ask for the marked job to be stopped."""
        self.post_message(self.CancelPressed(self.marked))

    def action_pause_line(self) -> None:
        """Ask for the line to be held, or to go on."""
        self.post_message(self.PausePressed())

    def action_move_job(self, by: int) -> None:
        """Ask for another place in line."""
        self.post_message(self.MovePressed(self.marked, by))

    def action_show_result(self) -> None:
        """Ask what came of it."""
        self.post_message(self.ResultPressed(self.marked))


def looks_text(record: JobRecord, width: int) -> Content:
    """The answers of the last look, before and now; of a job that is over those of every adapter, with the losses.

    The answers are in lines of at most `width` cells.
    """
    running = record.state == "running"
    lines: list[Content] = []
    for name, look in list(record.looks.items())[-1 if running else 0 :]:
        if not running:
            lines.append(literal(look_words(name, look), "bold", one_line=True))
        for answer in look.answers:
            lines.append(_hanging(Content("  "), answer.prompt, width))
            lines.append(_labelled("before", answer.before, width))
            if look.step:
                lines.append(_labelled("now", answer.now, width))
    return Content("\n").join(lines)


def _labelled(label: str, answer: str, width: int) -> Content:
    return _hanging(Content.styled(f"    {label:<6}  ", "dim"), answer or NO_ANSWER, width)


def _hanging(lead: Content, text: str, width: int) -> Content:
    """`lead` and the text in lines of at most `width` cells, each of which begins below the beginning of the text."""
    at = lead.cell_length
    return lead + Content("\n" + " " * at).join(literal(text, one_line=True).wrap(max(8, width - at)))


def job_line(record: JobRecord, width: int) -> Content:
    """State and title; for a running job a second line with bar, numbers and time left, and one of the last look."""
    number = f"{record.number} " if record.number is not None else ""
    lead = (f"{_GLYPHS[record.state]} {number}{record.title}", _STYLES[record.state])
    if record.state == "waiting":
        return assemble(lead, (f"  {record.note}", "dim"))
    if record.state != "running":
        return assemble(lead, f"  {record.summary}")
    if record.progress is None:
        return assemble(lead, f"\n  {record.detail()}")
    room = width - cell_len(record.detail()) - 5
    line = assemble(lead, "\n  ") + progress_line(record.progress, min(40, room) if room >= 6 else 0)
    for name, look in list(record.looks.items())[-1:]:
        line += Content("\n") + _hanging(Content("  "), look_words(name, look), width)
    return line
