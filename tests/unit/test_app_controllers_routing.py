"""Routing and the mixing desk without a screen: the newest prompt wins, typing comes first, faders make the mix."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dlm_tui.engine.protocol import Route, Score
from tests.tui.recorded import World
from tests.unit.app_controllers import running


async def test_a_typed_prompt_is_routed_and_the_desk_asked_to_draw(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.desk.calls.clear()
        await bench.type("what is the tide")
        assert bench.controllers.routing.weights == bench.engines[0].weights("what is the tide")
        assert bench.desk.calls["ask"]
        assert bench.context.state.prompt == "what is the tide" and bench.context.saver.is_due


async def test_an_answer_to_an_older_prompt_is_not_shown(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("please")
        await bench.controllers.routing.ask("what is")
        assert bench.controllers.routing.routed is not None
        assert bench.controllers.routing.routed.prompt == "please"


async def test_other_prompts_wait_while_typing_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.world.slow_route = asyncio.Event()
        bench.prompt.text = "please"
        bench.controllers.routing.route()
        await asyncio.sleep(0)
        other = asyncio.ensure_future(bench.controllers.routing.weights_of("what is"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert [request.prompt for request in bench.requests(Route)][-1] == "please"
        bench.world.slow_route.set()
        assert await other == bench.engines[0].weights("what is")
        assert bench.controllers.routing.routed is not None
        assert bench.controllers.routing.routed.prompt == "please"


async def test_a_stopped_question_does_not_block_other_prompts(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.world.slow_route, bench.world.slow_prompt = asyncio.Event(), "please"
        bench.prompt.text = "please"
        bench.controllers.routing.route()
        await asyncio.sleep(0)
        bench.ui.cancel("route")
        assert await bench.controllers.routing.weights_of("what is") is not None


async def test_explaining_happens_only_where_it_is_seen(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("what is")
        assert not any(request.explain for request in bench.requests(Route)) and bench.requests(Score) == []
        bench.insight.__dict__["display"] = True
        bench.pages.rearranged.emit()
        await bench.ui.settled()
        assert bench.requests(Route)[-1].explain
        assert bench.insight.calls["show_route"] and bench.insight.calls["show_scores"]


async def test_an_open_mark_is_settled_when_typing_pauses(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.world.open_marks = True
        await bench.type("what is")
        assert [(request.settled, request.explain) for request in bench.requests(Route)][-2:] == [
            (False, False),
            (True, False),
        ]
        routed = bench.controllers.routing.routed
        assert routed is not None and routed.settled and routed.is_ood
        bench.world.open_marks = False
        await bench.type("please")
        assert not bench.requests(Route)[-1].settled, "nothing is left to settle"


async def test_faders_switches_and_modes_make_the_mix(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("what is")
        mixing = bench.controllers.mixing
        assert mixing.coefficients() == bench.engines[0].weights("what is")
        mixing.move_fader("tone", -1.5)
        assert mixing.coefficients()["tone"] == -1.5 and mixing.view().kind == "custom"
        mixing.switch("tone", "solo")
        assert mixing.coefficients() == {"knowledge": 0.0, "tone": 1.0, "style": 0.0}
        mixing.reset()
        assert mixing.view().name == "gated"
        mixing.set_mode("uniform")
        assert set(mixing.coefficients().values()) == {1 / 3}
        mixing.set_mode("no such mode")
        assert bench.context.state.mix.mode == "uniform"


async def test_the_desk_shows_weights_and_what_is_in_the_way(tmp_path: Path) -> None:
    async with running(tmp_path, world=World(trained=False)) as bench:
        bench.controllers.mixing.fill()
        (channels,) = bench.desk.calls["show"][-1]
        assert [channel.note for channel in channels] == ["not trained"] * 3
        assert "Nothing is trained yet" in str(bench.desk.calls["note"][-1][0])
        bench.controllers.routing.failed.emit("the engine is out of memory")
        assert "out of memory" in str(bench.desk.calls["note"][-1][0])


@pytest.mark.parametrize("name", [None, "tone"])
async def test_a_sweep_says_what_it_lacks(tmp_path: Path, name: str | None) -> None:
    async with running(tmp_path) as bench:
        bench.desk.__dict__["selected"] = name
        await bench.controllers.sweep.open()
        assert bench.ui.said[-1].startswith("warning: A sweep needs a ") and bench.ui.dialogs == []
