"""Cards in the place of other cards: drawn at any moment, and by a caller that is cancelled at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from textual.app import App, ComposeResult

from dlm_tui.app.cards import CardKey, FinishedCard
from dlm_tui.app.panes.answers import AnswersPane
from dlm_tui.app.panes.talk import TalkPane
from dlm_widgets.adapter_palette import Mark
from dlm_widgets.growing_text import GrowingText
from dlm_widgets.turn_card import ShownTurn, TurnHead

MARKS = {"tone": Mark("\u25cf", "red")}


class OnePane(App[None]):
    """An app with this pane alone."""

    def __init__(self, pane: TalkPane | AnswersPane) -> None:
        super().__init__()
        self.pane = pane

    def compose(self) -> ComposeResult:
        yield self.pane


async def show_turns(pane: TalkPane, names: Sequence[str]) -> None:
    head = TurnHead(1, "gated", {"tone": 1.0})
    await pane.show([ShownTurn(hash(name), name, f"{name}!", head) for name in names], MARKS)


async def show_answers(pane: AnswersPane, names: Sequence[str]) -> None:
    await pane.show_finished([FinishedCard(CardKey(name, 0), [(f"{name}!", None)], "") for name in names], MARKS)


KINDS = pytest.mark.parametrize(
    ("make", "show"),
    [
        pytest.param(TalkPane, show_turns, id="talk"),
        pytest.param(lambda: AnswersPane(columns=True, heat=False, card_width=20), show_answers, id="answers"),
    ],
)
Make = Callable[[], TalkPane | AnswersPane]
Show = Callable[[TalkPane | AnswersPane, Sequence[str]], Awaitable[None]]


async def written(pane: TalkPane | AnswersPane) -> list[str]:
    """What stands in the cards that are on the screen, once they are drawn."""
    assert list(pane.query("TurnCard, AnswerCard")) == pane.cards
    while pane.is_behind or any(card.is_behind for card in pane.cards):
        await asyncio.sleep(0)
    bodies = list(pane.query(GrowingText))
    for body in bodies:
        body._wrapped.wrap(20)
    return [body._wrapped.text for body in bodies]


@KINDS
async def test_a_card_may_be_asked_for_before_its_parts_are_there(make: Make, show: Show) -> None:
    pane = make()
    async with OnePane(pane).run_test():
        await show(pane, "ab")
        showing = asyncio.ensure_future(show(pane, "cd"))
        while not showing.done():
            pane.draw()
            await asyncio.sleep(0)
        await showing
        assert await written(pane) == ["c!", "d!"]


@KINDS
@pytest.mark.parametrize("steps", range(1, 12))
async def test_whoever_waits_for_cards_may_be_cancelled(make: Make, show: Show, steps: int) -> None:
    pane = make()
    async with OnePane(pane).run_test():
        await show(pane, "ab")
        showing = asyncio.ensure_future(show(pane, "cd"))
        for _ in range(steps):
            await asyncio.sleep(0)
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)
        pane.draw()
        await show(pane, "cde")
        assert await written(pane) == ["c!", "d!", "e!"]
