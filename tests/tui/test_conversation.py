"""A conversation on the screen: follow-ups, forks, branches, the held mix, by keys and by the mouse, over restarts."""

from __future__ import annotations

import json

import pytest
from syrupy.assertion import SnapshotAssertion
from textual.widgets import Input

from dlm_tui.app.keys import BY_ID
from dlm_tui.app.screens.confirm import ConfirmScreen
from dlm_tui.app.screens.conversations import ConversationsScreen
from dlm_tui.engine.protocol import Failed, Generate
from dlm_tui.store import Turn
from dlm_widgets.literal_static import LiteralStatic
from dlm_widgets.turn_card import TurnCard
from tests.tui import mouse
from tests.tui.conftest import Bench, Opener

ONE, TWO, THREE, OTHER = "what is the tide", "say please", "trim it", "more simply"


def said(view: str) -> str:
    return "".join(f"{view} word{n} " for n in range(6))


def asked(bench: Bench) -> list[Generate]:
    return [request for request in bench.world.requests if isinstance(request, Generate)]


def prompts(bench: Bench) -> list[str]:
    return [card.prompt for card in bench.screen.talk.cards]


async def type_prompt(bench: Bench, text: str) -> None:
    bench.panes.focus_pane("prompt")
    bench.screen.prompt_pane.set_text("")
    await bench.type(text)
    await bench.until(lambda: bench.routing.routed and bench.routing.routed.prompt == text, "routed")


async def turn_is_kept(bench: Bench, count: int) -> None:
    """Until so many turns are shown, whole and kept."""
    talk = bench.controllers.conversing

    def whole() -> bool:
        cards = bench.screen.talk.cards
        return len(cards) == count and not talk.running and all(card.turn > 0 and not card.is_behind for card in cards)

    await bench.until(whole, f"{count} turns")
    await bench.idle()


async def follow(bench: Bench, text: str, count: int) -> None:
    await type_prompt(bench, text)
    await bench.press("alt+u")
    await turn_is_kept(bench, count)


async def three_turns(bench: Bench) -> None:
    await follow(bench, ONE, 1)
    await follow(bench, TWO, 2)
    await follow(bench, THREE, 3)


async def fork_at_the_second(bench: Bench) -> None:
    """Back to the second turn, asked otherwise."""
    bench.panes.focus_pane("talk")
    await bench.press("up", "f")
    await bench.until(lambda: bench.screen.prompt_pane.text == TWO and prompts(bench) == [ONE], "forked")
    await bench.idle()
    assert "alt+u asks in the place of turn 2" in str(bench.screen.query_one("#talk-next", LiteralStatic).text)
    await follow(bench, OTHER, 2)


async def test_three_turns_and_a_fork_by_keys(workbench: Opener) -> None:
    async with workbench() as bench:
        await three_turns(bench)
        assert bench.screen.prompt_pane.text == "", "what was asked stands in the conversation"
        assert [request.before for request in asked(bench)] == [
            [],
            [Turn(prompt=ONE, answer=said("gated"))],
            [Turn(prompt=ONE, answer=said("gated")), Turn(prompt=TWO, answer=said("gated"))],
        ]
        mixes = [turn.mix for turn in bench.controllers.conversing.turns]
        assert len({tuple(mix.values()) for mix in mixes}) == 3, "each turn is routed from its own words"
        await fork_at_the_second(bench)
        assert asked(bench)[-1].before == [Turn(prompt=ONE, answer=said("gated"))]
        assert "\u20392/2\u203a" in bench.text
        bench.panes.focus_pane("talk")
        await bench.press("n")
        await bench.until(lambda: prompts(bench) == [ONE, TWO, THREE], "the other branch, to its end")
        await bench.press("up", "left")
        await bench.until(lambda: prompts(bench) == [ONE, OTHER], "and back")
        assert len(bench.context.archive.of_conversation(bench.controllers.conversing.turns[0].conversation or "")) == 4


async def test_three_turns_and_a_fork_with_the_mouse(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        for count, text in enumerate((ONE, TWO, THREE), start=1):
            await type_prompt(bench, text)
            await mouse.press_button(bench, "follow_up")
            await turn_is_kept(bench, count)
        second = bench.screen.talk.cards[1]
        await mouse.click(bench, (second.region.x + 3, second.region.y), second.query_one(".turn--head", LiteralStatic))
        await mouse.press_button(bench, "at_turn('fork')")
        await bench.until(lambda: bench.screen.prompt_pane.text == TWO and prompts(bench) == [ONE], "forked")
        await type_prompt(bench, OTHER)
        await mouse.press_button(bench, "follow_up")
        await turn_is_kept(bench, 2)
        await mouse.press_button(bench, "at_turn('next')")
        await bench.until(lambda: prompts(bench) == [ONE, TWO, THREE], "the other branch")
        await mouse.by_palette(bench, BY_ID["talk.show"])
        await bench.until(lambda: bench.panes.is_shown("answers"), "the answers again")


async def test_a_restart_goes_on_where_it_was(workbench: Opener) -> None:
    async with workbench() as bench:
        await three_turns(bench)
        await fork_at_the_second(bench)
        await bench.press("escape")
        path = bench.path
    async with workbench(path=path) as bench:
        await bench.until(lambda: prompts(bench) == [ONE, OTHER], "found again")
        assert bench.panes.is_shown("talk"), "it was in front"
        await follow(bench, THREE, 3)
        assert [turn.prompt for turn in asked(bench)[-1].before] == [ONE, OTHER]


async def test_a_follow_up_of_an_answer_begins_with_it(workbench: Opener) -> None:
    async with workbench() as bench:
        await type_prompt(bench, ONE)
        await bench.press("ctrl+o")
        await bench.until(lambda: len(bench.controllers.shown.finished) == 5, "compared")
        await bench.idle()
        bench.screen.answers.cards[2].focus()
        await bench.until(lambda: bench.controllers.shown.current is not None, "an answer")
        chosen = bench.controllers.shown.current
        assert chosen is not None and chosen.view == "knowledge"
        await follow(bench, TWO, 2)
        assert asked(bench)[-1].before == [Turn(prompt=ONE, answer=said("knowledge"))]
        assert [turn.view for turn in bench.controllers.conversing.turns] == ["knowledge", "gated"]
        # another question begins another conversation, and this one is found again
        await type_prompt(bench, THREE)
        await bench.press("ctrl+g")
        await bench.until(lambda: bench.panes.is_shown("answers") and not bench.controllers.generation.running, "alone")
        await bench.idle()
        await follow(bench, OTHER, 2)
        assert [turn.prompt for turn in bench.controllers.conversing.turns] == [THREE, OTHER]
        await bench.press("alt+c")
        await bench.until(lambda: isinstance(bench.app.screen, ConversationsScreen), "conversations")
        await bench.press("down", "ctrl+g")
        await bench.until(lambda: prompts(bench) == [ONE, TWO], "opened")


async def test_each_turn_may_be_answered_under_another_view_by_keys(workbench: Opener) -> None:
    async with workbench() as bench:
        await follow(bench, ONE, 1)
        assert "Next under" not in bench.text
        await bench.press("escape")
        bench.panes.focus_pane("desk")
        await bench.press("s")
        await bench.until(lambda: "Next under knowledge \u25cf\u2588" in bench.text, "said before it is asked")
        await follow(bench, TWO, 2)
        bench.panes.focus_pane("desk")
        await bench.press("r", "x")
        await bench.until(lambda: "Next under uniform" in bench.text, "uniform")
        await follow(bench, THREE, 3)
        bench.panes.focus_pane("desk")
        await bench.press("r")
        await bench.until(lambda: "Next under" not in bench.text, "the gate again")
        await follow(bench, OTHER, 4)
        views = [turn.view for turn in bench.controllers.conversing.turns]
        assert views == ["gated", "knowledge", "uniform", "gated"]


async def test_each_turn_may_be_answered_under_another_view_with_the_mouse(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await follow(bench, ONE, 1)
        await mouse.press_button(bench, "mix_mode")
        await bench.until(lambda: "Next under uniform" in bench.text, "uniform")
        await type_prompt(bench, TWO)
        await mouse.press_button(bench, "follow_up")
        await turn_is_kept(bench, 2)
        assert [turn.view for turn in bench.controllers.conversing.turns] == ["gated", "uniform"]


async def test_the_keys_of_a_turn_are_in_the_footer_and_first_in_the_help(workbench: Opener) -> None:
    async with workbench() as bench:
        await follow(bench, ONE, 1)
        bench.panes.focus_pane("talk")
        await bench.until(lambda: "K Keep   B Better   l Label   e Edit" in bench.text.splitlines()[-1], "the footer")
        await bench.press("f1")
        await bench.until(lambda: "Here, in the conversation" in bench.text, "help")
        here = bench.text.partition("Here, in the conversation")[2]
        for key in ("talk.fork", "talk.hold"):
            assert key in here, "at once, without scrolling"


async def test_a_moved_mix_costs_another_run_and_holding_it_does_not(workbench: Opener) -> None:
    async with workbench() as bench:
        await follow(bench, ONE, 1)
        await follow(bench, TWO, 2)
        first, second = bench.controllers.conversing.turns
        assert second.run_tokens == second.prompt_tokens == 18
        assert any("whole history was run again: 18 tokens, 0.2 s" in toast for toast in bench.toasts)
        bench.app.clear_notifications()
        await bench.until(lambda: "18 of 18 tokens run, 0.2 s" in bench.text, "its cost stands beside it")
        bench.panes.focus_pane("talk")
        await bench.press("o")
        await bench.until(lambda: "Held:" in bench.text, "held")
        await follow(bench, THREE, 3)
        third = bench.controllers.conversing.turns[-1]
        assert asked(bench)[-1].views[0].mix == first.mix == third.mix and third.view == "held"
        await follow(bench, OTHER, 4)
        fourth = bench.controllers.conversing.turns[-1]
        assert fourth.run_tokens == 2 < fourth.prompt_tokens
        bench.panes.focus_pane("talk")
        await bench.press("o")
        await bench.until(lambda: "Held:" not in bench.text, "let go")
        await follow(bench, ONE, 5)
        assert bench.controllers.conversing.turns[-1].view == "gated"


async def test_a_turn_keeps_the_names_that_it_was_asked_under(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await type_prompt(bench, ONE)
        for name, value in (("knowledge", 1.0), ("tone", 0.0), ("style", 0.0)):
            bench.controllers.mixing.move_fader(name, value)
        await bench.press("alt+u")
        await turn_is_kept(bench, 1)
        (turn,) = bench.controllers.conversing.turns
        assert turn.mix["knowledge"] == 1.0 and "1 custom \u25cf\u2588\u25c6\u2581\u25b2\u2581" in bench.text
        bench.path.write_text(bench.path.read_text().replace("knowledge", "facts"))
        gone = "\u25cf\u2581\u25c6\u2581\u25b2\u2581 \u25cb\u2588 knowledge"
        await bench.until(lambda: f"1 custom {gone}" in bench.text, "renamed in the document")
        assert "gone: knowledge" in bench.text
        bench.panes.focus_pane("talk")
        await bench.press("o")
        await bench.until(lambda: f"Held: {gone}  gone: knowledge; o lets" in bench.text, "held")


async def test_turns_that_no_longer_fit_are_said(workbench: Opener) -> None:
    async with workbench() as bench:
        await follow(bench, ONE, 1)
        bench.world.dropped = 2
        await follow(bench, TWO, 2)
        bench.app.clear_notifications()
        await bench.until(lambda: "oldest 2 left out" in bench.text, "said beside the turn")


async def test_a_stopped_turn_keeps_what_was_written(workbench: Opener) -> None:
    async with workbench() as bench:
        await follow(bench, ONE, 1)
        await type_prompt(bench, TWO)
        bench.world.words, bench.world.holds_at = 1_000_000, 2
        await bench.press("alt+u")
        await bench.until(lambda: bench.screen.talk.cards[-1].text.startswith("gated word0 gated word1"), "writing")
        await bench.press("escape")
        bench.world.hold.set()
        await turn_is_kept(bench, 2)
        stopped = bench.controllers.conversing.turns[-1]
        assert stopped.reason == "stopped" and stopped.text.startswith("gated word0 gated word1")
        assert "stopped" in bench.screen.talk.cards[-1].head.note


async def test_a_turn_that_is_stopped_before_it_begins_gives_the_prompt_back(workbench: Opener) -> None:
    async with workbench() as bench:
        await follow(bench, ONE, 1)
        await type_prompt(bench, TWO)
        bench.world.hold.clear()
        await bench.press("alt+u")
        await bench.until(lambda: len(bench.screen.talk.cards) == 2, "asking")
        await bench.press("escape")
        bench.world.hold.set()
        await bench.until(lambda: bench.screen.prompt_pane.text == TWO, "the prompt is back")
        await bench.until(lambda: prompts(bench) == [ONE], "and no turn")


async def test_a_turn_that_fails_gives_the_prompt_back(workbench: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    async with workbench() as bench:
        await follow(bench, ONE, 1)

        async def failing(request: Generate):  # type: ignore[no-untyped-def]
            yield Failed(kind="UsageError", text="the prompt has too many tokens")

        monkeypatch.setattr(bench.engines[-1], "_generate", failing)
        await type_prompt(bench, TWO)
        await bench.press("alt+u")
        await bench.until(lambda: bench.screen.prompt_pane.text == TWO, "the prompt is back")
        assert any("too many tokens" in toast for toast in bench.toasts)
        assert prompts(bench) == [ONE]


async def test_conversations_are_saved_and_forgotten(workbench: Opener) -> None:
    async with workbench() as bench:
        await three_turns(bench)
        await bench.press("alt+c")
        await bench.until(lambda: isinstance(bench.app.screen, ConversationsScreen), "conversations")
        await bench.press("f3")
        target = bench.path.with_name("harbour.conversation.json")
        await bench.until(target.exists, "saved")
        assert [one["content"] for one in json.loads(target.read_text())[::2]] == [ONE, TWO, THREE]
        await bench.press("f4")
        await bench.until(lambda: prompts(bench) == [], "forgotten, also where it is shown")
        assert bench.context.archive.conversations() == []
        await bench.press("escape")


async def test_another_conversation_under_the_offered_name(workbench: Opener) -> None:
    async with workbench() as bench:
        await three_turns(bench)
        target = bench.path.with_name("harbour.conversation.json")
        target.write_text('[{"role": "user", "content": "precious"}]')
        await bench.press("alt+c")
        await bench.until(lambda: isinstance(bench.app.screen, ConversationsScreen), "conversations")
        dialog = bench.app.screen
        await bench.press("f3")
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "asked")
        await bench.press("escape")
        assert bench.app.screen is dialog and "harbour.conversation-2.json is free" in bench.text
        assert "precious" in target.read_text()
        await bench.press("f3")
        free = bench.path.with_name("harbour.conversation-2.json")
        await bench.until(free.exists, "saved under the free name")
        dialog.query_one(Input).value = target.name
        await bench.press("f3")
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "asked")
        await bench.press("ctrl+g")
        assert bench.app.screen is dialog and "precious" in target.read_text(), "what has the focus keeps it"
        dialog.query_one(Input).value = target.name
        await bench.press("f3")
        await bench.until(lambda: isinstance(bench.app.screen, ConfirmScreen), "asked again")
        assert "^g Accept" in bench.text and "esc Keep it" in bench.text
        await bench.press("tab", "ctrl+g")
        await bench.until(lambda: "precious" not in target.read_text(), "replaced, as asked")
        assert json.loads(target.read_text()) == json.loads(free.read_text())
        dialog.query_one(Input).value = "harbour.dlm"
        await bench.press("f3")
        await bench.until(lambda: "is not a saved" in bench.text, "refused")


async def test_without_conversations_the_list_says_so_and_offers_nothing(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.press("alt+c")
        await bench.until(lambda: isinstance(bench.app.screen, ConversationsScreen), "conversations")
        assert "No conversation is kept yet: a follow-up begins one." in bench.text
        assert mouse.button(bench, "accept") is None and mouse.button(bench, "delete") is None
        assert mouse.button(bench, "close") is not None


async def test_what_is_said_is_never_markup_or_control(workbench: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    async with workbench() as bench:
        monkeypatch.setattr(bench.engines[-1], "word", lambda *_: "[red]\x1b[2J\u202e")
        await follow(bench, "[bold]hi", 1)
        assert "[red]\u241b[2J" in bench.text and "> [bold]hi" in bench.text
        assert "\x1b" not in bench.text and "\u202e" not in bench.text


async def test_a_reader_further_up_stays_there(workbench: Opener) -> None:
    async with workbench() as bench:
        await three_turns(bench)
        holder = bench.screen.talk.query_one("#turns")
        bench.panes.focus_pane("talk")
        await bench.press("up", "up")
        assert bench.app.focused is bench.screen.talk.cards[0] and isinstance(bench.app.focused, TurnCard)
        await bench.until(lambda: holder.scroll_offset.y == 0, "at the top")


@pytest.mark.parametrize("look", ["colours", "no colours"])
@pytest.mark.parametrize("size", [(60, 18), (80, 24), (120, 40)], ids=lambda size: "x".join(map(str, size)))
async def test_screens(
    workbench: Opener, screens: SnapshotAssertion, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], look: str
) -> None:
    if look == "no colours":
        monkeypatch.setenv("NO_COLOR", "1")
    async with workbench(size=size) as bench:
        await three_turns(bench)
        await fork_at_the_second(bench)
        bench.panes.focus_pane("talk")
        bench.app.clear_notifications()
        assert await bench.settled() == screens
