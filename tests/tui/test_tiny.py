"""A terminal that is too small for anything ends nothing: every pane and every dialog, drawn and resized."""

from __future__ import annotations

import pytest

from dlm_tui.app.layout import PANES
from tests.tui.conftest import Bench, Opener
from tests.tui.dialogs import open_each

TINY = [(24, 8), (10, 5), (1, 1)]
USUAL = (120, 40)


async def through_sizes(bench: Bench) -> None:
    """Each size once, drawn to the end; what cannot be drawn ends the program and so the test."""
    for size in (*TINY, USUAL):
        await bench.pilot.resize_terminal(*size)
        # the library tells its screens of a size a moment later than the program
        await bench.until(lambda size=size: bench.app.screen.size == size, f"{size}")
        await bench.settled()


@pytest.mark.slow
async def test_every_dialog_is_drawn_at_any_size(workbench: Opener) -> None:
    async with workbench(size=USUAL) as bench:
        bench.screen.prompt_pane.set_text("please say when the tide turns")
        await bench.idle()
        await bench.press("ctrl+o")
        await bench.idle()
        await bench.press("f5")
        await bench.idle()
        async for name in open_each(bench):
            shown = bench.app.screen
            await through_sizes(bench)
            assert bench.app.screen is shown, name


async def test_every_pane_is_drawn_at_any_size(workbench: Opener) -> None:
    async with workbench(size=USUAL) as bench:
        for pane in PANES:
            bench.panes.go_to(pane)
            await bench.until(lambda pane=pane: bench.panes.is_shown(pane), pane)
            await through_sizes(bench)
            bench.panes.zoom = pane
            bench.panes.rearrange()
            await through_sizes(bench)
            assert bench.panes.zoom == pane
            bench.panes.end_zoom()
