"""A set of prompts, or the results of one, in or out of a CSV or JSONL file."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.widgets import Input

from dlm_tui.app.screens.confirm import replacing
from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.document.prompt_set_files import read_cases, write_cases
from dlm_tui.document.prompt_sets import PromptCase
from dlm_tui.errors import DlmTuiError
from dlm_tui.given_files import NameTaken
from dlm_tui.input import read_text_file, with_home
from dlm_tui.system_errors import cause
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import literal


class SetFileScreen(Dialog[list[PromptCase]]):
    """`forms` makes what is written, by suffix. With `reads` a file can be read, too; its prompts are the result."""

    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Read it"),
        ("dialog.run", "Write it"),
        ("dialog.close", "Close"),
    )

    def __init__(
        self, title: str, folder: Path, name: str, forms: Mapping[str, Callable[[], str]], *, reads: bool = True
    ) -> None:
        super().__init__()
        self._title, self._folder, self._name, self._forms, self._reads = title, folder, name, forms, reads

    def compose_body(self) -> ComposeResult:
        """The file's name and what is to be said about it."""
        yield LiteralStatic("File, .csv or .jsonl; names without a folder are beside the document", classes="field")
        yield Input(value=self._name, id="file-name")
        yield LiteralStatic(classes="note", id="file-note")

    def on_mount(self) -> None:
        """Start in the name."""
        super().on_mount()
        self.retitle(self._title)
        self.query_one(Input).focus()

    @property
    def _path(self) -> Path:
        return self._folder / with_home(self.query_one(Input).value.strip())

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Read the file; where there is nothing to read, write it."""
        if not self._reads:
            self.action_run()
            return
        self.run_worker(self._read(), exit_on_error=False)

    async def _read(self) -> None:
        try:
            path = self._path
            text = await asyncio.to_thread(read_text_file, str(path))
            cases = await asyncio.to_thread(read_cases, text, path.name)
        except DlmTuiError as error:
            self._problem(str(error))
            return
        self.dismiss(cases)

    def action_run(self) -> None:
        """Write the file."""
        try:
            path = self._path
        except DlmTuiError as error:
            self._problem(str(error))
            return
        make = self._forms.get(path.suffix.lower())
        if make is None:
            self._problem("There is nothing to write." if not self._forms else f"{path.name} is no .csv or .jsonl.")
            return
        self.run_worker(self._write(path, make), exit_on_error=False)

    async def _write(self, path: Path, make: Callable[[], str], *, replace: bool = False) -> None:
        try:
            await asyncio.to_thread(lambda: write_cases(path, make(), replace=replace))
        except NameTaken as taken:
            self.app.push_screen(replacing(taken), partial(self._may_replace, path, make, taken))
        except DlmTuiError as error:
            self._problem(str(error))
        except OSError as error:
            self._problem(f"{path.name} cannot be written: {cause(error)}")
        else:
            self.query_one("#file-note", LiteralStatic).show(literal(f"Written to {path}."))

    def _may_replace(self, path: Path, make: Callable[[], str], taken: NameTaken, answer: bool | None) -> None:
        if answer:
            self.run_worker(self._write(path, make, replace=True), exit_on_error=False)
        else:
            self.query_one(Input).value = str(taken.free)
            self.query_one("#file-note", LiteralStatic).show(literal(f"Nothing is written yet; {taken.free} is free."))

    def _problem(self, text: str) -> None:
        self.query_one("#file-note", LiteralStatic).show(literal(text, "$error"))
