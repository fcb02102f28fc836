"""Answers, streamed side by side or one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from dlm_tui.app.keys import bindings_for
from dlm_tui.app.panes.pane import Pane
from dlm_tui.model.views import adapter_of
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.answer_card import AnswerCard
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.throttled import Throttled

HEAT_LEGEND = "tinted: more likely than under the base \u00b7 grey: less likely"


class AnswersPane(Pane, Throttled):
    """One card per view of the last request."""

    TITLE = "Answers"
    JUMP = "a"
    BINDINGS: ClassVar[list[BindingType]] = list(bindings_for("answers"))

    @dataclass
    class LabelPressed(Message):
        """This answer is to be the right one."""

        text: str

    @dataclass
    class TeachPressed(Message):
        """This answer is to become a section: `keep`, `better` or `edit`."""

        how: Literal["keep", "better", "edit"]

    @dataclass
    class SettingsChanged(Message):
        """Side by side, heat."""

        columns: bool
        heat: bool

    def __init__(self, *, columns: bool, heat: bool, card_width: int) -> None:
        super().__init__(id="answers")
        self.columns = columns
        self.heat = heat
        self._card_width = card_width
        self._cards: dict[str, AnswerCard] = {}
        self._shown = 0
        self._measured = False  # whether the answers that are shown came with their heat

    def compose(self) -> ComposeResult:
        """A hint while there is no answer, and the grid of cards."""
        yield LiteralStatic(id="answers-hint")
        yield Container(id="cards")
        yield LiteralStatic(id="heat-legend")

    def on_mount(self) -> None:
        """No answer yet."""
        super().on_mount()
        self._arrange()

    @property
    def cards(self) -> list[AnswerCard]:
        """All cards in order."""
        return list(self._cards.values())

    @property
    def answers(self) -> Sequence[AnswerCard]:
        """All cards in order."""
        return self.cards

    @property
    def current(self) -> AnswerCard | None:
        """The focused card, else the one that is shown alone, else the first."""
        focused = self.screen.focused
        if isinstance(focused, AnswerCard) and focused in self._cards.values():
            return focused
        return self.cards[min(self._shown, len(self._cards) - 1)] if self._cards else None

    def hint(self, content: str | Content) -> None:
        """What to do here while there is no answer."""
        self.query_one("#answers-hint", LiteralStatic).show(content)

    async def begin(self, views: Sequence[str], marks: Mapping[str, Mark]) -> None:
        """Make ready for these views; cards of the same views are reused."""
        self._shown = min(self._shown, max(0, len(views) - 1))
        if list(self._cards) != list(views):
            here = self.has_focus_within
            holder = self.query_one("#cards", Container)
            await holder.remove_children()
            elsewhere = self.screen.focused
            self._cards = {}
            for view in views:
                mark = marks.get(adapter_of(view) or "")
                self._cards[view] = AnswerCard(view, mark.glyph if mark else "", mark.color if mark else "")
            await holder.mount_all(self._cards.values())
            # whoever was reading goes on here, unless they have gone somewhere else meanwhile
            if here and self.screen.focused is elsewhere and self.current:
                self.screen.set_focus(self.current)
        self._measured = self.heat
        for card in self.cards:
            card.begin("waiting\u2026")
            card.set_heat(self.heat)
        self._arrange()

    def recolour(self, marks: Mapping[str, Mark], card_width: int) -> None:
        """The same answers in other colours, and in columns of at least so many cells."""
        self._card_width = card_width
        for view, card in self._cards.items():
            mark = marks.get(view)
            card.recolour(mark.glyph if mark else "", mark.color if mark else "")
        self._arrange()

    def reading(self, words: str) -> None:
        """How much of the prompt has been read; in the cards, as a small screen shows no pane title."""
        for card in self.cards:
            if card.busy and card.is_empty:
                card.note(words)
        self.ask()

    def add(self, view: str, text: str, heat: float | None) -> None:
        """A token of one view."""
        if card := self._cards.get(view):
            if card.is_empty:
                card.note("writing\u2026")
            card.add(text, heat)
            self.ask()

    def finish(self, view: str, text: str, note: str) -> None:
        """One view is complete."""
        if card := self._cards.get(view):
            card.finish(text, note)
            self.ask()

    def stop(self, note: str) -> None:
        """Whatever is still being written has ended."""
        for card in self.cards:
            if card.busy:
                card.halt(note)
        self.ask()

    def draw(self) -> None:
        """The cards that are in view and behind."""
        for card in self.cards:
            if card.display and card.is_behind:
                card.draw()

    def _arrange(self) -> None:
        cards = self.cards
        self.query_one("#answers-hint").display = not cards
        legend = self.query_one("#heat-legend", LiteralStatic)
        legend.show(Content.styled(HEAT_LEGEND if self._measured else f"Next answer: {HEAT_LEGEND}", "dim"))
        legend.display = self.heat and bool(cards)
        holder = self.query_one("#cards", Container)
        holder.display = bool(cards)
        side_by_side = self.columns and len(cards) > 1
        for index, card in enumerate(cards):
            card.display = side_by_side or index == self._shown
        per_row = max(1, min(len(cards), (self.size.width or 80) // self._card_width)) if side_by_side else 1
        rows = max(1, -(-len(cards) // per_row))
        holder.styles.grid_size_columns = per_row
        # In a small pane cards keep four lines each and the grid scrolls.
        holder.styles.grid_rows = "1fr" if (self.size.height or 24) >= rows * 4 else "4"
        where = "" if side_by_side or len(cards) < 2 else f"{self._shown + 1} of {len(cards)}, n for the next"
        self.retitle(where)
        self.ask()

    def on_resize(self) -> None:
        """Fit the columns to the width."""
        self._arrange()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """The answer that was gone to stays the current one when the focus leaves."""
        if event.widget in self.cards:
            self._shown = self.cards.index(event.widget)

    def focus_target(self) -> Widget | None:
        """The current card."""
        return self.current

    def action_toggle_heat(self) -> None:
        """Tint tokens."""
        self.heat = not self.heat
        for card in self.cards:
            card.set_heat(self.heat)
        self._arrange()
        self.post_message(self.SettingsChanged(self.columns, self.heat))

    def action_toggle_columns(self) -> None:
        """Side by side or one at a time."""
        self.columns = not self.columns
        self._arrange()
        self.post_message(self.SettingsChanged(self.columns, self.heat))

    def action_next_answer(self, step: int) -> None:
        """Another answer."""
        if not self._cards:
            return
        current = self.current
        index = self.cards.index(current) if current else 0
        self._shown = (index + step) % len(self._cards)
        self._arrange()
        self.screen.set_focus(self.cards[self._shown])

    def action_label_answer(self) -> None:
        """Offer the current answer as the right one."""
        if self.current:
            self.post_message(self.LabelPressed(self.current.text))

    def action_teach(self, how: Literal["keep", "better", "edit"]) -> None:
        """Make a section of the current answer."""
        if self.current:
            self.post_message(self.TeachPressed(how))

    def on_answer_card_chosen(self, event: AnswerCard.Chosen) -> None:
        """A double click does the same."""
        event.stop()
        self.post_message(self.LabelPressed(self._cards[event.view].text))
