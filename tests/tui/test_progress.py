"""The time left is said in the same words wherever somebody waits."""

from __future__ import annotations

import asyncio

import pytest

from dlm_tui.app.config import Config, Live
from tests.tui.conftest import Opener
from tests.tui.recorded import World


async def test_opening(workbench: Opener) -> None:
    world = World()
    world.measuring = asyncio.Event()
    async with workbench(world=world, size=(100, 30), wait=False) as bench:
        words = "reading the base \u00b7 50% \u00b7 3 s left"
        await bench.until(lambda: bench.text.count(words) == 2, "in the status line and on the desk")
        world.measuring.set()
        await bench.until(lambda: bench.context.link.ready, "open")
        await bench.idle()
        assert words not in bench.text


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("v", "judging the gate \u00b7 20% \u00b7 8 s left"),
        ("d", "comparing answers \u00b7 75% \u00b7 70 s left"),
        ("w", "measuring the effect \u00b7 25% \u00b7 6 s left"),
    ],
)
async def test_dialogs(workbench: Opener, key: str, words: str) -> None:
    async with workbench(size=(100, 34)) as bench:
        await bench.type("what is")
        await bench.idle()
        bench.world.measuring = asyncio.Event()
        await bench.leave_prompt()
        await bench.press(key)
        await bench.until(lambda: words in bench.text, "progress")
        bench.world.measuring.set()
        await bench.idle()
        await bench.until(lambda: words not in bench.text, "the result")


async def test_the_effect_of_what_is_typed(workbench: Opener) -> None:
    async with workbench(size=(120, 40), config=Config(live=Live(pause=0.05))) as bench:
        bench.panes.show_page("insight")
        bench.world.measuring = asyncio.Event()
        await bench.type("w")
        await bench.until(lambda: "measuring the effect \u00b7 25% \u00b7 6 s" in bench.text, "progress")
        bench.world.measuring.set()
        await bench.until(lambda: "changes the next token" in bench.text, "scored")
        assert "6 s left" not in bench.text


async def test_gate_training_and_export(workbench: Opener) -> None:
    async with workbench(size=(120, 40)) as bench:
        bench.panes.show_page("jobs")
        bench.world.hold.clear()
        await bench.press("f5")
        words = "gate training \u00b7 33% \u00b7 12 s left"
        await bench.until(lambda: bench.text.count(words) == 2, "in the status line and in the jobs")
        bench.world.hold.set()
        await bench.idle()
        bench.world.hold.clear()
        await bench.press("f8")
        await bench.until(lambda: bench.text.count("50% \u00b7 4 s left") == 2, "export")
        bench.world.hold.set()
        await bench.idle()
