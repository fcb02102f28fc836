"""What is expected of the answer to a prompt."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.widgets import TextArea

from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.document.expectations import KINDS, Expectation, read_expectation
from dlm_tui.document.prompt_sets import PromptCase
from dlm_tui.errors import DlmTuiError
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.literal_text_area import LiteralTextArea
from dlm_widgets.sanitize import assemble, literal, sanitize


class ExpectScreen(Dialog[tuple[Expectation, ...]]):
    """One expectation a line; what is wrong with a line is said while it is typed."""

    TITLE_TEXT = "What is expected of the answer"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.accept", "Keep it"), ("dialog.close", "Cancel"))

    def __init__(self, case: PromptCase) -> None:
        super().__init__()
        self._case = case

    def compose_body(self) -> ComposeResult:
        """The prompt, the expectations, and what is wrong."""
        yield LiteralStatic(assemble(("Prompt  ", "dim"), sanitize(self._case.prompt, one_line=True)[:160]))
        yield LiteralStatic("One a line, such as contains: key, or adapter: NAME", classes="field")
        yield LiteralTextArea("\n".join(map(str, self._case.expect)), tab_behavior="focus", id="expect-text")
        kinds = ", ".join(KINDS)
        yield LiteralStatic(f"{kinds}; not- in front of any; without one the answer equals the line", classes="note")
        yield LiteralStatic(id="expect-problem")

    def on_mount(self) -> None:
        """Start behind what is there."""
        super().on_mount()
        text = self.query_one(TextArea)
        text.focus()
        text.move_cursor(text.document.end)

    def _read(self) -> tuple[Expectation, ...]:
        return tuple(read_expectation(line) for line in self.query_one(TextArea).text.splitlines() if line.strip())

    @on(TextArea.Changed)
    def _check(self) -> bool:
        problem = self.query_one("#expect-problem", LiteralStatic)
        try:
            self._read()
        except DlmTuiError as error:
            problem.show(literal(str(error), "$error"))
            return False
        problem.show("")
        return True

    def action_accept(self) -> None:
        """Keep them, if all can be read."""
        if self._check():
            self.dismiss(self._read())
