"""Named sets of prompts, kept in a file beside the document."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.document.prompt_sets import PromptSets, PromptSetsError
from dlm_tui.files import set_aside
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, literal, sanitize


class PromptSetsScreen(Dialog[str]):
    """Type a name and press the accept key to save the current prompt under it; Enter on a prompt takes it."""

    TITLE_TEXT = "Prompt sets"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Save prompt"),
        ("dialog.delete", "Remove"),
        ("dialog.close", "Close"),
    )

    def __init__(self, file: PromptSets, prompt: str) -> None:
        super().__init__()
        self._file, self._prompt = file, prompt.strip()
        self._sets: dict[str, list[str]] = {}
        self._rows: list[tuple[str, str | None]] = []
        self._readable = True
        self.on_used: Callable[[str], object] = lambda name: None

    def compose_body(self) -> ComposeResult:
        """The name to save under, and all sets."""
        yield LiteralStatic(assemble(("Kept in ", "dim"), self._file.path.name))
        yield LiteralStatic("Save the current prompt in the set named", classes="field")
        yield Input(value="saved", id="set-name")
        yield PickList(id="set-list", markup=False)
        yield LiteralStatic(classes="note", id="set-note")

    def on_mount(self) -> None:
        """Read the file."""
        super().on_mount()
        try:
            self._sets = self._file.load()
        except PromptSetsError as error:
            self._readable = False
            self.query_one("#set-note", LiteralStatic).show(literal(f"{error} Saving sets it aside.", "$error"))
        self._show()
        (self.query_one(PickList) if self._sets else self.query_one(Input)).focus()

    def _show(self) -> None:
        self._rows = []
        options = []
        for name, prompts in self._sets.items():
            self._rows.append((name, None))
            options.append(Option(assemble((sanitize(name, one_line=True), "bold"), (f"  {len(prompts)}", "dim"))))
            for prompt in prompts:
                self._rows.append((name, prompt))
                options.append(Option(literal(f"  {prompt[:300]}", one_line=True)))
        listing = self.query_one(PickList)
        listing.set_options(options)
        listing.display = bool(options)

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        name, prompt = self._rows[event.option_index]
        self.on_used(name)
        if prompt is not None:
            self.dismiss(prompt)

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Save the current prompt under the name."""
        name = self.query_one(Input).value.strip()
        note = self.query_one("#set-note", LiteralStatic)
        if not self._prompt or not name:
            note.show("There is no prompt to save." if name else "A set needs a name.")
            return
        prompts = self._sets.setdefault(name, [])
        if self._prompt not in prompts:
            prompts.append(self._prompt)
        if self._write(f"Saved in {name}."):
            self.on_used(name)

    def action_delete(self) -> None:
        """Remove the highlighted prompt, or the whole highlighted set if it is empty of prompts but one."""
        index = self.query_one(PickList).highlighted
        if index is None or index >= len(self._rows):
            return
        name, prompt = self._rows[index]
        if prompt is None:
            del self._sets[name]
        else:
            self._sets[name].remove(prompt)
            if not self._sets[name]:
                del self._sets[name]
        self._write("Removed.")

    def _write(self, done: str) -> bool:
        note = self.query_one("#set-note", LiteralStatic)
        if not self._readable:
            aside = set_aside(self._file.path)
            if aside is None:
                note.show("The file can neither be read nor be renamed, so nothing is saved.")
                return False
            self._readable, done = True, f"{done} What could not be read is now {aside.name}."
        try:
            self._file.save(self._sets)
        except OSError as error:
            note.show(literal(str(error), "$error"))
            return False
        note.show(literal(done))
        self._show()
        return True
