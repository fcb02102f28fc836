"""A new document: where it goes, and what it is made of."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.widgets import Input, OptionList

from dlm_tui.app.screens.dialog import HELP, Dialog
from dlm_tui.document.templates import TEMPLATES, NewDocument, compose, folders_to_learn, write_new
from dlm_tui.errors import DlmTuiError
from dlm_tui.input import with_home
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import literal


class NewDocumentScreen(Dialog[Path]):
    """Writes the document and gives its path. Nothing that is there is overwritten."""

    TITLE_TEXT = "A new document"
    BINDINGS: ClassVar[list[BindingType]] = list(HELP)
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.accept", "Write and open"), ("dialog.close", "Cancel"))

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._busy = False

    def compose_body(self) -> ComposeResult:
        """File, what it is made of, the folder it learns from."""
        yield LiteralStatic("File", classes="field")
        yield Input("notes.dlm", id="new-path")
        yield LiteralStatic("Made of", classes="field")
        yield PickList(*(f"{name}: {text}" for name, text in TEMPLATES.items()), id="new-template", markup=False)
        yield LiteralStatic("Or learn from a folder of text files (an adapter for each sub-folder)", classes="field")
        yield Input(placeholder="for example ~/notes", id="new-folder")
        yield LiteralStatic(id="new-note", classes="note")

    def on_mount(self) -> None:
        """Start at the name."""
        super().on_mount()
        self.query_one("#new-template", PickList).highlighted = 0
        self.query_one("#new-path", Input).focus()
        self._tell("Everything works offline on the base that comes with the program; the file says how to change it.")

    @on(Input.Submitted)
    @on(OptionList.OptionSelected)
    async def _chosen(self) -> None:
        await self.action_accept()

    async def action_accept(self) -> None:  # type: ignore[override]
        """Write it; what is wrong stays in view with everything that was typed."""
        if self._busy:
            return
        self._busy = True
        try:
            new = await asyncio.to_thread(self._write, *self._wanted())
        except DlmTuiError as error:
            self._tell(str(error), error=True)
            return
        finally:
            self._busy = False
        self.dismiss(new.path)

    def _wanted(self) -> tuple[str, str, str]:
        template = list(TEMPLATES)[self.query_one("#new-template", PickList).highlighted or 0]
        return self.query_one("#new-path", Input).value.strip(), self.query_one("#new-folder", Input).value, template

    def _write(self, name: str, folder: str, template: str) -> NewDocument:
        path = self._folder / with_home(name or "notes.dlm")
        path = path if path.suffix else path.with_name(f"{path.name}.dlm")
        if folder.strip():
            new = compose(path, folders=folders_to_learn([self._folder / with_home(folder.strip())]))
        else:
            new = compose(path, template=template)
        write_new(new)
        return new

    def _tell(self, text: str, *, error: bool = False) -> None:
        self.query_one("#new-note", LiteralStatic).show(literal(text, "$error" if error else ""))
