"""The sections of the document: added, edited, given to another adapter, deleted; every change can be taken back."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dlm_tui.app.controllers.changes import Changes
from dlm_tui.app.controllers.context import Context
from dlm_tui.app.controllers.copying import Copying
from dlm_tui.app.controllers.drafts import Drafts, bytes_to_change, sentence
from dlm_tui.app.panes.outline import Change
from dlm_tui.app.screens.section import Draft, RetagScreen, SectionScreen, Tag
from dlm_tui.document import (
    AppendResult,
    BodyError,
    Edit,
    Section,
    append_section,
    check_edit,
    delete_section,
    edit_section,
    preview_section,
    retag_section,
)
from dlm_tui.document.change_log import DocumentChange
from dlm_tui.errors import DlmTuiError

_Result = TypeVar("_Result")
SECTION = "section"
_NEW = "\0new"  # no section has such a text


class Sections:
    """Writes what the person asks for; the watched document then shows it. Nothing is written over another's save."""

    def __init__(self, context: Context, changes: Changes, copying: Copying) -> None:
        self._context, self._changes, self._copying = context, changes, copying
        self._drafts: Drafts[Draft] = Drafts(context)

    def change(self, what: Change, section: int | None, adapter: str | None) -> None:
        """Do what a key of the outline asks for with the section at this index, or on a row of this adapter."""
        if what == "add":
            self.add(adapter)
        elif section is None or section >= len(self._context.document.sections):
            self._context.ui.say("Choose a section first.", warning=True)
        elif what == "edit":
            self.edit(section)
        elif what == "retag":
            self.retag(section)
        else:
            self.delete(section)

    def add(self, adapter: str | None = None) -> None:
        """Ask for a section and put it at the end of the document."""
        if (data := self._read()) is None:
            return

        def problem(draft: Draft) -> str:
            try:
                preview_section(data, type=draft.type, adapter=draft.adapter, content=draft.content)
            except (DlmTuiError, BodyError) as error:
                return _sentence(error)
            return ""

        context = self._context
        start = self._drafts.take(_NEW)
        dialog = SectionScreen("Add a section", problem, context.names, context.marks, adapter=adapter, start=start)
        context.ui.open_dialog(dialog, lambda draft: self._add(draft, hashlib.sha256(data).hexdigest()))

    def _add(self, draft: Draft | None, sha256: str) -> None:
        if draft is None:
            return
        path = self._context.setup.path

        def write() -> AppendResult:
            return append_section(path, sha256, type=draft.type, adapter=draft.adapter, content=draft.content)

        def done(result: AppendResult) -> tuple[str, DocumentChange]:
            return f"Added at line {result.line}.", DocumentChange.of_append(SECTION, result)

        self._run(write, done, lambda error: self._drafts.keep(_NEW, draft, error))

    def edit(self, index: int) -> None:
        """Show the text of a section, and write what it is changed to."""
        if (data := self._read()) is None:
            return
        section = self._context.document.sections[index]
        if section.is_media:
            self._context.ui.say(f"The text of an {section.type} section is changed in the editor.", warning=True)
            return

        def problem(draft: Draft) -> str:
            try:
                check_edit(data, index, draft.content)
            except (DlmTuiError, BodyError) as error:
                return _sentence(error)
            return ""

        def chosen(draft: Draft | None) -> None:
            if draft is None or draft.content == text:
                return
            if (now := self._index_of(section, index)) is None:
                self._refuse()
                self._copying.copy(draft.content, "what you typed")
            else:
                self._write(
                    lambda path, sha256: edit_section(path, sha256, now, draft.content),
                    "Changed",
                    lambda error: self._drafts.keep(text, draft, error),
                )

        text = section.content.strip("\n")
        kept = self._drafts.take(text)
        title = f"Edit the section at line {section.start_line}"
        content = kept.content if kept is not None else text
        self._context.ui.open_dialog(SectionScreen(title, problem, content=content), chosen)

    def retag(self, index: int) -> None:
        """Ask which adapter a section is for."""
        section, context = self._context.document.sections[index], self._context

        def chosen(tag: Tag | None) -> None:
            if tag is None or tag.adapter == section.adapter:
                return
            if (now := self._index_of(section, index)) is None:
                self._refuse()
            else:
                done = f"Given to {tag.adapter or 'every adapter'}"
                self._write(lambda path, sha256: retag_section(path, sha256, now, tag.adapter), done)

        context.ui.open_dialog(RetagScreen(context.names, context.marks, section.adapter), chosen)

    def delete(self, index: int) -> None:
        """Take a section out; it can be taken back."""
        self._write(lambda path, sha256: delete_section(path, sha256, index), "Deleted")

    def _index_of(self, section: Section, index: int) -> int | None:
        """Where the section that a dialog showed is now; None where it is another, or not to be told from others.

        The document may have been saved by another program while the dialog was open.
        """
        sections = self._context.document.sections
        same = [
            at
            for at, one in enumerate(sections)
            if (one.section_id, one.content) == (section.section_id, section.content)
        ]
        return index if index in same else same[0] if len(same) == 1 else None

    def _refuse(self) -> None:
        self._context.ui.say(
            "The section was changed by another program while the dialog was open.",
            error=True,
            title="Nothing was written",
        )

    def _write(
        self, change: Callable[[Path, str], Edit], done: str, failed: Callable[[Exception], None] | None = None
    ) -> None:
        path, sha256 = self._context.setup.path, self._context.document.sha256
        self._run(
            lambda: change(path, sha256),
            lambda edit: (f"{done}: the section at line {edit.line}.", DocumentChange.of_edit(SECTION, edit)),
            failed,
        )

    def _run(
        self,
        work: Callable[[], _Result],
        then: Callable[[_Result], tuple[str, DocumentChange]],
        failed: Callable[[Exception], None] | None = None,
    ) -> None:
        """Write in a thread, then say what was done and how it is taken back; `failed` is told why it was not."""
        context = self._context

        async def run() -> None:
            try:
                result = await asyncio.to_thread(work)
            except (DlmTuiError, OSError) as error:
                if failed is not None:
                    failed(error)
                else:
                    context.ui.say(_sentence(error), error=True, title="Nothing was written")
                return
            text, change = then(result)
            await self._changes.note(change)
            context.ui.say(f"{text} {self._changes.hint}")

        context.ui.run(run, "section", "section")

    def taken_back(self, change: DocumentChange) -> None:
        """A change is undone."""
        if change.kind == SECTION:
            self._context.ui.say("The last change is taken back.")

    def _read(self) -> bytes | None:
        """The document as it is on disk, if that is what is shown."""
        context = self._context
        data = bytes_to_change(context)
        if data is None:
            return None
        if hashlib.sha256(data).hexdigest() != context.document.sha256:
            context.ui.say("The document on disk is another than the one shown; save it so that it can be read.")
            return None
        return data


def _sentence(error: Exception) -> str:
    return sentence(DlmTuiError(error.text)) if isinstance(error, BodyError) else sentence(error)
