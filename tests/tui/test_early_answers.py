"""Early answers on the screen: what a training is like while it runs, so that a bad one can be stopped."""

from __future__ import annotations

import pytest
from syrupy.assertion import SnapshotAssertion

from dlm_tui.engine.protocol import Looked
from dlm_tui.progress import EarlyAnswer, EarlyLook
from tests.tui.conftest import Bench, Opener
from tests.tui.recorded import World


def look(step: int, loss: float | None, *now: str, rows: int = 2) -> Looked:
    before = ("The the the of a", "", "Please [bold]wait[/]\nhere")
    prompts = ("Where is the key?", "When does the tide turn?", "Who rings the bell?")
    answers = [
        EarlyAnswer(prompt=prompt, before=old, now=new)
        for prompt, old, new in zip(prompts, before, now or before, strict=True)
    ]
    first = 4.127 if rows else None
    found = EarlyLook(step=step, total=24, rows=rows, held_out_before=first, held_out=loss, answers=answers)
    return Looked(scope="knowledge", look=found)


FIRST = look(0, 4.127)
SECOND = look(12, 3.25, "Under the third pot.", "At six, \x1b[31mwhen the bell rings.", "")


async def training(bench: Bench) -> None:
    """A training that runs, in the jobs pane."""
    bench.world.hold.clear()
    await bench.press("ctrl+t")
    await bench.until(lambda: bench.context.board.running("train"), "runs")
    bench.panes.go_to("jobs")
    await bench.until(lambda: bench.panes.focused_pane == "jobs", "the jobs have the focus")


async def test_the_last_look_is_under_the_log_and_a_bad_run_is_stopped(workbench: Opener) -> None:
    world = World()
    world.looks = [FIRST, SECOND]
    async with workbench(world=world, size=(90, 60)) as bench:
        await training(bench)
        await bench.until(
            lambda: "step 12 of 24 · held-out loss 4.127 before, 3.250 now (2 rows)" in bench.text, "loss"
        )
        for text in ("Where is the key?", "before  The the the of a", "now     Under the third pot."):
            assert text in bench.text
        assert "before  (nothing)" in bench.text and "now     (nothing)" in bench.text
        assert "[bold]wait[/]␊here" in bench.text, "what a model says is neither markup nor a line of its own"
        await bench.press("x")
        await bench.until(lambda: not bench.context.board.running(), "stopped")
        assert bench.context.board.records[0].state == "cancelled"
        assert "knowledge · step 12 of 24" in bench.text, "it stays to be read"
        assert "now     Under the third pot." in bench.text


async def test_before_the_first_step_there_is_no_now(workbench: Opener) -> None:
    world = World()
    world.looks = [look(0, None, rows=0)]
    async with workbench(world=world, size=(90, 60)) as bench:
        await training(bench)
        await bench.until(lambda: "no held-out loss" in bench.text and "before  The the" in bench.text, "a look")
        assert "(one in ten is:" in bench.text and "now  " not in bench.text


async def test_a_long_answer_goes_on_below_its_beginning(workbench: Opener) -> None:
    world = World()
    world.looks = [look(12, 3.25, "Under the third pot " * 8, "", "")]
    async with workbench(world=world, size=(80, 60)) as bench:
        await training(bench)
        await bench.until(lambda: "now     Under" in bench.text, "a look")
        lines = [line for line in bench.text.splitlines() if "third pot" in line]
        first = lines[0].index("Under")
        assert len(lines) > 1 and all(len(line) - len(line.lstrip()) == first for line in lines[1:])


@pytest.mark.parametrize("size", [(80, 24), (140, 40)], ids=str)
async def test_screens(workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]) -> None:
    world = World()
    world.looks = [FIRST, SECOND]
    async with workbench(world=world, size=size) as bench:
        await training(bench)
        await bench.until(lambda: "now     (nothing)" in bench.text, "all of the look, its end in view")
        assert await bench.settled() == screens
