"""Two answers without their names; one key says which is better."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.containers import Container, VerticalScroll
from textual.message import Message

from dlm_tui.app.picks import Pair, Picked
from dlm_tui.app.progress import progress_words
from dlm_tui.app.screens.dialog import Dialog
from dlm_tui.engine.protocol import Progress
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.sanitize import assemble, literal, sanitize

_SIDE_BY_SIDE = 76  # columns


class Blind(VerticalScroll, can_focus=False):
    """One of the two answers; a click on it picks it."""

    class Pressed(Message):
        """This one is better."""

        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

    def __init__(self, number: int) -> None:
        super().__init__(id=f"blind-{number}", classes="blind")
        self._number = number

    def compose(self) -> ComposeResult:
        """The key and the text."""
        yield LiteralStatic(assemble((f"{self._number}", "bold $primary")))
        yield LiteralStatic(classes="blind--text")

    def show(self, text: str) -> None:
        """Another answer."""
        self.query_one(".blind--text", LiteralStatic).show(literal(text.strip()))
        self.scroll_home(animate=False)

    def on_click(self, event: events.Click) -> None:
        """Pick it."""
        event.stop()
        self.post_message(self.Pressed(self._number))


class PickScreen(Dialog[list[Picked]]):
    """Shows how far the drawing is, then pair after pair; leaving early keeps what was picked."""

    TITLE_TEXT = "Which answer is better?"
    HINTS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("dialog.first", "First"),
        ("dialog.second", "Second"),
        ("dialog.skip", "Neither"),
        ("dialog.accept", "Done"),
        ("dialog.close", "Cancel"),
    )

    def __init__(self) -> None:
        super().__init__()
        self._pairs: list[Pair] = []
        self._at = 0
        self._picked: list[Picked] = []

    def compose_body(self) -> ComposeResult:
        """Prompt, how far, the two answers."""
        yield LiteralStatic(id="pick-prompt")
        yield LiteralStatic(id="pick-note", classes="note")
        with Container(id="pick-answers"):
            yield Blind(1)
            yield Blind(2)

    def on_mount(self) -> None:
        """Nothing to pick yet."""
        super().on_mount()
        self.query_one("#pick-answers").display = False

    def on_resize(self) -> None:
        """Side by side where there is room."""
        super().on_resize()
        answers = self.query_one("#pick-answers", Container)
        beside = min(92, round(self.app.size.width * 0.94)) >= _SIDE_BY_SIDE
        answers.styles.layout = "horizontal" if beside else "vertical"
        for blind in self.query(Blind):
            blind.styles.width = "1fr" if beside else "100%"
            blind.styles.height = max(3, min(12, self.app.size.height - 12) // (1 if beside else 2))

    def show_progress(self, event: Progress) -> None:
        """How far the drawing is."""
        self.query_one("#pick-note", LiteralStatic).show(progress_words(event))

    def show_problem(self, text: str) -> None:
        """Why there is nothing to pick."""
        self.query_one("#pick-note", LiteralStatic).show(literal(text, "$error"))

    def show_pairs(self, pairs: Sequence[Pair]) -> None:
        """Begin to pick."""
        if not pairs:
            self.show_problem("All answers to a prompt are the same; draw more of them, or at a higher temperature.")
            return
        self._pairs = list(pairs)
        self.query_one("#pick-answers").display = True
        self.on_resize()
        self._show()

    def _show(self) -> None:
        if self._at == len(self._pairs):
            self.dismiss(self._picked)
            return
        pair = self._pairs[self._at]
        prompt = sanitize(pair.first.prompt, one_line=True)[:300]
        self.query_one("#pick-prompt", LiteralStatic).show(assemble(("Prompt  ", "dim"), prompt))
        note = f"pair {self._at + 1} of {len(self._pairs)} \u00b7 {len(self._picked)} picked"
        self.query_one("#pick-note", LiteralStatic).show(note)
        first, second = self.query(Blind)
        first.show(pair.first.text)
        second.show(pair.second.text)

    def on_blind_pressed(self, event: Blind.Pressed) -> None:
        """A click on an answer."""
        self.action_pick(event.number)

    def action_pick(self, number: int) -> None:
        """This one is better; 0 is neither."""
        if self._at >= len(self._pairs):
            return
        pair = self._pairs[self._at]
        if number == 1:
            self._picked.append(Picked(pair.first, pair.second))
        elif number == 2:
            self._picked.append(Picked(pair.second, pair.first))
        self._at += 1
        self._show()

    def action_accept(self) -> None:
        """Enough picked."""
        self.dismiss(self._picked)
