"""A sweep: one adapter from -2 to 2, everything else as on the desk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.content import Content

from dlm_tui.app.progress import progress_words
from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.engine.protocol import Progress
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.bars import bar_text
from dlm_widgets.literal_static import ThrottledStatic
from dlm_widgets.sanitize import assemble, fit


class SweepScreen(Dialog[None]):
    """Coefficient, KL to the base in nats, the answer."""

    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (("dialog.close", "Close"),)

    def __init__(self, name: str, mark: Mark, steps: Sequence[float]) -> None:
        super().__init__()
        self._adapter, self._mark = name, mark
        self._texts = {f"{step:+.1f}": "" for step in steps}
        self._kl: dict[str, float] = {}
        self._note, self._failed = "measuring\u2026", False

    def compose_body(self) -> ComposeResult:
        """One growing text."""
        yield ThrottledStatic(self._rows, id="sweep")
        yield ThrottledStatic(lambda: fit(self._note, 88).rstrip(), classes="note", id="sweep-note")

    def on_mount(self) -> None:
        """Show the steps."""
        super().on_mount()
        self.retitle(f"Sweep of {self._adapter}: coefficient, KL to the base (nats), answer")
        self._ask()

    def _ask(self) -> None:
        for line in self.query(ThrottledStatic):
            line.ask()

    def add_text(self, view: str, text: str) -> None:
        """A token of one step."""
        self._texts[view] = self._texts.get(view, "") + text
        if not self._failed:
            self._note = "writing\u2026"
        self._ask()

    def set_scores(self, kl: Mapping[str, float]) -> None:
        """KL of every step."""
        self._kl = dict(kl)
        self._note = "writing\u2026"
        self._ask()

    def show_progress(self, event: Progress) -> None:
        """How far the measuring or the reading of the prompt is."""
        self._note = progress_words(event)
        self._ask()

    def set_problem(self, text: str) -> None:
        """What went wrong."""
        self._note, self._failed = text, True
        self._ask()

    def set_done(self) -> None:
        """Everything is here."""
        if not self._failed:
            self._note = "0 leaves the adapter out, 1 is the adapter as trained, negative turns it around."
        self._ask()

    def _rows(self) -> Content:
        top = max([1e-9, *(value for value in self._kl.values() if value == value)])
        rows: list[Content] = []
        for view, text in self._texts.items():
            kl = self._kl.get(view)
            bar = bar_text(kl / top, 8) if kl is not None else " " * 8
            shown = f"{kl:6.2f}" if kl is not None else "     \u2026"
            rows.append(
                assemble((f"{view} ", f"bold {self._mark.color}"), shown, " ", (bar, self._mark.color), " ", text)
            )
        return Content("\n").join(rows)
