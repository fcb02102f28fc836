"""A conversation: its turns from the first to the one that is asked next."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widget import Widget

from dlm_tui.app.keys import bindings_for
from dlm_tui.app.panes.exchange import exchange
from dlm_tui.app.panes.pane import Pane
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.throttled import Throttled
from dlm_widgets.turn_card import ShownTurn, TurnCard


class Turns(VerticalScroll, can_focus=False, inherit_bindings=False):
    """Holds the turns; the arrows go from turn to turn and scroll that way."""


class TalkPane(Pane, Throttled):
    """The turns of one branch, one below the other; the marked one is where forks and other branches begin."""

    TITLE = "Conversation"
    JUMP = "c"
    BINDINGS: ClassVar[list[BindingType]] = list(bindings_for("talk"))

    @dataclass
    class TurnPressed(Message):
        """Something is to be done at the marked turn."""

        what: str
        turn: int | None

    @dataclass
    class TeachPressed(Message):
        """The marked turn is to become a section."""

        how: Literal["keep", "better", "edit", "label"]

    def __init__(self) -> None:
        super().__init__(id="talk")
        self._cards: list[TurnCard] = []
        self._marked: int | None = None
        self._changing = asyncio.Lock()

    def compose(self) -> ComposeResult:
        """What to do while there is no turn, the turns, and what is said about the next one."""
        yield LiteralStatic(id="talk-hint")
        yield Turns(id="turns")
        yield LiteralStatic(id="talk-next")

    @property
    def cards(self) -> list[TurnCard]:
        """All turns that are shown, the first one first."""
        return list(self._cards)

    @property
    def marked(self) -> int | None:
        """The id of the marked turn: the one that was gone to last, else the last one."""
        card = self._marked_card()
        return card.turn if card else None

    def _marked_card(self) -> TurnCard | None:
        focused = self.screen.focused
        found = next((card for card in self._cards if card is focused), None)
        found = found or next((card for card in self._cards if card.turn == self._marked), None)
        return found or (self._cards[-1] if self._cards else None)

    async def show(self, turns: Sequence[ShownTurn], marks: Mapping[str, Mark]) -> None:
        """These turns, and the last of them in sight; cards that stay the same are kept."""
        async with self._changing:
            await self._show(turns, marks)

    async def _show(self, turns: Sequence[ShownTurn], marks: Mapping[str, Mark]) -> None:
        kept = 0
        for card, turn in zip(self._cards, turns, strict=False):
            if card.turn != turn.turn:
                break
            card.retitle(turn.head, marks)
            if card.is_behind:
                card.draw()
            kept += 1
        made = [TurnCard(turn.turn, turn.prompt, turn.text, turn.head, marks) for turn in turns[kept:]]
        gone, self._cards = self._cards[kept:], [*self._cards[:kept], *made]
        here = self.has_focus_within
        self._marked = None
        await exchange(self, self.query_one(Turns), gone, made)
        if here and (gone or made) and self._cards:
            self.screen.set_focus(self._cards[-1])
        self._arrange()
        self._follow()

    def head_last(self, turn: ShownTurn) -> None:
        """The last of the turns is being answered: another word about it."""
        if self._cards and self._cards[-1].turn == turn.turn:
            self._cards[-1].retitle(turn.head)
            self.ask()

    def rename(self, turn: int, name: int) -> None:
        """A turn has another id now."""
        for card in self._cards:
            if card.turn == turn:
                card.turn = name
        self._marked = name if self._marked == turn else self._marked

    def add(self, piece: str) -> None:
        """More of the last turn's answer."""
        if self._cards:
            self._cards[-1].add(piece)
            self.ask()

    def finish(self, turn: ShownTurn) -> None:
        """The last turn's answer is complete."""
        if self._cards:
            self._cards[-1].finish(turn.turn, turn.text, turn.head)
            self.ask()

    def hint(self, content: str | Content) -> None:
        """What to do here while there is no turn."""
        self.query_one("#talk-hint", LiteralStatic).show(content)

    def next_words(self, content: str | Content) -> None:
        """What is said about the turn that is asked next; empty hides it."""
        line = self.query_one("#talk-next", LiteralStatic)
        line.show(content)
        line.display = bool(line.text)

    def draw(self) -> None:
        """The turns that changed; whoever reads further up stays there."""
        holder = self.query_one(Turns)
        follows = holder.scroll_offset.y >= holder.max_scroll_y - 1
        for card in self._cards:
            if card.is_behind:
                card.draw()
        if follows:
            self._follow()

    def _follow(self) -> None:
        holder = self.query_one(Turns)
        self.call_after_refresh(holder.scroll_end, animate=False)

    def _arrange(self) -> None:
        self.query_one("#talk-hint").display = not self._cards
        self.query_one("#turns").display = bool(self._cards)

    def on_mount(self) -> None:
        """No turn yet."""
        super().on_mount()
        self._arrange()
        self.next_words("")

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """The turn that was gone to stays the marked one when the focus leaves."""
        if isinstance(event.widget, TurnCard):
            self._marked = event.widget.turn

    def focus_target(self) -> Widget | None:
        """The marked turn."""
        return self._marked_card()

    def action_mark_turn(self, step: int) -> None:
        """Mark the turn before or after."""
        card = self._marked_card()
        if card is None:
            return
        place = min(len(self._cards) - 1, max(0, self._cards.index(card) + step))
        self.screen.set_focus(self._cards[place])

    def action_at_turn(self, what: str) -> None:
        """Do something at the marked turn."""
        self.post_message(self.TurnPressed(what, self.marked))

    def action_teach(self, how: Literal["keep", "better", "edit", "label"]) -> None:
        """Make a section of the marked turn."""
        self.post_message(self.TeachPressed(how))
