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
from dlm_tui.document import Document, gate_samples
from dlm_tui.document.problems import Problem
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, sanitize

Change = Literal["add", "edit", "retag", "delete", "undo"]


@dataclass(frozen=True)
class Row:
    """A row, the line of the document it stands for, the index of its section, and the adapter it belongs to."""

    content: Content
    line: int | None = None
    section: int | None = None
    adapter: str | None = None


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

    def __init__(self) -> None:
        super().__init__(id="outline")
        self._rows: list[Row] = []

    def compose(self) -> ComposeResult:
        """An error line, and the rows."""
        yield LiteralStatic(id="outline-error")
        yield OutlineList(id="outline-list", markup=False)

    def on_mount(self) -> None:
        """No error."""
        super().on_mount()
        self.show_error(None)

    def show_error(self, text: str | None) -> None:
        """A save that cannot be read: the last good state stays below."""
        line = self.query_one("#outline-error", LiteralStatic)
        line.show(text or "")
        line.display = text is not None

    def show(
        self,
        document: Document,
        problems: Sequence[Problem],
        marks: Mapping[str, Mark],
        versions: Mapping[str, int],
        trained_sections: Collection[str],
    ) -> None:
        """Rebuild the rows; the highlighted row stays where it was."""
        rows = [_problem_row(problem) for problem in problems]
        counts = gate_samples(document)
        floor = document.training.gate.cold_start_floor
        for name in document.routing_names:
            heading = _adapter_row(name, marks.get(name), counts.get(name, 0), floor, versions.get(name))
            rows.append(Row(heading, adapter=name))
            rows += _section_rows(document, name, trained_sections)
        untagged = _section_rows(document, None, trained_sections)
        if untagged:
            rows.append(Row(assemble(("  every adapter", "bold"), ("  untagged", "dim"))))
            rows += untagged
        listing = self.query_one(OutlineList)
        here = listing.highlighted
        self._rows = rows
        listing.set_options([Option(row.content) for row in rows])
        if here is not None and rows:
            listing.highlighted = min(here, len(rows) - 1)
        errors = sum(problem.severity == "error" for problem in problems)
        self.retitle(f"{len(document.sections)} sections", _count_text(errors, len(problems) - errors))

    def action_open_section(self) -> None:
        """Open what is marked; from a heading the first section below it, from nothing the document's top."""
        marked = self.query_one(OutlineList).highlighted
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
        parts.append((f"{errors} error{'s' * (errors > 1)}", "bold $error"))
    if warnings:
        parts.append((f"{' ' if errors else ''}{warnings} warning{'s' * (warnings > 1)}", "$warning"))
    return assemble(*parts)


def _problem_row(problem: Problem) -> Row:
    style = "$error" if problem.severity == "error" else "$warning"
    return Row(assemble((f"\u2717 {problem.line}:{problem.col} ", f"bold {style}"), problem.message), problem.line)


def _adapter_row(name: str, mark: Mark | None, probes: int, floor: int, version: int | None) -> Content:
    enough = probes >= floor
    count = f"{probes} probes, floor {floor}"
    return assemble(
        (f"{mark.glyph if mark else ' '} {name}", f"bold {mark.color}" if mark else "bold"),
        "  ",
        (count, "dim" if enough else "bold $warning"),
        (f"  v{version}" if version else "  not trained", "dim"),
    )


def _section_rows(document: Document, adapter: str | None, trained: Collection[str]) -> list[Row]:
    rows: list[Row] = []
    for index, section in enumerate(document.sections):
        if section.adapter != adapter:
            continue
        fresh = bool(trained) and section.section_id not in trained
        content = assemble(
            (f"{section.start_line:5d} ", "dim"),
            ("+ " if fresh else "  ", "bold $warning"),
            (f"{section.type[:5]:5s} ", "dim"),
            first_words(section.content),
        )
        rows.append(Row(content, section.start_line, index, adapter))
    return rows


def first_words(content: str, limit: int = 80) -> str:
    """The first line that says something, headers left out."""
    for line in content.splitlines():
        text = line.strip()
        if text and not text.startswith("###"):
            return sanitize(text[:limit], one_line=True)
    return "(empty)"
