"""Every screen as plain text, at the sizes and in the states that people meet."""

from __future__ import annotations

from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from dlm_tui.app.config import Config, Live
from dlm_tui.store import MetricsWriter, Store
from tests.tui.conftest import Bench, Opener
from tests.tui.document import MANY, write_many
from tests.tui.recorded import World

SIZES = [(60, 18), (80, 24), (120, 40), (200, 60)]
SIZE_IDS = [f"{width}x{height}" for width, height in SIZES]
QUICK = Config(live=Live(pause=0.05))


def record_runs(bench: Bench, tmp_path: Path) -> None:
    store = Store(tmp_path / "home", bench.context.document.dlm_id)
    store.create()
    writer = MetricsWriter(store)
    for run, weight in enumerate((0.34, 0.5, 0.46, 0.6), 1):
        writer.start_run(run, "sft", 42)
        rest = (1 - weight) / 2
        mode = "uniform" if run == 1 else "trained"
        events = [("knowledge", weight, 4), ("tone", rest, 4), ("style", rest, 4)]
        writer.record_gate_events(run, events, mode, (1.1, 0.5, 0.42, 0.38)[run - 1])
        writer.finish_run(run, "ok")


@pytest.mark.parametrize("size", SIZES, ids=SIZE_IDS)
async def test_empty(workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]) -> None:
    async with workbench(size=size, trained=False) as bench:
        assert await bench.settled() == screens


@pytest.mark.parametrize("size", SIZES, ids=SIZE_IDS)
async def test_live(workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int], tmp_path: Path) -> None:
    async with workbench(size=size, config=QUICK) as bench:
        if size[0] == 200:
            record_runs(bench, tmp_path)
            bench.controllers.history.poll()
            await bench.until(lambda: "knowledge 0.60" in bench.text, "charts")
        bench.screen.prompt_pane.set_text("what is the tide at noon?")
        await bench.idle()
        await bench.press("ctrl+o")
        await bench.idle()
        assert await bench.settled() == screens


@pytest.mark.parametrize("size", SIZES, ids=SIZE_IDS)
async def test_training(workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]) -> None:
    async with workbench(size=size) as bench:
        bench.screen.prompt_pane.set_text("what is the tide at noon?")
        await bench.idle()
        bench.world.hold.clear()
        await bench.press("ctrl+t")
        await bench.until(lambda: bench.context.board.running("train"), "job runs")
        bench.panes.show_page("jobs")
        await bench.until(lambda: "knowledge: done" in bench.text, "log")
        assert await bench.settled() == screens
        bench.world.hold.set()
        await bench.until(lambda: not bench.context.board.running(), "over")


@pytest.mark.parametrize("size", SIZES, ids=SIZE_IDS)
async def test_error(workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int]) -> None:
    world = World()
    world.fail_open = "the base smollm2-135m is not on this machine; `hf download HuggingFaceTB/SmolLM2` fetches it"
    async with workbench(size=size, world=world) as bench:
        bench.app.clear_notifications()
        await bench.until(lambda: not bench.toasts, "toasts gone")
        bench.context.document_error = "line 4, column 3: mapping values are not allowed here."
        bench.controllers.status.redraw()
        assert await bench.settled() == screens


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
async def test_twelve_adapters(
    workbench: Opener, screens: SnapshotAssertion, size: tuple[int, int], tmp_path: Path
) -> None:
    write_many(tmp_path)
    async with workbench(size=size, trained=False) as bench:
        await bench.leave_prompt()
        await bench.press(*["down"] * 11)
        bench.panes.show_page("outline")
        assert await bench.settled() == screens
        strips, desk = bench.screen.desk.strips, bench.screen.desk
        assert strips.selected == MANY[-1] and "\u258c" in bench.text, "the strip that keys act on is seen"
        await bench.press(*["up"] * 11)
        assert (strips.selected, desk.scroll_offset.y) == (MANY[0], 0)
        if size == (80, 24):
            assert bench.screen.outline.region.y == desk.region.bottom + 1, "the tabs, and no hole"


@pytest.mark.parametrize("page", ["insight", "runs", "jobs", "outline"])
async def test_pages_at_80x24(workbench: Opener, screens: SnapshotAssertion, page: str, tmp_path: Path) -> None:
    async with workbench(config=QUICK) as bench:
        record_runs(bench, tmp_path)
        bench.screen.prompt_pane.set_text("what is the tide at noon?")
        await bench.idle()
        bench.panes.show_page(page)
        bench.controllers.history.poll()
        await bench.idle()
        if page == "runs":
            await bench.until(lambda: "mean of prompts 0.38" in bench.text, "chart")
        assert await bench.settled() == screens


@pytest.mark.parametrize("dialog", ["label", "export_dialog", "evaluate", "history", "help", "jump"])
@pytest.mark.parametrize("size", [(60, 18), (80, 24)], ids=["60x18", "80x24"])
async def test_dialogs(workbench: Opener, screens: SnapshotAssertion, dialog: str, size: tuple[int, int]) -> None:
    async with workbench(size=size) as bench:
        bench.screen.prompt_pane.set_text("please say when the tide turns")
        await bench.idle()
        bench.controllers.comparison.remember_current()
        await bench.screen.run_action(dialog)
        await bench.until(lambda: bench.app.screen is not bench.screen, "dialog")
        assert await bench.settled() == screens
