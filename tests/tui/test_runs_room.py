"""The charts of the runs pane keep their place, however many adapters a document has."""

from __future__ import annotations

import asyncio

import pytest
from textual.app import App, ComposeResult

from dlm_tui.app.panes.runs import RunsPane
from dlm_tui.store import GateRun
from dlm_widgets.adapter_palette import marks_for
from dlm_widgets.history_chart import HistoryChart

NAMES = [f"adapter_{number:02d}" for number in range(24)]


class Bench(App[None]):
    CSS_PATH = "../../dlm_tui/app/panes/runs.tcss"

    def compose(self) -> ComposeResult:
        yield RunsPane()


@pytest.mark.parametrize("count", [3, 24])
async def test_the_charts_are_there_with_many_adapters(count: int) -> None:
    names = NAMES[:count]
    weights = dict.fromkeys(names, 1 / count)
    async with Bench().run_test(size=(40, 12)) as pilot:
        pane = pilot.app.query_one(RunsPane)
        history = [GateRun(run, "2026-11-01T00:00:00Z", "trained", weights, entropy=1.0) for run in (1, 2)]
        pane.show_history(history, names, marks_for(names), {})
        pane.show_kinds(dict.fromkeys(names, "lora r8"))
        async with asyncio.timeout(10.0):
            while not (charts := [chart for chart in pane.query(HistoryChart) if chart.size.height]):
                await pilot.pause()
        assert charts and all(chart.size.height >= 4 and chart.region.bottom <= 12 for chart in charts)
