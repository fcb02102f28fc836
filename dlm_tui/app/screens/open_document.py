"""Another document: one of those opened before, one beside this one, or a path."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.widgets import Input, OptionList

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.app.state import recent_documents
from dlm_tui.document import load
from dlm_tui.errors import DlmTuiError
from dlm_tui.input import with_home
from dlm_tui.system_errors import cause
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import literal

_MOST_LISTED, _MOST_LOOKED_AT = 200, 40_000
"""Documents of a folder, and entries of it."""


class OpenDocumentScreen(Dialog[Path]):
    """Gives the path of a document that can be read; a folder's path lists the folder."""

    TITLE_TEXT = "Open a document"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.accept", "Open"), ("dialog.close", "Cancel"))

    def __init__(self, current: Path) -> None:
        super().__init__()
        self._current, self._folder = current, current.parent
        self._listed: list[Path] = []

    def compose_body(self) -> ComposeResult:
        """A path, the documents to choose from."""
        yield LiteralStatic("File, or a folder to list", classes="field")
        yield Input(id="open-path")
        yield LiteralStatic("Opened before, and beside this one", classes="field", id="open-where")
        yield PickList(id="open-list", markup=False)
        yield LiteralStatic(id="open-note", classes="note")

    async def on_mount(self) -> None:  # type: ignore[override]
        """Start in the list."""
        super().on_mount()
        found = await asyncio.to_thread(self._known)
        self._list(found, "There is no other document here and none was opened before; name one above.")
        self.query_one("#open-list" if found else "#open-path").focus()

    def _known(self) -> list[Path]:
        everything = dict.fromkeys([*recent_documents(), *_documents(self._folder)])
        return [path for path in everything if path != self._current]

    def _list(self, found: list[Path], none: str) -> None:
        self._listed = found
        listing = self.query_one("#open-list", PickList)
        listing.clear_options()
        listing.add_options([literal(self._words(path), one_line=True) for path in found])
        listing.highlighted = 0 if found else None
        self._tell("" if found else none)

    def _words(self, path: Path) -> str:
        """Names of this folder as they are, others with theirs."""
        if path.parent == self._folder:
            return path.name
        try:
            return f"{path.name}  {Path('~') / path.parent.relative_to(Path.home())}"
        except (ValueError, RuntimeError):
            return f"{path.name}  {path.parent}"

    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    async def _chosen(self) -> None:
        await self.action_accept()

    async def action_accept(self) -> None:  # type: ignore[override]
        """Give the typed path, else the marked one; what cannot be read is said here."""
        typed = self.query_one("#open-path", Input).value.strip()
        marked = self.query_one("#open-list", PickList).highlighted
        by_name = typed and (self.focused is self.query_one("#open-path") or marked is None)
        if not by_name and marked is None:
            return
        try:
            path = self._folder / with_home(typed) if by_name else self._listed[marked or 0]
            if await asyncio.to_thread(path.is_dir):
                await self._show_folder(path)
                return
            await asyncio.to_thread(load, path)
        except DlmTuiError as error:
            self._tell(str(error), error=True)
        else:
            self.dismiss(path)

    async def _show_folder(self, given: Path) -> None:
        folder = await asyncio.to_thread(given.resolve)
        try:
            found = await asyncio.to_thread(lambda: list(_documents(folder)))
        except OSError as error:
            self._tell(f"{folder} cannot be listed: {cause(error)}", error=True)
            return
        self._folder = folder
        self.query_one("#open-where", LiteralStatic).show(literal(f"In {folder}", one_line=True))
        self.query_one("#open-path", Input).value = ""
        self._list(found, "There is no .dlm document in this folder.")
        self.query_one("#open-list" if found else "#open-path").focus()

    def _tell(self, text: str, *, error: bool = False) -> None:
        self.query_one("#open-note", LiteralStatic).show(literal(text, "$error" if error else ""))


def _documents(folder: Path) -> Iterator[Path]:
    """The .dlm files of a folder by name. Raises OSError."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in islice(entries, _MOST_LOOKED_AT) if entry.name.endswith(".dlm")]
    paths = (folder / name for name in sorted(names)[:_MOST_LISTED])
    return iter([path for path in paths if path.is_file()])
