"""What a retrained gate moved: the open set's prompts and the recent ones, before and after, behind what is typed."""

from __future__ import annotations

import asyncio
import json

from dlm_tui.app.controllers.gate_comparison import changed_text, moves_text
from dlm_tui.document.comparison import Moved
from dlm_tui.engine.protocol import Route, TrainGate
from tests.tui.conftest import Bench, Opener

PROMPTS = ["what is high water", "please say hello", "rime me a mast"]


def routed(bench: Bench) -> list[str]:
    """The prompts routed since the last gate training, in order."""
    requests = bench.world.requests
    start = max((index for index, request in enumerate(requests) if isinstance(request, TrainGate)), default=0)
    return [request.prompt for request in requests[start:] if isinstance(request, Route) and not request.explain]


def known(bench: Bench) -> list[str]:
    """Saved prompts whose weights have been seen."""
    return [entry.text for entry in bench.context.state.saved if entry.weights]


async def test_saved_prompts_are_shown_before_and_after(workbench: Opener) -> None:
    async with workbench(size=(100, 34)) as bench:
        sets = {"first": ["not this one"], "harbour": PROMPTS}
        bench.path.with_name("harbour.prompts.json").write_text(json.dumps(sets))
        await bench.press("f9")
        await bench.until(lambda: "Prompt sets" in bench.text, "sets")
        await bench.press("down", "down", "down", "down", "enter")
        await bench.until(lambda: bench.screen.prompt_pane.text == PROMPTS[0], "taken")
        await bench.until(lambda: known(bench) == PROMPTS, "routed to compare with")
        before = {entry.text: dict(entry.weights) for entry in bench.context.state.saved}
        await bench.idle()
        await bench.press("f5")
        await bench.until(lambda: len(bench.controllers.comparison.moved) == 3, "compared")
        await bench.idle()
        assert [change.text for change in bench.controllers.comparison.moved if change.saved] == PROMPTS
        assert {change.text: change.before for change in bench.controllers.comparison.moved} == before
        after = bench.engines[0].weights(PROMPTS[1])
        assert bench.controllers.comparison.moved[1].after == after != before[PROMPTS[1]]
        bench.controllers.comparison.show()
        await bench.until(lambda: "Saved prompts" in bench.text, "shown")
        assert all(prompt in bench.text for prompt in PROMPTS) and "not this one" not in bench.text
        assert f"{before[PROMPTS[1]]['tone']:.2f} \u2192 {after['tone']:.2f}" in bench.text


async def test_a_set_beside_the_document_is_compared_from_the_start(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.path.with_name("harbour.prompts.json").write_text(json.dumps({"harbour": PROMPTS}))
    async with workbench() as bench:
        await bench.until(lambda: known(bench) == PROMPTS, "routed when the engine is there")
        await bench.press("ctrl+t")
        await bench.until(lambda: len(bench.controllers.comparison.moved) == 3, "compared after a whole training")
        await bench.idle()


async def test_typing_comes_first(workbench: Opener) -> None:
    async with workbench() as bench:
        bench.path.with_name("harbour.prompts.json").write_text(json.dumps({"harbour": PROMPTS}))
        bench.controllers.comparison.open_set("harbour")
        await bench.until(lambda: known(bench) == PROMPTS, "routed to compare with")
        await bench.idle()
        bench.world.slow_route, bench.world.slow_prompt = asyncio.Event(), PROMPTS[0]
        await bench.press("f5")
        await bench.until(lambda: PROMPTS[0] in routed(bench), "a saved prompt is being compared")
        await bench.type("w")
        await bench.until(lambda: bench.routing.routed and bench.routing.routed.prompt == "w", "answered meanwhile")
        assert bench.routing.weights == bench.engines[0].weights("w")
        assert bench.controllers.comparison.moved == ()
        bench.world.slow_route.set()
        await bench.until(lambda: len(bench.controllers.comparison.moved) == 3, "compared in the end")
        await bench.idle()
        assert bench.routing.routed is not None and bench.routing.routed.prompt == "w"


def test_moves_in_words() -> None:
    one = Moved("a", {"x": 0.9, "y": 0.1}, {"x": 0.2, "y": 0.8})
    same = Moved("b", {"x": 0.9, "y": 0.1}, {"x": 0.9, "y": 0.1})
    assert moves_text([same, one], " a ", ["x", "y"]) == "x 0.90 \u2192 0.20, y 0.10 \u2192 0.80."
    assert moves_text([same, one], "b", ["x", "y"]) == "No weight of this prompt moved."
    assert moves_text([same], "a", ["x", "y"]) == ""
    assert changed_text([one, same]) == "1 of 2 remembered prompts has another top adapter now."
    assert changed_text([same]) == ""
