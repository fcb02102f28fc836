"""Background jobs: progress, log, cancel."""

from __future__ import annotations

from collections.abc import Collection
from itertools import islice
from typing import ClassVar

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from dlm_tui.app.jobs import JobRecord
from dlm_tui.app.keys import bindings_for
from dlm_tui.app.panes.pane import Pane
from dlm_tui.app.progress import progress_line
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble, literal
from dlm_widgets.throttled import Throttled

_GLYPHS = {"running": "\u25b8", "done": "\u2713", "failed": "\u2717", "cancelled": "\u2013"}
_STYLES = {"running": "bold $primary", "done": "$success", "failed": "bold $error", "cancelled": "$warning"}


class JobLog(VerticalScroll, can_focus=True):
    """The scrolling part."""


class JobsPane(Pane, Throttled):
    """The newest job on top, its log below."""

    TITLE = "Jobs"
    JUMP = "j"
    BINDINGS: ClassVar[list[BindingType]] = list(bindings_for("jobs"))

    class CancelPressed(Message):
        """Stop the running job."""

    def __init__(self, records: Collection[JobRecord]) -> None:
        super().__init__(id="jobs")
        self._records = records

    def compose(self) -> ComposeResult:
        """Jobs, then the log."""
        yield LiteralStatic(id="job-list")
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
        """Newest first; the log is that of the newest."""
        records = list(islice(self._records, 3))
        lines = self.query_one("#job-list", LiteralStatic)
        if not records:
            lines.show(Content.styled("Nothing is running. Training and exports appear here with their log.", "dim"))
            self.query_one("#job-log", LiteralStatic).show("")
            return
        lines.show(Content("\n").join(job_line(record, max(20, self.content_size.width)) for record in records))
        scroll = self.query_one(JobLog)
        at_end = scroll.scroll_offset.y >= scroll.max_scroll_y - 1
        self.query_one("#job-log", LiteralStatic).show(literal("\n".join(records[0].log), "dim"))
        if at_end:
            scroll.scroll_end(animate=False)

    def focus_target(self) -> Widget:
        """The log."""
        return self.query_one(JobLog)

    def action_cancel_job(self) -> None:
        """Ask for the running job to be stopped."""
        self.post_message(self.CancelPressed())


def job_line(record: JobRecord, width: int) -> Content:
    """State and title; for a running job a second line with bar, numbers and time left."""
    lead = (f"{_GLYPHS[record.state]} {record.title}", _STYLES[record.state])
    if record.state != "running":
        return assemble(lead, f"  {record.summary}")
    if record.progress is None:
        return assemble(lead, f"\n  {record.detail()}")
    room = width - cell_len(record.detail()) - 5
    return assemble(lead, "\n  ") + progress_line(record.progress, min(40, room) if room >= 6 else 0)
