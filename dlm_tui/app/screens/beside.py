"""A small file beside the document, as a dialog lists and changes what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.errors import DlmTuiError
from dlm_tui.system_errors import sentence_of
from dlm_widgets.sanitize import sanitize

Item = TypeVar("Item")
Change = Callable[[dict[str, Item]], object]
Update = Callable[[Change[Item], Callable[[Path], object] | None], dict[str, Item]]


class FileBeside(Generic[Item]):
    """Name → item. Each change is made in a thread, one after the other, to the file as it is then.

    `update` is that of the file; `show` hears what is to be said, and whether something went wrong, while the dialog is
    open. A file that could not be read when the dialog said so is set aside by the first change, if it still cannot be.
    """

    def __init__(
        self,
        dialog: Dialog[Any],
        load: Callable[[], dict[str, Item]],
        update: Update[Item],
        show: Callable[[str, bool], object],
    ) -> None:
        self._dialog, self._load, self._update, self._show = dialog, load, update, show
        self._begins_anew = False
        self._order = asyncio.Lock()
        self.items: dict[str, Item] = {}

    def read(self) -> str:
        """Take in the file; where it cannot be read, why, and what becomes of it."""
        try:
            self.items = self._load()
        except DlmTuiError as error:
            self._begins_anew = True
            return f"{error} Saving sets it aside."
        return ""

    def change(self, change: Change[Item], done: str, then: Callable[[], object] = lambda: None) -> None:
        """Change the file and show it with the words `done`; `then` is called, also when the dialog was left since."""
        work = self._changed(change, done, then)
        # of the app: what was begun is ended, and its failure told, also behind a dialog that was left
        self._dialog.app.run_worker(work, group="beside", description="file beside the document", exit_on_error=False)

    async def _changed(self, change: Change[Item], done: str, then: Callable[[], object]) -> None:
        aside: list[Path] = []
        async with self._order:
            told = aside.append if self._begins_anew else None
            try:
                self.items = await asyncio.to_thread(self._update, change, told)
            except (DlmTuiError, OSError) as error:
                self._say(sentence_of(error), wrong=True)
                return
            self._begins_anew = False
        then()
        self._say(" ".join([done, *(f"What could not be read is now {path.name}." for path in aside)]))

    def _say(self, text: str, *, wrong: bool = False) -> None:
        if self._dialog.is_open:
            self._show(text, wrong)
        elif wrong:
            self._dialog.app.notify(sanitize(text), title="Nothing was saved", severity="error", markup=False)
