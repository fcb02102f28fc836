"""The live gate, answers and the desk, by key and by mouse."""

from __future__ import annotations

import asyncio

import pytest

from dlm_tui.app.cards import CardKey
from dlm_tui.engine.protocol import Generate, Route, Score
from dlm_widgets.mixing_desk import MixingDesk
from tests.tui.conftest import Bench, Opener


def weights(bench) -> dict[str, float | None]:  # type: ignore[no-untyped-def]
    return {channel.name: channel.weight for channel in bench.screen.desk.strips.channels}


async def test_bars_follow_every_keystroke(workbench: Opener) -> None:
    async with workbench() as bench:
        seen = []
        for text in ("w", "h", "a", "t"):
            await bench.type(text)
            await bench.idle()
            seen.append(tuple(weights(bench).values()))
        assert len(set(seen)) > 1
        assert max(weights(bench), key=weights(bench).get) == "knowledge"  # type: ignore[arg-type]
        assert [r.prompt for r in bench.world.requests if isinstance(r, Route)][-1] == "what"
        assert "entropy" in bench.text


async def test_a_stale_answer_is_dropped(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("please")
        await bench.idle()
        shown = bench.routing.routed
        assert shown is not None and shown.prompt == "please"
        await bench.routing.ask("an older prompt")
        assert bench.routing.routed is shown


async def test_answer_streams_and_is_kept(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what is")
        await bench.idle()
        await bench.press("ctrl+g")
        await bench.idle()
        card = bench.screen.answers.current
        assert card is not None and card.view == "gated" and card.text.endswith("word5 ")
        assert bench.context.state.history[0].text == "what is"
        assert set(bench.context.state.history[0].weights) == {"knowledge", "tone", "style"}


async def test_compare_is_one_request_with_all_views(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await bench.type("what is")
        await bench.press("ctrl+o")
        await bench.idle()
        requests = [r for r in bench.world.requests if isinstance(r, Generate)]
        assert [view.name for view in requests[-1].views] == ["base", "gated", "knowledge", "tone", "style"]
        assert all(card.text for card in bench.screen.answers.cards)
        assert "tone word0" in bench.text


async def test_escape_stops_an_answer_and_says_so(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what is")
        bench.world.hold.clear()
        await bench.press("ctrl+g")
        await bench.until(lambda: bench.controllers.generation.running, "generating")
        await bench.press("escape")
        bench.world.hold.set()
        await bench.idle()
        assert not bench.controllers.generation.running
        assert any("Stopped the answer" in toast for toast in bench.toasts)
        assert bench.screen.answers.current is not None and not bench.screen.answers.current.busy


async def test_an_empty_prompt_is_not_asked(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.press("ctrl+g", "ctrl+o")
        assert not any(isinstance(r, Generate) for r in bench.world.requests)
        assert any("no prompt" in toast for toast in bench.toasts)
        assert "every adapter counts the same" in bench.text


async def test_solo_mute_pin_by_key(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what is")
        await bench.idle()
        await bench.leave_prompt()
        await bench.press("down", "s")
        assert bench.controllers.mixing.coefficients() == {"knowledge": 0.0, "tone": 1.0, "style": 0.0}
        await bench.press("ctrl+g")
        await bench.idle()
        assert [r for r in bench.world.requests if isinstance(r, Generate)][-1].views[0].kind == "solo"
        await bench.press("s", "m")
        assert bench.controllers.mixing.coefficients()["tone"] == 0.0
        await bench.press("m", "up", "p")
        pinned = bench.controllers.mixing.coefficients()["knowledge"]
        bench.screen.prompt_pane.set_text("please please")
        await bench.idle()
        assert bench.controllers.mixing.coefficients()["knowledge"] == pinned
        assert bench.controllers.mixing.coefficients()["tone"] != 0.0
        await bench.press("r")
        assert bench.context.state.mix.pins == {}


async def test_faders_go_from_minus_two_to_two(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what")
        await bench.idle()
        await bench.leave_prompt()
        await bench.press(*["shift+left"] * 9)
        assert bench.controllers.mixing.coefficients()["knowledge"] == -2.0
        assert bench.context.state.mix.mode == "custom"
        await bench.press(*["shift+right"] * 12, "left")
        assert bench.controllers.mixing.coefficients()["knowledge"] == pytest.approx(1.9)
        await bench.press("ctrl+g")
        await bench.idle()
        view = [r for r in bench.world.requests if isinstance(r, Generate)][-1].views[0]
        assert view.kind == "custom" and view.mix is not None and view.mix["knowledge"] == pytest.approx(1.9)


async def test_modes_by_key(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what")
        await bench.idle()
        await bench.leave_prompt()
        await bench.press("x")
        assert set(bench.controllers.mixing.coefficients().values()) == {1 / 3}
        await bench.press("x")
        assert bench.context.state.mix.mode == "custom"
        await bench.press("x")
        assert bench.context.state.mix.mode == "gate"


async def test_the_desk_by_mouse(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what")
        await bench.idle()
        desk = bench.screen.query_one(MixingDesk)
        columns = desk._columns(desk.content_size.width)
        head = desk._head_rows(desk.content_size.width)
        await bench.click(MixingDesk, offset=(columns.switches_at + 1, head + 2))
        assert bench.context.state.mix.solos == ["style"]
        await bench.click(MixingDesk, offset=(columns.switches_at + 3, head + 1))
        assert bench.context.state.mix.mutes == ["tone"]
        await bench.click(MixingDesk, offset=(columns.switches_at + 5, head))
        assert list(bench.context.state.mix.pins) == ["knowledge"]
        await bench.press("r")
        await bench.click(MixingDesk, offset=(columns.fader_at + 16, head + 1))
        assert bench.controllers.mixing.coefficients()["tone"] == 2.0
        await bench.pilot.mouse_down(MixingDesk, offset=(columns.fader_at + 16, head + 1))
        await bench.pilot.hover(MixingDesk, offset=(columns.fader_at + 4, head + 1))
        await bench.pilot.mouse_up(MixingDesk, offset=(columns.fader_at + 4, head + 1))
        await bench.quiet()
        assert bench.controllers.mixing.coefficients()["tone"] == -1.0


async def test_sweep_shows_answers_and_divergence(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await bench.type("what")
        await bench.idle()
        await bench.leave_prompt()
        await bench.press("w")
        await bench.idle()
        requests = [r for r in bench.world.requests if isinstance(r, Score) and len(r.views) == 9]
        assert [view.mix["knowledge"] for view in requests[0].views if view.mix] == [
            -2,
            -1.5,
            -1,
            -0.5,
            0,
            0.5,
            1,
            1.5,
            2,
        ]
        await bench.until(lambda: "+2.0 word5" in bench.text, "the sweep is written")
        assert "0.42" in bench.text
        await bench.press("escape")
        assert bench.app.screen is bench.screen


async def test_insight_only_works_when_it_can_be_seen(workbench: Opener) -> None:
    from dlm_tui.app.config import Config, Live

    async with workbench(config=Config(live=Live(pause=0.05))) as bench:
        await bench.type("what tide")
        await bench.idle()
        assert not any(isinstance(r, Score) or (isinstance(r, Route) and r.explain) for r in bench.world.requests)
        await bench.press("f4")
        await bench.idle()
        assert any(isinstance(r, Route) and r.explain for r in bench.world.requests)
        assert "5.1σ above noise" in bench.text
        assert "Which words pull where" in bench.text


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_unlike_anything_trained_is_said(workbench: Opener, size: tuple[int, int]) -> None:
    async with workbench(size=size) as bench:
        await bench.type("zzz")
        await bench.idle()
        assert "unlike anything trained" in bench.text


async def test_heat_columns_and_next_answer(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await bench.type("what")
        await bench.press("ctrl+o")
        await bench.idle()
        bench.panes.focus_pane("answers")
        await bench.press("h")
        assert bench.context.state.heat
        await bench.press("ctrl+o")
        await bench.idle()
        assert [r for r in bench.world.requests if isinstance(r, Generate)][-1].heat
        await bench.press("c")
        assert sum(card.display for card in bench.screen.answers.cards) == 1
        await bench.press("n")
        shown = [card.view for card in bench.screen.answers.cards if card.display]
        assert shown == ["gated"]
        await bench.press("left")
        assert [card.view for card in bench.screen.answers.cards if card.display] == ["base"]


async def test_explaining_never_overtakes_the_bars(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        await bench.idle()
        bench.world.slow_route = asyncio.Event()
        bench.screen.prompt_pane.set_text("please say")
        await bench.until(lambda: any(r.prompt == "please say" for r in routes(bench)), "asked")
        for _ in range(20):
            await bench.pilot.pause(0.02)
        assert not any(r.prompt == "please say" and r.explain for r in routes(bench))
        bench.world.slow_route.set()
        await bench.idle()
        assert bench.routing.routed is not None and bench.routing.routed.prompt == "please say"
        assert any(r.prompt == "please say" and r.explain for r in routes(bench))


def routes(bench: Bench) -> list[Route]:
    return [request for request in bench.world.requests if isinstance(request, Route)]


async def test_a_reader_at_the_end_stays_there_and_one_who_scrolled_up_too(workbench: Opener) -> None:
    async with workbench() as bench:
        await bench.type("what is")
        await bench.press("ctrl+g")
        await bench.idle()
        answers, card = bench.screen.answers, bench.screen.answers.current
        assert card is not None

        async def write() -> None:
            for number in range(5):
                answers.add(CardKey("gated"), f"and {number} " * 60, None)
                card.draw()
                await asyncio.sleep(0)
            await bench.quiet()

        await write()
        assert card.scroll_offset.y == card.max_scroll_y > 10
        card.scroll_to(y=3, animate=False)
        await bench.quiet()
        await write()
        assert card.scroll_offset.y == 3
        await bench.press("ctrl+g")
        await bench.idle()
        await write()
        assert card.scroll_offset.y == card.max_scroll_y > 10
