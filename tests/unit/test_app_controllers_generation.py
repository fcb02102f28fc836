"""Answers without a screen: one with the mix, all views, stopped, remembered; and what Esc and copying do."""

from __future__ import annotations

import asyncio
from pathlib import Path

from dlm_tui.app.config import Config
from dlm_tui.app.config import Generate as Answering
from dlm_tui.engine.protocol import Generate
from tests.tui.recorded import World
from tests.unit.app_controllers import running


async def test_an_answer_uses_the_mix_and_is_remembered(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("what is")
        bench.controllers.mixing.switch("tone", "solo")
        bench.controllers.generation.answer()
        await bench.ui.settled()
        assert [view.name for view in bench.requests(Generate)[-1].views] == ["tone"]
        assert bench.answers.cards["tone"].text.endswith("word5 ")
        assert bench.context.state.history[0].text == "what is" and bench.pages.page == "answers"


async def test_comparing_asks_every_view_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("what is")
        bench.controllers.mixing.move_fader("tone", 2.0)
        bench.controllers.generation.compare()
        await bench.ui.settled()
        assert list(bench.answers.cards) == ["base", "gated", "knowledge", "tone", "style", "custom"]


async def test_an_answer_is_kept_with_the_type_that_it_was_decoded_in(tmp_path: Path) -> None:
    world = World()
    world.dtype = "float32"  # the base cannot be read as bfloat16
    async with running(tmp_path, world=world, config=Config(generate=Answering(dtype="bfloat16"))) as bench:
        await bench.type("what is")
        bench.controllers.generation.answer()
        await bench.ui.settled()
        assert [answer.dtype for answer in bench.context.archive.of_prompt("what is")] == ["float32"]


async def test_what_cannot_be_answered_is_said(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.controllers.generation.answer()
        assert bench.ui.said == ["warning: There is no prompt to answer yet."] and bench.requests(Generate) == []


async def test_escape_stops_the_answer_first_then_leaves_the_prompt(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("what is")
        bench.world.hold.clear()
        bench.controllers.generation.answer()
        while not bench.controllers.generation.running:
            await asyncio.sleep(0)
        await bench.controllers.interrupts.escape()
        bench.world.hold.set()
        await bench.ui.settled()
        assert bench.answers.cards["gated"].note == "stopped"
        assert bench.pages.focused_pane == "prompt"
        await bench.controllers.interrupts.escape()
        assert bench.pages.focused_pane == "desk"


async def test_the_hint_follows_the_engine_and_the_training(tmp_path: Path) -> None:
    world = World(trained=False)
    async with running(tmp_path, world=world) as bench:
        assert "After training" in bench.answers.shown_hint
        bench.controllers.training.start()
        await bench.ui.settled()
        assert "answers with the mix above" in bench.answers.shown_hint
    world.fail_open = "the base is not here"
    async with running(tmp_path, world=world) as bench:
        assert "Answers need the engine" in bench.answers.shown_hint
        assert "error: The engine cannot work the base is not here" in bench.ui.said


async def test_the_answer_is_copied_else_the_last_command(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        bench.controllers.copying.copy_current()
        assert bench.ui.said[-1] == "warning: There is nothing to copy yet."
        bench.context.state.last_export = "vllm serve it"
        bench.controllers.copying.copy_current()
        await bench.type("what is")
        bench.controllers.generation.answer()
        await bench.ui.settled()
        bench.controllers.copying.copy_current()
        await bench.ui.settled()
        assert bench.ui.copied[0] == "vllm serve it" and bench.ui.copied[1].startswith("gated word0")


async def test_an_answer_that_gives_way_to_a_follow_up_says_that_it_was_stopped(tmp_path: Path) -> None:
    async with running(tmp_path) as bench:
        await bench.type("what is")
        bench.world.words = 1_000_000
        bench.controllers.generation.answer()
        while not bench.answers.cards or len(bench.answers.cards["gated"].text.split()) < 12:
            await asyncio.sleep(0)
        bench.world.words = 6
        bench.prompt.text = "and then"
        bench.controllers.conversing.follow_up()
        await bench.ui.settled()
        assert bench.answers.cards["gated"].note == "stopped"
        assert [turn.prompt for turn in bench.talk.turns] == ["and then"]
