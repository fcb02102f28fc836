"""Named sets of prompts, kept in a file beside the document."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from dlm_tui.app.screens.beside import FileBeside
from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.app.screens.expect import ExpectScreen
from dlm_tui.app.screens.set_file import SetFileScreen
from dlm_tui.counting import counted
from dlm_tui.document.expectations import Expectation
from dlm_tui.document.prompt_set_files import cases_csv, cases_jsonl
from dlm_tui.document.prompt_sets import PromptCase, PromptSets, Sets
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, literal, sanitize


class PromptSetsScreen(Dialog[str]):
    """Type a name and press the accept key to save the current prompt under it; Enter on a prompt takes it."""

    TITLE_TEXT = "Prompt sets"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Save prompt"),
        ("dialog.run", "Run"),
        ("dialog.expect", "Expect"),
        ("dialog.file", "File"),
        ("dialog.delete", "Remove"),
        ("dialog.close", "Close"),
    )

    def __init__(self, file: PromptSets, prompt: str) -> None:
        super().__init__()
        self._file, self._prompt = file, prompt.strip()
        self._held = FileBeside(self, file.cases, file.update, self._changed)
        self._rows: list[tuple[str, PromptCase | None]] = []
        self.on_used: Callable[[str], object] = lambda name: None
        self.on_run: Callable[[str], object] = lambda name: None

    @property
    def _sets(self) -> Sets:
        return self._held.items

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
        if unread := self._held.read():
            self._note(unread, wrong=True)
        self._show()
        (self.query_one(PickList) if self._sets else self.query_one(Input)).focus()

    def _show(self) -> None:
        self._rows = []
        options = []
        for name, cases in self._sets.items():
            self._rows.append((name, None))
            options.append(Option(assemble((sanitize(name, one_line=True), "bold"), (f"  {len(cases)}", "dim"))))
            for case in cases:
                self._rows.append((name, case))
                expected = "  \u2192 " + " \u00b7 ".join(map(str, case.expect)) if case.expect else ""
                shown = sanitize(f"  {case.prompt[:300]}", one_line=True), (sanitize(expected, one_line=True), "dim")
                options.append(Option(assemble(*shown)))
        listing = self.query_one(PickList)
        before = listing.highlighted
        listing.set_options(options)
        listing.display = bool(options)
        if before is not None and options:
            listing.highlighted = min(before, len(options) - 1)

    @on(OptionList.OptionSelected)
    def _chosen(self, event: OptionList.OptionSelected) -> None:
        name, case = self._rows[event.option_index]
        self.on_used(name)
        if case is not None:
            self.dismiss(case.prompt)

    @on(Input.Submitted)
    def _submitted(self) -> None:
        self.action_accept()

    @property
    def _highlighted(self) -> tuple[str, PromptCase | None] | None:
        index = self.query_one(PickList).highlighted
        return self._rows[index] if index is not None and index < len(self._rows) else None

    def action_accept(self) -> None:
        """Save the current prompt under the name."""
        name = self.query_one(Input).value.strip()
        if not self._prompt or not name:
            self._note("There is no prompt to save." if name else "A set needs a name.")
            return
        prompt = self._prompt

        def add(sets: Sets) -> None:
            cases = sets.setdefault(name, [])
            if prompt not in [case.prompt for case in cases]:
                cases.append(PromptCase(prompt))

        self._held.change(add, f"Saved in {name}.", lambda: self.on_used(name))

    def action_run(self) -> None:
        """Run the highlighted set, or the first one."""
        if not self._sets:
            self._note("There is no set to run yet: save a prompt first, or read a file.")
            return
        name = self._highlighted[0] if self._highlighted else next(iter(self._sets))
        self.on_used(name)
        self.dismiss(None)
        self.on_run(name)

    def action_expect(self) -> None:
        """Say what is expected of the answer to the highlighted prompt."""
        if self._highlighted is None or self._highlighted[1] is None:
            self._note("Choose a prompt of a set first.")
            return
        name, case = self._highlighted[0], self._highlighted[1]

        def chosen(expect: tuple[Expectation, ...] | None) -> None:
            if expect is None:
                return

            def keep(sets: Sets) -> None:
                cases = sets.get(name, [])
                cases[:] = [PromptCase(one.prompt, expect) if one.prompt == case.prompt else one for one in cases]

            self._held.change(keep, "Kept what is expected.")

        self.app.push_screen(ExpectScreen(case), chosen)

    def action_file(self) -> None:
        """Read a set from a file, or write the highlighted one into a file."""
        name = self._highlighted[0] if self._highlighted else self.query_one(Input).value.strip() or "saved"
        cases = self._sets.get(name, [])

        def read(found: list[PromptCase] | None) -> None:
            if found is None:
                return
            known = {case.prompt for case in found}

            def take_in(sets: Sets) -> None:
                sets[name] = [case for case in sets.get(name, []) if case.prompt not in known] + found

            done = f"{counted(len(found), 'prompt')} read into {name}."
            self._held.change(take_in, done, lambda: self.on_used(name))

        forms = {".csv": lambda: cases_csv(cases), ".jsonl": lambda: cases_jsonl(cases)}
        folder = self._file.path.parent
        self.app.push_screen(SetFileScreen(f"The set {name}", folder, f"{name}.csv", forms if cases else {}), read)

    def action_delete(self) -> None:
        """Remove the highlighted prompt, or the whole highlighted set if it is empty of prompts but one."""
        if self._highlighted is None:
            return
        name, case = self._highlighted

        def remove(sets: Sets) -> None:
            left = [one for one in sets.get(name, []) if case is not None and one.prompt != case.prompt]
            if left:
                sets[name] = left
            else:
                sets.pop(name, None)

        self._held.change(remove, "Removed.")

    def _note(self, text: str, *, wrong: bool = False) -> None:
        self.query_one("#set-note", LiteralStatic).show(literal(text, "$error" if wrong else ""))

    def _changed(self, text: str, wrong: bool) -> None:
        self._note(text, wrong=wrong)
        self._show()
