"""Label a prompt: which adapter, optionally the right answer, and exactly what will be written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.widgets import OptionList, TextArea
from textual.widgets.option_list import Option

from dlm_tui.app.panes.prompt import PromptEditor
from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.document.append import preview_section
from dlm_tui.document.label import label_section
from dlm_tui.errors import DlmTuiError
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.pick_list import PickList
from dlm_widgets.sanitize import assemble, literal, sanitize


@dataclass(frozen=True)
class Label:
    """A section to append to the document whose bytes have this hash, and the answer in it as it was typed."""

    adapter: str
    type: str
    content: str
    expected_sha256: str
    answer: str


class LabelScreen(Dialog[Label]):
    """The diff below is what is appended, byte for byte."""

    TITLE_TEXT = "Label this prompt"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.accept", "Add and retrain"),
        ("dialog.close", "Cancel"),
    )

    def __init__(
        self,
        prompt: str,
        answer: str,
        names: Sequence[str],
        marks: Mapping[str, Mark],
        document: bytes,
        guess: str | None,
        why: str,
    ) -> None:
        super().__init__()
        self._prompt, self._answer = prompt, answer
        self._adapters, self._marks, self._document = list(names), marks, document
        self._guess, self._why = guess, why
        self._label: Label | None = None

    def compose_body(self) -> ComposeResult:
        """Adapter, answer, diff."""
        yield LiteralStatic(assemble(("Prompt  ", "dim"), sanitize(self._prompt, one_line=True)[:160]))
        offered = f" (offered: {self._guess}, {self._why})" if self._guess in self._adapters else ""
        yield LiteralStatic(literal(f"Belongs to{offered}", one_line=True), classes="field")
        options = [
            Option(assemble((f"{self._marks[name].glyph} {name}", self._marks[name].color))) for name in self._adapters
        ]
        yield PickList(*options, id="label-adapter", markup=False)
        yield LiteralStatic("Right answer (without one only the gate learns from the prompt)", classes="field")
        yield PromptEditor(self._answer, tab_behavior="focus", id="label-answer", soft_wrap=True)
        yield LiteralStatic("Will be added to the end of the document", classes="field")
        with VerticalScroll(id="label-diff-scroll"):
            yield LiteralStatic(id="label-diff")

    def on_mount(self) -> None:
        """Start at the adapter that is offered."""
        super().on_mount()
        listing = self.query_one(PickList)
        listing.highlighted = self._adapters.index(self._guess) if self._guess in self._adapters else 0
        listing.focus()
        self._show_diff()

    @on(OptionList.OptionHighlighted)
    @on(TextArea.Changed)
    def _show_diff(self) -> None:
        highlighted = self.query_one(PickList).highlighted
        if highlighted is None:
            return
        answer = self.query_one(PromptEditor).text.strip()
        kind, content = label_section(self._prompt, answer or None)
        diff = self.query_one("#label-diff", LiteralStatic)
        try:
            added = preview_section(self._document, type=kind, adapter=self._adapters[highlighted], content=content)
        except DlmTuiError as error:
            self._label = None
            diff.show(literal(str(error), "bold $error"))
            return
        sha256 = hashlib.sha256(self._document).hexdigest()
        self._label = Label(self._adapters[highlighted], kind, content, sha256, answer)
        lines = [literal(f"+ {line}", "$success") for line in added.strip("\n").split("\n")]
        diff.show(Content("\n").join(lines))

    @on(OptionList.OptionSelected)
    def _chosen(self) -> None:
        self.action_accept()

    def action_accept(self) -> None:
        """Add it."""
        if self._label is not None:
            self.dismiss(self._label)
