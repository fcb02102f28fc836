"""Answers, streamed side by side or one at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.content import Content
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Input

from dlm_tui.app.cards import CardKey, FinishedCard
from dlm_tui.app.keys import bindings_for
from dlm_tui.app.panes.exchange import exchange
from dlm_tui.app.panes.find_bar import FindBar
from dlm_tui.app.panes.pane import Pane
from dlm_tui.model.views import adapter_of
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.answer_card import AnswerCard
from dlm_widgets.key_bar import KeyBar
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.throttled import Throttled

HEAT_LEGEND = "tinted: more likely than under the base \u00b7 grey: less likely"


class AnswersPane(Pane, Throttled):
    """One card per answer: of the last request, or of one before it that is looked at again."""

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
        self._cards: dict[CardKey, AnswerCard] = {}  # those that are being written, by what was asked
        self._beside: list[AnswerCard] = []  # laid beside them
        self._shown = 0
        self._found: list[tuple[AnswerCard, int]] = []  # every place of what is looked for
        self._at: int | None = None  # the one that was gone to
        self._measured = False  # whether the answers that are shown came with their heat
        self._took = ""  # how long they took

    def compose(self) -> ComposeResult:
        """A hint while there is no answer, and the grid of cards."""
        yield LiteralStatic(id="answers-hint")
        yield Container(id="cards")
        yield FindBar(id="find")
        yield LiteralStatic(id="heat-legend")

    def on_mount(self) -> None:
        """No answer yet."""
        super().on_mount()
        self.find_bar.display = False
        self._arrange()

    @property
    def cards(self) -> list[AnswerCard]:
        """All cards in order."""
        return [*self._cards.values(), *self._beside]

    @property
    def current_index(self) -> int | None:
        """The place of the current card."""
        current = self.current
        return self.cards.index(current) if current is not None else None

    @property
    def answers(self) -> Sequence[AnswerCard]:
        """All cards in order."""
        return self.cards

    @property
    def current(self) -> AnswerCard | None:
        """The focused card, else the one that is shown alone, else the first."""
        focused = self.screen.focused
        cards = self.cards
        if isinstance(focused, AnswerCard) and focused in cards:
            return focused
        return cards[min(self._shown, len(cards) - 1)] if cards else None

    def hint(self, content: str | Content) -> None:
        """What to do here while there is no answer."""
        self.query_one("#answers-hint", LiteralStatic).show(content)

    async def begin(self, keys: Sequence[CardKey], marks: Mapping[str, Mark]) -> None:
        """Make ready for these answers; cards of the same ones are reused."""
        await self._make_cards(keys, marks)
        self._measured = self.heat
        for card in self.cards:
            card.begin("waiting\u2026")
            card.set_heat(self.heat)
        self._cards_changed()

    async def show_finished(self, cards: Sequence[FinishedCard], marks: Mapping[str, Mark]) -> None:
        """Answers that were given before, in place of what is there."""
        await self._make_cards([card.key for card in cards], marks)
        self._measured = any(heat is not None for card in cards for _, heat in card.pieces)
        for card, finished in zip(self.cards, cards, strict=True):
            card.show_finished(finished.pieces, finished.note)
            card.set_heat(self.heat)
        self._cards_changed()

    async def lay_beside(self, card: FinishedCard, marks: Mapping[str, Mark]) -> None:
        """One more answer behind the others."""
        beside = self._new_card(card.key, marks, numbered=card.key.sample > 0)
        self._beside.append(beside)
        await self.query_one("#cards", Container).mount(beside)
        beside.show_finished(card.pieces, card.note)
        beside.set_heat(self.heat)
        self._cards_changed()

    def took(self, words: str) -> None:
        """How long the answers took that are shown now."""
        self._took = words
        self._arrange()

    def _cards_changed(self) -> None:
        """Other answers: arranged, and looked through if text is looked for."""
        self._took = ""
        self._arrange()
        if self.finding:
            self._look()

    async def _make_cards(self, keys: Sequence[CardKey], marks: Mapping[str, Mark]) -> None:
        self._shown = min(self._shown, max(0, len(keys) - 1))
        if list(self._cards) == list(keys) and not self._beside:
            return
        here = self.has_focus_within
        holder = self.query_one("#cards", Container)
        several = any(key.sample for key in keys)
        gone, self._beside = self.cards, []
        self._cards = {key: self._new_card(key, marks, numbered=several) for key in keys}
        exchanged = exchange(self, holder, gone, self.cards)
        elsewhere = self.screen.focused
        await exchanged
        # whoever was reading goes on here, unless they have gone somewhere else meanwhile
        if here and self.screen.focused is elsewhere and self.current:
            self.screen.set_focus(self.current)

    def _new_card(self, key: CardKey, marks: Mapping[str, Mark], *, numbered: bool) -> AnswerCard:
        mark = marks.get(adapter_of(key.view) or "")
        number = key.sample + 1 if numbered else None
        return AnswerCard(key.view, mark.glyph if mark else "", mark.color if mark else "", number)

    def recolour(self, marks: Mapping[str, Mark], card_width: int) -> None:
        """The same answers in other colours, and in columns of at least so many cells."""
        self._card_width = card_width
        for card in self.cards:
            mark = marks.get(adapter_of(card.view) or "")
            card.recolour(mark.glyph if mark else "", mark.color if mark else "")
        self._arrange()

    def reading(self, words: str) -> None:
        """How much of the prompt has been read; in the cards, as a small screen shows no pane title."""
        for card in self.cards:
            if card.busy and card.is_empty:
                card.note(words)
        self.ask()

    def add(self, key: CardKey, text: str, heat: float | None) -> None:
        """A token of one answer."""
        if card := self._cards.get(key):
            if card.is_empty:
                card.note("writing\u2026")
            card.add(text, heat)
            self.ask()

    def finish(self, key: CardKey, text: str, note: str) -> None:
        """One answer is complete."""
        if card := self._cards.get(key):
            card.finish(text, note)
            if self.finding:
                self._look()
            self.ask()

    def stop(self, note: str) -> None:
        """Whatever is still being written has ended."""
        for card in self.cards:
            if card.busy:
                card.halt(note)
        self.ask()

    def mark_past(self, words: Sequence[str]) -> None:
        """For each card why it is no answer of now, else an empty text."""
        for card, word in zip(self.cards, words, strict=False):
            card.mark_past(word)
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
        self.retitle(where, self._took)
        self.ask()

    def on_resize(self) -> None:
        """Fit the columns to the width."""
        self._arrange()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """The answer that was gone to stays the current one when the focus leaves."""
        if event.widget in self.cards:
            self._shown = self.cards.index(event.widget)

    def focus_target(self) -> Widget | None:
        """Where text is looked for, else the current card."""
        return self.find_bar.field if self.finding else self.current

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
        index = self.current_index
        if index is None:
            return
        self._shown = (index + step) % len(self.cards)
        self._arrange()
        self.screen.set_focus(self.cards[self._shown])

    # ---- finding text ----------------------------------------------------------------------------------------------

    @property
    def find_bar(self) -> FindBar:
        """The line in which text is looked for."""
        return self.query_one(FindBar)

    @property
    def finding(self) -> bool:
        """Whether text is looked for."""
        return bool(self.find_bar.display)

    def action_find(self) -> None:
        """Look for text in the answers that are shown."""
        self.find_bar.display = True
        self.find_bar.field.focus()

    @on(Input.Changed, "#find-text")
    def _find(self, event: Input.Changed) -> None:
        event.stop()
        self._look()

    def _look(self) -> None:
        """Mark the text in every answer, and go to its first place."""
        text = self.find_bar.field.value if self.finding else ""
        self._found = [(card, number) for card in self.cards for number in range(card.find(text))]
        self._go(0 if self._found else None)

    def _go(self, at: int | None) -> None:
        self._at = at
        here = self._found[at] if at is not None else None
        for card in self.cards:
            card.go_to(here[1] if here is not None and here[0] is card else None)
        if here is not None and not here[0].display:
            self._shown = self.cards.index(here[0])
            self._arrange()
        if here is not None:
            here[0].scroll_visible(animate=False)
        self.find_bar.count(at, len(self._found))
        self.ask()

    @on(FindBar.Stepped)
    def _stepped(self, event: FindBar.Stepped) -> None:
        self.action_find_step(event.way)

    @on(FindBar.Ended)
    def _ended(self) -> None:
        self.action_find_end()

    @on(KeyBar.Pressed)
    async def _find_key(self, event: KeyBar.Pressed) -> None:
        """Its keys act here, whatever has the focus."""
        event.stop()
        await self.run_action(event.action)

    def action_find_step(self, way: int) -> None:
        """Go to the next or the previous place; after the last comes the first."""
        if self._found:
            self._go((0 if self._at is None else self._at + way) % len(self._found))

    def action_find_end(self) -> None:
        """Look for nothing any more; the answer that was gone to keeps the focus."""
        here = self._found[self._at][0] if self._at is not None else self.current
        self.find_bar.display = False
        self._look()
        if here is not None:
            self.screen.set_focus(here)

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
        self.post_message(self.LabelPressed(event.card.text))
