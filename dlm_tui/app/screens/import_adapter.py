"""An adapter that was trained elsewhere: its name here, and where it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.widgets import Input

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.errors import DlmTuiError
from dlm_tui.input import with_home
from dlm_tui.system_errors import sentence_of
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import literal

HUB = "hf:"


@dataclass(frozen=True)
class ImportOrder:
    """What to take in: a PEFT folder or a modulated checkpoint by its path, or `hf:org/name`."""

    name: str
    source: str


class ImportScreen(Dialog[ImportOrder]):
    """`check` raises DlmTuiError or OSError for a name that the document cannot take."""

    TITLE_TEXT = "Import an adapter"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.accept", "Import"), ("dialog.close", "Cancel"))

    def __init__(self, folder: Path, versions_key: str, check: Callable[[str], None]) -> None:
        super().__init__()
        self._folder, self._versions_key, self._check = folder, versions_key, check

    def compose_body(self) -> ComposeResult:
        """The name, the place, what is to be said about them."""
        yield LiteralStatic("Name of the adapter in this document", classes="field")
        yield Input(id="import-name")
        yield LiteralStatic("PEFT folder, .safetensors file, or hf:org/name", classes="field")
        yield Input(id="import-source")
        yield LiteralStatic(classes="note", id="import-note")

    def on_mount(self) -> None:
        """Start at the name."""
        super().on_mount()
        self.query_one("#import-name").focus()
        self._tell(f"One that exists gets a new version; {self._versions_key} goes back. The base checks it first.")

    @on(Input.Submitted)
    async def _submitted(self) -> None:
        await self.action_accept()

    async def action_accept(self) -> None:  # type: ignore[override]
        """Import it; what is wrong stays in view with what was typed."""
        name = self.query_one("#import-name", Input).value.strip()
        try:
            source = await asyncio.to_thread(self._source, self.query_one("#import-source", Input).value.strip())
            await asyncio.to_thread(self._check, name)
        except (DlmTuiError, OSError) as error:
            self._tell(sentence_of(error), error=True)
            return
        self.dismiss(ImportOrder(name, source))

    def _source(self, given: str) -> str:
        """Names without a folder are beside the document."""
        if given.startswith(HUB):
            return given
        path = self._folder / with_home(given)
        if not given or not path.exists():
            raise DlmTuiError(f"There is no {given or 'adapter without a path'}; give a folder, a file or hf:org/name.")
        return str(path)

    def _tell(self, text: str, *, error: bool = False) -> None:
        self.query_one("#import-note", LiteralStatic).show(literal(text, "$error" if error else ""))
