"""The document's outline: adapters with their sections, counts against the floor, problems."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.keys import bindings_for
from dlm_tui.app.panes.pane import Pane
from dlm_tui.counting import counted
from dlm_tui.document import Document, Section, gate_samples
from dlm_tui.document.problems import Problem
from dlm_tui.document.sources import SourceCounts, Survey
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, fit, sanitize

# More files than this of one folder are counted, not listed.
_FILES_SHOWN = 40

Change = Literal["add", "edit", "retag", "delete"]


@dataclass(frozen=True)
class Row:
    """A row, the line of the document it stands for, the index of its section, the adapter it belongs to, or
    the file of a source folder.
    """

    content: Content
    line: int | None = None
    section: int | None = None
    adapter: str | None = None
    file: str | None = None


class OutlineList(PickList):
    """Rows of the outline; what is taken is handled by the pane."""


class OutlinePane(Pane):
    """What the document holds, and what is wrong with it."""

    TITLE = "Document"
    JUMP = "d"
    BINDINGS: ClassVar[list[BindingType]] = list(bindings_for("outline"))

    @dataclass
    class OpenLine(Message):
        """Open the document at this line."""

        line: int

    @dataclass
    class ChangeSection(Message):
        """Do something with a section: its index in the document, None on other rows; `adapter` is that of the row."""

        what: Change
        section: int | None
        adapter: str | None

    @dataclass
    class OpenFile(Message):
        """Open a file of a source folder."""

        path: str

    def __init__(self) -> None:
        super().__init__(id="outline")
        self._rows: list[Row] = []
        self._section_rows = 0
        self._error_line: int | None = None

    def compose(self) -> ComposeResult:
        """An error line, and the rows."""
        yield LiteralStatic(id="outline-error")
        yield LiteralStatic(id="outline-reading")
        yield OutlineList(id="outline-list", markup=False)

    def on_mount(self) -> None:
        """No error."""
        super().on_mount()
        self.show_error(None)
        self.show_reading(None)

    def show_error(self, text: str | None, at: int = 1) -> None:
        """A save that cannot be read, which Enter opens at line `at`: the last good state stays below."""
        self._error_line = at if text else None
        listing = self.query_one(OutlineList)
        if text and listing.highlighted is None and listing.option_count:
            listing.highlighted = 0  # so that Enter is taken
        line = self.query_one("#outline-error", LiteralStatic)
        line.show(text or "")
        line.display = text is not None

    def show_reading(self, text: str | None) -> None:
        """How far the pass over the source folders is; Esc stops it."""
        line = self.query_one("#outline-reading", LiteralStatic)
        line.show(assemble((f"{text} (Esc stops)" if text else "", "dim")))
        line.display = text is not None

    def show(
        self,
        document: Document,
        problems: Sequence[Problem],
        marks: Mapping[str, Mark],
        versions: Mapping[str, int | None] | None,
        trained_sections: Collection[str],
        from_files: Mapping[str | None, int],
    ) -> None:
        """Rebuild the rows; the highlighted row stays where it was."""
        rows = [_problem_row(problem) for problem in problems]
        counts = gate_samples(document)
        floor = document.training.gate.cold_start_floor if document.gate_enabled else 0
        for name in document.routing_names:
            sections = _section_rows(document, name, trained_sections)
            fresh = sum(
                _is_fresh(section, trained_sections) for section in document.sections if section.adapter == name
            )
            count = _count_of(counts.get(name, 0), from_files.get(name, 0), floor)
            version = _version_words(name, versions)
            rows.append(Row(_adapter_row(name, marks.get(name), count, version, fresh), adapter=name))
            rows += sections
        untagged = _section_rows(document, None, trained_sections)
        if untagged:
            rows.append(Row(assemble(("  every adapter", "bold"), ("  untagged", "dim"))))
            rows += untagged
        listing = self.query_one(OutlineList)
        here = listing.highlighted
        self._rows, self._section_rows = rows, len(rows)
        listing.set_options([Option(row.content) for row in rows])
        if here is not None and rows:
            listing.highlighted = min(here, len(rows) - 1)
        errors = sum(problem.severity == "error" for problem in problems)
        self.retitle(counted(len(document.sections), "section"), _count_text(errors, len(problems) - errors))

    def show_files(self, survey: Survey | None, new: Collection[str]) -> None:
        """Below the sections: the source folders, what each adapter has from them, and what is new."""
        listing = self.query_one(OutlineList)
        here = listing.highlighted
        rows = self._rows[: self._section_rows] + (_file_rows(survey, new) if survey is not None else [])
        if len(rows) != len(self._rows) or survey is not None:
            self._rows = rows
            listing.set_options([Option(row.content) for row in rows])
            if here is not None and rows:
                listing.highlighted = min(here, len(rows) - 1)

    def action_open_section(self) -> None:
        """Open what cannot be read, else what is marked: from a heading the first section below it, else the top."""
        if self._error_line is not None:
            self.post_message(self.OpenLine(self._error_line))
            return
        marked = self.query_one(OutlineList).highlighted
        if marked is not None and (path := self._rows[marked].file) is not None:
            self.post_message(self.OpenFile(path))
            return
        below = self._rows[marked:] if marked is not None else []
        self.post_message(self.OpenLine(next((row.line for row in below if row.line is not None), 1)))

    def action_change_section(self, what: Change) -> None:
        """Add, edit, retag or delete what is marked, or take the last change back."""
        marked = self.query_one(OutlineList).highlighted
        row = self._rows[marked] if marked is not None else Row(Content())
        self.post_message(self.ChangeSection(what, row.section, row.adapter))

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter, or the second click on a row."""
        event.stop()
        self.action_open_section()


def _count_text(errors: int, warnings: int) -> Content:
    parts: list[str | tuple[str, str]] = []
    if errors:
        parts.append((counted(errors, "error"), "bold $error"))
    if warnings:
        parts.append((f"{' ' if errors else ''}{counted(warnings, 'warning')}", "$warning"))
    return assemble(*parts)


def _problem_row(problem: Problem) -> Row:
    style = "$error" if problem.severity == "error" else "$warning"
    return Row(assemble((f"\u2717 {problem.line}:{problem.col} ", f"bold {style}"), problem.message), problem.line)


def _count_of(sections: int, files: int, floor: int) -> tuple[str, str]:
    """How many tagged sections, and files of bound folders, the gate learns an adapter from, and the style of that.

    `floor` is how many it needs, 0 where the document has no gate.
    """
    count = sections + files
    words = f"{counted(count, 'tagged section')}" + (" and files" if files else "")
    return (words, "dim") if count >= floor else (f"{words} (needs {floor})", "bold $warning")


def _version_words(name: str, versions: Mapping[str, int | None] | None) -> str:
    """Which version is in force; empty while that is not known."""
    if versions is None:
        return ""
    version = versions.get(name, 0)
    if version is None:
        return "  on disk"
    return f"  v{version}" if version else "  not trained"


def _adapter_row(name: str, mark: Mark | None, count: tuple[str, str], version: str, fresh: int) -> Content:
    """`fresh` sections carry a `+`, which is explained here."""
    return assemble(
        (f"{mark.glyph if mark else ' '} {name}", f"bold {mark.color}" if mark else "bold"),
        "  ",
        count,
        (version, "dim"),
        (f"  + {fresh} not trained yet" if fresh else "", "bold $warning"),
    )


def _is_fresh(section: Section, trained: Collection[str]) -> bool:
    """Whether no training has seen a section; False while nothing was trained."""
    return bool(trained) and section.section_id not in trained


def _section_rows(document: Document, adapter: str | None, trained: Collection[str]) -> list[Row]:
    rows: list[Row] = []
    for index, section in enumerate(document.sections):
        if section.adapter != adapter:
            continue
        fresh = _is_fresh(section, trained)
        content = assemble(
            (f"{section.start_line:5d} ", "dim"),
            ("+ " if fresh else "  ", "bold $warning"),
            (f"{section.type[:5]:5s} ", "dim"),
            first_words(section.content),
        )
        rows.append(Row(content, section.start_line, index, adapter))
    return rows


def _file_rows(survey: Survey, new: Collection[str]) -> list[Row]:
    if survey.error:
        return [Row(assemble(("\u2717 ", "bold $warning"), survey.error))]
    rows = []
    for counts in survey.counts:
        files = [file for file in survey.files if file.source == counts.path]
        fresh = sum(file.section_id in new for file in files)
        heading = assemble(
            (f"  {sanitize(counts.path, one_line=True)}", "bold"),
            (f"  {counts.file_count:,} file{'s' * (counts.file_count != 1)}, {counts.total_bytes / 1e6:.1f} MB", "dim"),
            (f"  {fresh:,} new" if fresh else "", "bold $warning"),
            (_skipped_words(counts), "dim"),
        )
        rows.append(Row(heading))
        for file in files[:_FILES_SHOWN]:
            content = assemble(
                ("      ", "dim"),
                ("+ " if file.section_id in new else "  ", "bold $warning"),
                (f"{file.adapter or 'all'} ", "dim"),
                sanitize(file.label, one_line=True),
            )
            rows.append(Row(content, adapter=file.adapter, file=file.path))
        if len(files) > _FILES_SHOWN:
            rows.append(Row(assemble((f"        and {len(files) - _FILES_SHOWN:,} more", "dim"))))
    return rows


def _skipped_words(counts: SourceCounts) -> str:
    skipped = sum(count for outcome, count in counts.skipped.items() if outcome != "by_descent")
    return f"  {skipped:,} skipped" if skipped else ""


def first_words(content: str, limit: int = 80) -> str:
    """The first line that says something, headers left out, in at most `limit` cells."""
    most = 8 * limit  # marks take no cells of their own, and a line may be a book
    for line in content.splitlines():
        text = line.strip()
        if text and not text.startswith("###"):
            return fit(text if len(text) <= most else text[:most] + "\u2026", limit).rstrip()
    return "(empty)"
